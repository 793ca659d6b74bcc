"""ACPI power management, with somebody at the power button."""

from __future__ import annotations

import random

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.acpi_pm import SPAN, AcpiPm


def _acpi_pm(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    chip = AcpiPm(sci=rig.line("sci"), clock=clock, poweroff=rig.sink("poweroff"))

    def press(rng: random.Random) -> None:
        chip.press_power_button()

    rig.device = chip
    rig.views = {"pm": (chip, SPAN)}
    rig.actions = {"power button": press}
    rig.observe = lambda: chip.off
    rig.values = (0x0001, 0x0100, 0x0121, 0x2000, 0x3400, 0x01010101)
    return rig


register("acpi pm", _acpi_pm)
