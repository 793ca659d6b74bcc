"""The interrupt controller pair, its 16 inputs and the processor's acknowledge."""

from __future__ import annotations

from random import Random

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.pic import Pic


def _pic(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    pic = rig.device = Pic(output=rig.line("int"))
    rig.views = {"master": (pic.master, 2), "slave": (pic.slave, 2), "elcr": (pic.elcr, 2)}

    def toggle(rng: Random) -> None:
        pic.line(rng.randrange(16)).set(rng.random() < 0.6)

    rig.actions = {"line": toggle, "line again": toggle, "acknowledge": lambda _: pic.acknowledge()}
    rig.values = (0x11, 0x20, 0x04, 0x02, 0x01, 0x00, 0x0A, 0x0B, 0x0C, 0x68, 0xA0, 0x60)
    return rig


register("pic", _pic)
