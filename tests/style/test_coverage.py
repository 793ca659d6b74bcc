"""What is added is tested: every chip keeps the device promises, every guest is booted."""

from __future__ import annotations

import ast
import tomllib

import pytest

from tests.style import source

RIGS = "tests/devices/rigs"
MANIFEST = source.ROOT / "guests/manifest.toml"
BOOTS = source.ROOT / "tests/guests/test_boots.py"


def is_chip(node: ast.ClassDef) -> bool:
    """A class with registers: ``read`` and ``write`` at an offset.  A Protocol only describes one."""
    if any(source.dotted(base).endswith("Protocol") for base in node.bases):
        return False
    methods = {child.name: child for child in node.body if isinstance(child, ast.FunctionDef)}
    return all(
        name in methods and "offset" in [arg.arg for arg in methods[name].args.args]
        for name in ("read", "write")
    )


def chips() -> list[tuple[source.Module, ast.ClassDef]]:
    return [
        (module, node)
        for module in source.modules_below("vmm/devices/")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and is_chip(node)
    ]


def names_in(module: source.Module) -> set[str]:
    """Every name that the code of ``module`` uses, comments and strings left out."""
    names = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}


def slots(node: ast.ClassDef) -> tuple[str, ...] | None:
    """What ``__slots__`` names; None where there is none."""
    for step in node.body:
        if isinstance(step, ast.Assign) and source.dotted(step.targets[0]) == "__slots__":
            value = ast.literal_eval(step.value)
            return (value,) if isinstance(value, str) else tuple(value)
    return None


def test_every_chip_has_a_rig() -> None:
    """A class without state, such as a decoder of addresses, has no promise to keep."""
    rigged = set().union(*(names_in(module) for module in source.modules_below(RIGS)))
    said = [
        f"{module.at(node)}: {node.name}"
        for module, node in chips()
        if "state" in (slots(node) or ()) and node.name not in rigged
    ]
    assert not said, f"no rig in {RIGS}, so the device promises are not tested:\n" + "\n".join(said)


def test_every_chip_declares_its_slots() -> None:
    """State is the only mutable thing: ``__slots__`` makes a stray attribute an error."""
    said = [f"{module.at(node)}: {node.name}" for module, node in chips() if slots(node) is None]
    assert not said, "no __slots__:\n" + "\n".join(said)


@pytest.mark.skipif(
    not (MANIFEST.exists() and BOOTS.exists()), reason="no guests/manifest.toml or tests/guests/test_boots.py"
)
def test_every_guest_is_booted() -> None:
    """The boot tests are driven by the manifest itself, or name every guest in it."""
    text = BOOTS.read_text()
    guests = tomllib.loads(MANIFEST.read_text())
    missing = [name for name in guests.get("guest", guests) if name not in text]
    assert "manifest" in text or not missing, f"guests that {BOOTS.name} does not boot: {missing}"
