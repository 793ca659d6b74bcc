"""The text display over real RAM."""

from __future__ import annotations

import random

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.vga import TEXT_BASE, TEXT_BYTES, Vga
from vmm.ram import Ram


def _rig(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    ram = Ram(1)
    vga = Vga(ram)
    Vga.blank(ram)

    def type_text(rng: random.Random) -> None:
        ram.write(TEXT_BASE + 2 * rng.randrange(2000), rng.randbytes(40))

    rig.device = vga
    rig.views = {"vga": (vga, 0x20)}
    rig.actions = {"type": type_text}
    rig.world = {"text": (lambda: ram.read(TEXT_BASE, TEXT_BYTES), lambda data: ram.write(TEXT_BASE, data))}
    rig.observe = lambda: (vga.text()[0], vga.cursor())
    return rig


register("vga", _rig)
