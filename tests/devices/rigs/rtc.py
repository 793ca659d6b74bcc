"""The real-time clock."""

from __future__ import annotations

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.rtc import Rtc


def _rtc(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    rtc = rig.device = Rtc(irq=rig.line("irq"), clock=clock, epoch_s=1_700_000_000)
    rig.views = {"rtc": (rtc, 2)}
    rig.actions = {"memory": lambda rng: rtc.set_memory_size(rng.randrange(1 << 33))}
    rig.values = (0x00, 0x02, 0x04, 0x07, 0x09, 0x0A, 0x0B, 0x0C, 0x32, 0x26, 0x72, 0xC0, 0xF2, 0x12, 0x59)
    # A clock that runs at 8192 Hz for a second fires as often: keep the steps short.
    rig.advances_ns = (0, 1, 122_070, 2_228_000, 30_000_000, 500_000_000, 1_000_000_000)
    return rig


register("rtc", _rtc)
