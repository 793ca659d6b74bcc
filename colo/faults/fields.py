"""What a field of a fault may hold, declared beside the field, and one check for all of them.

A field is annotated with its limits, as in :mod:`vmm.state`, and everything else follows from that: the check
of a value made in Python, the check of a value in a plan file, the sentence that says what was expected, and
the Hypothesis strategy that makes such values (:mod:`colo.faults.strategies`)::

    mask: Annotated[int, Whole(1, U64_MAX, "which bits")]

msgspec checks types when it decodes but not when a struct is made, and its bounds stop at 63 bits; hence the
annotations here.
"""

from __future__ import annotations

import functools
import math
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from colo.faults.errors import FaultError, shown

U64_MAX = (1 << 64) - 1


@dataclass(frozen=True)
class Whole:
    """A whole number between two others, both included; ``what`` completes "a whole number of ..."."""

    low: int
    high: int
    what: str = ""

    def __str__(self) -> str:
        return f"a whole number from {_number(self.low)} to {_number(self.high)}" + _note(self.what)


@dataclass(frozen=True)
class Real:
    """A number between two others, both included."""

    low: float
    high: float
    what: str = ""

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}" + _note(self.what)


@dataclass(frozen=True)
class Text:
    """A string that one pattern matches whole; ``what`` says it in words."""

    pattern: str
    length: int
    what: str

    def __str__(self) -> str:
        return f"{self.what}, of at most {self.length} characters"


def _number(value: int) -> str:
    for bits in (62, 63, 64):
        if abs(value) in (1 << bits, (1 << bits) - 1):
            sign, less = "-" if value < 0 else "", "-1" if abs(value) % 2 else ""
            return f"{sign}2^{bits}{less}"
    return str(value)


def _note(what: str) -> str:
    return f" ({what})" if what else ""


@functools.cache
def hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The annotated type of each field, resolved."""
    found = get_type_hints(kind, include_extras=True)
    return {name: found[name] for name in kind.__struct_fields__}


@functools.cache
def infos(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields with their defaults; msgspec works them out anew each time."""
    return msgspec.structs.fields(kind)


@functools.cache
def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none is its own only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@functools.cache
def limit(hint: Any) -> Whole | Real | Text | None:
    """The annotation of a plain field."""
    if get_origin(hint) is Annotated:
        return next((note for note in get_args(hint)[1:] if isinstance(note, Whole | Real | Text)), None)
    return None


@functools.cache
def structs(hint: Any) -> tuple[type[msgspec.Struct], ...]:
    """The structs that a field may hold."""
    return tuple(
        member
        for member in alternatives(hint)
        if isinstance(member, type) and issubclass(member, msgspec.Struct)
    )


@functools.cache
def words(hint: Any) -> tuple[str, ...]:
    """The words that a field may hold."""
    found: list[str] = []
    for member in alternatives(hint):
        text = limit(member)
        if get_origin(member) is Literal:
            found += get_args(member)
        elif isinstance(text, Text) and re.fullmatch(r"\w+(\|\w+)+", text.pattern):
            found += text.pattern.split("|")
    return tuple(found)


def describe(hint: Any) -> str:
    """What a field takes, in words."""
    said = [_describe_one(member) for member in alternatives(hint)]
    return " or ".join(text for text in said if text)


def _describe_one(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{word}"' for word in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list"
    if hint is type(None):
        return ""
    found = limit(hint)
    if found is not None:
        return str(found)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        tag = hint.__struct_config__.tag_field
        return f"a table with {tag} = {shown(hint.__struct_config__.tag)}" if tag else "a table"
    return "true or false" if hint is bool else str(hint)


def fits(value: object, hint: Any) -> bool:
    """Whether a value may stand in a field with this annotation."""
    return any(_fits_one(value, member) for member in alternatives(hint))


def _fits_one(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    match limit(hint):
        case Whole(low, high):
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        case Real(low, high):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type, operator]
        case Text(pattern, length):
            return isinstance(value, str) and len(value) <= length and bool(re.fullmatch(pattern, value))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(entry, get_args(hint)[0]) for entry in value)
    if hint is type(None):
        return value is None
    return isinstance(hint, type) and isinstance(value, hint)


def check(struct: msgspec.Struct) -> None:
    """Raise :class:`FaultError` for the first field whose value does not fit its declaration."""
    for name, hint in hints(type(struct)).items():
        value = getattr(struct, name)
        if not fits(value, hint):
            raise FaultError((name,), shown(value), describe(hint))


def set_fields(struct: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    """The fields that are not as by default, in order: what has to be written down."""
    for info in infos(type(struct)):
        value = getattr(struct, info.name)
        if info.required or value != info.default:
            yield info.name, value


def plain(struct: msgspec.Struct) -> dict[str, Any]:
    """Dictionaries, lists, strings and numbers, without what is as by default."""
    config = struct.__struct_config__
    found: dict[str, Any] = {str(config.tag_field): config.tag} if config.tag_field else {}
    for name, value in set_fields(struct):
        found[name] = plain(value) if isinstance(value, msgspec.Struct) else value
    return found
