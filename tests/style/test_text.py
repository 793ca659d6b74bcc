"""Every file says what it is, finishes what it starts, and speaks of nothing outside the project."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.style import source

# A character class around one letter keeps a pattern from finding itself.
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b")
ELSEWHERE = re.compile(
    r"""
      (?<![\w.])/wor[k]/              # a folder of the machine that a file was written on
    | /hom[e]/[a-z]+/
    | /tm[p]/w/
    | \bshare[d]/(?!object)
    | \bspik[e]/
    | (?:pyp[i]|pythonhoste[d])\.org  # a package is named, never the host that it is fetched from
    | \b(?:deb|snapshot)\.debia[n]\.org
    | archive\.ubunt[u]\.com
    | registry\.npmj[s]\.
    """,
    re.VERBOSE,
)


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in source.text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def is_silent(handler: ast.ExceptHandler) -> bool:
    """Catches everything, or everything usual, and does nothing about it."""
    broad = handler.type is None or source.dotted(handler.type) in ("Exception", "BaseException")
    idle = (ast.Pass, ast.Continue)
    return broad and all(
        isinstance(step, idle) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
        for step in handler.body
    )


def handlers(module: source.Module) -> Iterator[ast.ExceptHandler]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler))


def test_every_module_says_what_it_is() -> None:
    said = [
        module.path
        for module in source.modules()
        if module.text.strip() and ast.get_docstring(module.tree) is None
    ]
    assert not said, "no module docstring:\n" + "\n".join(said)


def test_nothing_is_left_unfinished() -> None:
    said = lines_with(UNFINISHED)
    assert not said, "finish it, or open an issue and say what the limit is:\n" + "\n".join(said)


def test_nothing_points_outside_the_project() -> None:
    said = lines_with(ELSEWHERE)
    assert not said, "a path or host that others do not have:\n" + "\n".join(said)


def test_no_error_is_swallowed() -> None:
    said = [module.at(node) for module in source.modules() for node in handlers(module) if is_silent(node)]
    assert not said, "name the exception, or use contextlib.suppress(Named) with the reason:\n" + "\n".join(
        said
    )


def test_assertions_are_ours_to_fail() -> None:
    """An assertion is our own mistake: code that catches it hides it."""
    said = [
        module.at(node)
        for module in source.modules_below("vmm/", "colo/")
        for node in handlers(module)
        if node.type is not None and "AssertionError" in ast.unparse(node.type)
    ]
    assert not said, "AssertionError is caught:\n" + "\n".join(said)


@pytest.mark.parametrize(
    ("text", "silent"),
    [
        ("try: f()\nexcept: pass", True),
        ("try: f()\nexcept Exception: pass", True),
        ("try: f()\nexcept BaseException:\n    ...", True),
        ("for x in y:\n    try: f()\n    except Exception: continue", True),
        ("try: f()\nexcept KeyError: pass", False),
        ("try: f()\nexcept Exception as exc:\n    raise ValueError from exc", False),
    ],
)
def test_the_silence_rule_bites(text: str, silent: bool) -> None:
    assert [is_silent(node) for node in handlers(source.module("x.py", text))] == [silent]


@pytest.mark.parametrize("text", ["see share|d/notes", "/wor|k/main/x", "https://pyp|i.org/simple"])
def test_the_elsewhere_rule_bites(text: str) -> None:
    assert ELSEWHERE.search(text.replace("|", ""))


@pytest.mark.parametrize("text", ["/usr/share/doc", "/sys/devices/network/", "shared memory"])
def test_the_elsewhere_rule_leaves_alone(text: str) -> None:
    assert not ELSEWHERE.search(text)
