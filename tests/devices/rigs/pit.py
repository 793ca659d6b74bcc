"""The timer, with its gate moved by the host side."""

from __future__ import annotations

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.pit import Pit


def _pit(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    pit = rig.device = Pit(irq=rig.line("irq"), clock=clock)
    rig.views = {"pit": (pit, 4)}
    rig.actions = {"gate2": lambda rng: pit.set_gate2(rng.random() < 0.5)}
    rig.observe = pit.output2
    rig.values = (0x34, 0x36, 0x30, 0x38, 0xB0, 0xB2, 0xB4, 0xB6, 0xBA, 0x00, 0xC2, 0xEE, 0x35, 0x01, 0x14)
    rig.advances_ns = (0, 1, 838, 839, 15_085, 215_000, 1_000_000, 5_000_000)
    return rig


register("pit", _pit)
