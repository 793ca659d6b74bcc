"""The keyboard controller, with somebody typing."""

from __future__ import annotations

from random import Random

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.i8042 import I8042


def _i8042(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    chip = rig.device = I8042(
        irq=rig.line("irq"), aux_irq=rig.line("aux_irq"), reset=rig.sink("reset"), set_a20=rig.line("a20").set
    )
    rig.views = {"i8042": (chip, 5), "command": (chip.command, 1)}

    def press(rng: Random) -> None:
        chip.press(rng.randbytes(rng.randrange(6)))

    rig.actions = {
        "press": press,
        "type": lambda rng: chip.type_text(rng.choice(("a", "Hi!", "é\n", "\x03"))),
    }
    rig.values = (0x20, 0x60, 0xAA, 0xAB, 0xA9, 0xD1, 0xD3, 0xFE, 0xED, 0xF0, 0xF2, 0xF4, 0xFF, 0x02, 0x65)
    return rig


register("i8042", _i8042)
