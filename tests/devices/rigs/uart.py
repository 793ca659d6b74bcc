"""The serial port, with a host that sends to it."""

from __future__ import annotations

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.uart import Uart


def _uart(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    uart = rig.device = Uart(irq=rig.line("irq"), transmit=rig.sink("transmit"))
    rig.views = {"uart": (uart, 8)}
    rig.actions = {"receive": lambda rng: uart.receive(rng.randbytes(rng.randrange(8)))}
    rig.observe = lambda: uart.room
    rig.values = (0x03, 0x0B, 0x0F, 0x1B, 0x81, 0x01, 0x07, 0xC7, 0x08)
    return rig


register("uart", _uart)
