"""Who may import what, where a list of what is allowed says it better than one of what is not.

The layers stand in pyproject.toml as import-linter contracts (``tools/check``); here stand the two
rules that new files must not escape by being new.
"""

from __future__ import annotations

import sys

import pytest

from tests.style import source

CHIP_MAY_IMPORT = ("msgspec", "vmm.clock", "vmm.device", "vmm.devices", "vmm.errors", "vmm.state")
"""A chip knows offsets, a line, a clock and a sink; a chip that it is built on; how to declare state."""
ENGINE = {
    "unicorn": ("vmm/cpu/",),
    "numba": ("vmm/cpu/", "vmm/hashing", "colo/pages/scan.py"),
}
"""Where the two libraries that compile or execute may be imported."""


def is_below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def chip_imports(module: source.Module) -> list[str]:
    """Imports that a chip may not have."""
    names = source.imported(module.tree).values()
    return [
        f"{module.at(node)}: {full}"
        for full, node in names
        if not is_below(full, CHIP_MAY_IMPORT) and full.split(".")[0] not in sys.stdlib_module_names
    ]


def test_a_chip_imports_the_device_contract_and_nothing_else() -> None:
    said = [line for module in source.modules_below("vmm/devices/") for line in chip_imports(module)]
    assert not said, f"allowed are the standard library and {CHIP_MAY_IMPORT}:\n" + "\n".join(said)


@pytest.mark.parametrize("library", sorted(ENGINE))
def test_the_engine_stays_behind_its_wrapper(library: str) -> None:
    said = [
        f"{module.at(node)}: {full}"
        for module in source.modules_below("vmm/", "colo/")
        if not module.path.startswith(ENGINE[library])
        for full, node in source.imported(module.tree).values()
        if is_below(full, (library,))
    ]
    assert not said, f"{library} is imported in {ENGINE[library]} only:\n" + "\n".join(said)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("from vmm.state import State", False),
        ("from collections import deque", False),
        ("from vmm.devices.virtio_queue import Queue", False),
        ("from vmm.machine import Machine", True),
        ("import vmm.bus", True),
        ("import numpy as np", True),
    ],
)
def test_the_rule_bites(text: str, refused: bool) -> None:
    assert bool(chip_imports(source.module("vmm/devices/x.py", text))) is refused
