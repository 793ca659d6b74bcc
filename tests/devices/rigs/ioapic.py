"""The I/O APIC with its messages recorded."""

from __future__ import annotations

import random

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.ioapic import PIN_COUNT, IoApic


def _rig(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    ioapic = IoApic(rig.sink("deliver"))

    def program(rng: random.Random) -> None:
        ioapic.write(0x00, 4, 0x10 + rng.randrange(2 * PIN_COUNT))
        ioapic.write(0x10, 4, rng.choice((0x31, 0x8031, 0x1_8031, 0x8032, 0x400, 0x700, 0xA131)))

    rig.device = ioapic
    rig.views = {"ioapic": (ioapic, 0x44)}
    rig.actions = {
        "program": program,
        "pin": lambda rng: ioapic.line(rng.randrange(PIN_COUNT)).set(rng.random() < 0.6),
        "eoi": lambda rng: ioapic.eoi(rng.choice((0x31, 0x32, 0x33))),
    }
    return rig


register("ioapic", _rig)
