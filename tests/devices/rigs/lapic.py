"""The local APIC, wired as the board wires it, with an 8259A that always answers vector 30H."""

from __future__ import annotations

import random

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices import lapic_registers as reg
from vmm.devices.lapic import Lapic

REGISTERS = (0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x320, 0x350, 0x360, 0x370, 0x380, 0x3E0)
VALUES = (0, 0xFF, 0x1FF, 0x20, 0x4_0041, 0x2_0050, 0x1_0050, 0x8031, 0x700, 0x400, 5000, 0xB, 0xFF00_0000)


def _rig(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    external = rig.sink("external")

    def acknowledge_external() -> int:
        external()
        return 0x30

    lapic = Lapic(clock, rig.line("output"), acknowledge_external, rig.sink("nmi"), rig.sink("eoi"))
    rig.device = lapic

    def poke(rng: random.Random) -> None:
        lapic.write(rng.choice(REGISTERS), 4, rng.choice(VALUES))

    rig.views = {"lapic": (lapic, 0x400)}
    rig.values = VALUES
    rig.actions = {
        "poke": poke,
        "poke again": poke,
        "virtual wire": lambda rng: lapic.virtual_wire(),
        "acknowledge": lambda rng: lapic.acknowledge(),
        "deliver": lambda rng: lapic.deliver(
            rng.randrange(256), rng.random() < 0.5, rng.choice((0, 1, 4, 7))
        ),
        "lint0": lambda rng: lapic.lint0.set(rng.random() < 0.5),
        "lint1": lambda rng: lapic.lint1.set(rng.random() < 0.5),
        "tpr": lambda rng: lapic.set_tpr(rng.randrange(16) << 4),
        "base": lambda rng: lapic.write_apic_base(reg.BASE_DEFAULT ^ rng.choice((0, 0, 0x100, 0x800, 0x400))),
        "deadline": lambda rng: lapic.write_tsc_deadline(clock.now_ns + rng.randrange(-100, 5000)),
    }
    rig.observe = lambda: (lapic.tpr, lapic.apic_base, lapic.tsc_deadline)
    rig.advances_ns = (0, 1, 100, 5000, 1_000_000)
    return rig


register("lapic", _rig)
