"""Ports 0x61, 0x92 and 0xCF9."""

from __future__ import annotations

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.pit import Pit
from vmm.devices.sysctl import ResetControl, SystemControlA, SystemControlB


def _port_b(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    pit = Pit(irq=rig.line("irq0"), clock=clock)
    port = rig.device = SystemControlB(pit, clock)
    rig.companions = (pit,)
    rig.views = {"port b": (port, 1), "pit": (pit, 4)}
    rig.values = (0xB0, 0xB6, 0x00, 0x01, 0x03, 0x12)
    rig.advances_ns = (0, 1, 838, 15_085, 215_000, 1_000_000)
    return rig


def _port_a(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    a20 = rig.line("a20")
    port = rig.device = SystemControlA(reset=rig.sink("reset"), set_a20=a20.set)
    rig.views = {"port a": (port, 1)}
    rig.values = (0, 1, 2, 3)
    return rig


def _reset_control(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    rig.device = ResetControl(reset=rig.sink("reset"))
    rig.views = {"reset control": (rig.device, 1)}
    rig.values = (0, 2, 4, 6)
    return rig


register("system control b", _port_b)
register("system control a", _port_a)
register("reset control", _reset_control)
