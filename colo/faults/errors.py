"""What is wrong with a fault, a trial or a plan: where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec

from colo.errors import ColoError

Path = tuple[str | int, ...]
"""Where a value is: names of fields and numbers of list entries, from the outside in."""

SHOWN_MAX = 60
"""Characters of a wrong value that an error shows."""


class FaultError(ColoError):
    """A fault, a trial or a plan that cannot be as asked: where, what was found and expected, what to do."""

    def __init__(self, path: Path, found: str, expected: str, advice: str = "") -> None:
        super().__init__(path, found, expected, advice)
        self.path, self.found, self.expected, self.advice = path, found, expected, advice

    def __str__(self) -> str:
        tail = f"; {self.advice}" if self.advice else ""
        where = f"{dotted(self.path)}: " if self.path else ""
        return f"{where}found {self.found}, expected {self.expected}{tail}"


def dotted(path: Path) -> str:
    """``fault[2].when.ns``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def shown(value: object) -> str:
    """A wrong value, as an error says it."""
    if isinstance(value, msgspec.Struct):
        return type(value).__name__
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print very long ones
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # nor a list with one in it
        text = f"a {type(value).__name__} with a very long number"
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."


def nearest(found: object, names: Iterable[str]) -> str:
    """The advice to write the name that looks most like it, if one does."""
    if not isinstance(found, str):
        return ""
    near = difflib.get_close_matches(found[:SHOWN_MAX], list(names), n=1)
    return f"did you mean {near[0]}?" if near else ""


class PlanError(FaultError):
    """What is wrong with a plan, and on which line of which file."""

    def __init__(self, place: str, path: Path, found: str, expected: str, advice: str = "") -> None:
        super().__init__(path, found, expected, advice)
        self.place = place
        self.args = (place, path, found, expected, advice)

    def __str__(self) -> str:
        return f"{self.place}: {super().__str__()}"
