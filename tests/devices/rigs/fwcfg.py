"""fw_cfg with two files."""

from __future__ import annotations

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.fwcfg import FwCfg


def _rig(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    rig.device = FwCfg(256 << 20, 1, {"opt/one": b"first", "opt/two": bytes(300)})
    rig.views = {"fwcfg": (rig.device, 2)}
    rig.values = (0x00, 0x01, 0x03, 0x05, 0x19, 0x20, 0x21, 0x8002)
    return rig


register("fwcfg", _rig)
