"""tests/side_by_side.py: what it names is there, and whoever makes networks is named."""

from __future__ import annotations

from tests.side_by_side import ONE_AFTER_ANOTHER, piece
from tests.style import source
from tests.style.test_coverage import names_in

MAKERS = {"Network", "Tap", "needs_root"}
"""Names whose users have interfaces or namespaces of the host."""


def test_what_is_named_is_there() -> None:
    assert [name for name in sorted(ONE_AFTER_ANOTHER) if not (source.ROOT / "tests" / name).exists()] == []


def test_whoever_makes_networks_is_not_run_beside_another() -> None:
    said = [
        module.path
        for module in source.modules_below("tests/")
        if "/test_" in module.path and names_in(module) & MAKERS and piece(module.path) == module.path
    ]
    assert not said, f"not in ONE_AFTER_ANOTHER of tests/side_by_side.py: {said}"
