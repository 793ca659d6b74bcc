"""Functions and files stay small enough to be read, and the exceptions only shrink.

Aim: a function of 40 lines at most, a file of 400.  A function over 70 lines is refused.  What lies
between, and files over their limit, stand in ``ratchet.toml`` with the length they have now; an entry
that could be lower must be lowered, so a file cannot grow back.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.style import source

FUNCTION_AIM, FUNCTION_MAX, FILE_MAX = 40, 70, 400
RATCHET = Path(__file__).with_name("ratchet.toml")


def _ratchet(table: str) -> dict[str, int]:
    return dict(tomllib.loads(RATCHET.read_text())[table])


def complaints(allowed: dict[str, int], found: dict[str, int]) -> list[str]:
    """What is longer than allowed, and which allowances are larger than needed."""
    said = [
        f'"{name}" = {lines}  # is new, or was {allowed.get(name)}: split it rather than list it'
        for name, lines in found.items()
        if lines > allowed.get(name, 0)
    ]
    for name, lines in allowed.items():
        now = found.get(name)
        if now is None:
            said.append(f'"{name}": remove the entry, it is no longer needed')
        elif now < lines:
            said.append(f'"{name}" = {now}  # is {lines}: lower it')
    return said


def test_functions_over_the_aim_only_shrink() -> None:
    found = {
        f"{module.path}::{name}": source.length(node)
        for module in source.modules()
        for name, node in source.functions(module.tree)
        if source.length(node) > FUNCTION_AIM
    }
    said = complaints(_ratchet("functions"), found)
    assert not said, f"functions over {FUNCTION_AIM} lines, {RATCHET.name}:\n" + "\n".join(said)


def test_no_function_is_over_the_limit() -> None:
    said = [
        f"{module.at(node)}: {name} has {source.length(node)} lines"
        for module in source.modules()
        for name, node in source.functions(module.tree)
        if source.length(node) > FUNCTION_MAX
    ]
    assert not said, f"split these, the limit is {FUNCTION_MAX}:\n" + "\n".join(said)


def test_files_over_the_limit_only_shrink() -> None:
    lengths = {module.path: module.text.count("\n") for module in source.modules()}
    found = {path: lines for path, lines in lengths.items() if lines > FILE_MAX}
    said = complaints(_ratchet("files"), found)
    assert not said, f"files over {FILE_MAX} lines, {RATCHET.name}:\n" + "\n".join(said)


@pytest.mark.parametrize(
    ("allowed", "found", "count"),
    [
        ({}, {}, 0),
        ({}, {"a": 50}, 1),
        ({"a": 50}, {"a": 50}, 0),
        ({"a": 50}, {"a": 51}, 1),
        ({"a": 50}, {"a": 49}, 1),
        ({"a": 50}, {}, 1),
    ],
)
def test_the_ratchet_only_tightens(allowed: dict[str, int], found: dict[str, int], count: int) -> None:
    assert len(complaints(allowed, found)) == count


def test_length_leaves_out_the_docstring_and_inner_functions() -> None:
    text = 'def outer():\n    """One.\n\n    Two."""\n    def inner():\n        return 1\n    return inner\n'
    tree = source.module("x.py", text).tree
    lengths = {name: source.length(node) for name, node in source.functions(tree)}
    assert lengths == {"outer": 2, "outer.inner": 2}
