"""The debug exit port."""

from __future__ import annotations

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.debug_exit import DebugExit


def _debug_exit(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    rig.device = DebugExit(exit=rig.sink("exit"))
    rig.views = {"debug exit": (rig.device, 4)}
    return rig


register("debug exit", _debug_exit)
