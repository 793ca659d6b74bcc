"""What a plan may write in place of one value: a range, a list, a wildcard or a distribution.

==================================================  =================================================
``8``                                               this one
``"0..1000000"``                                    any from the first to the last, both included
``["rax", "rbx"]``, ``[1, "16..31"]``               one of these, each as likely
``"*"``                                             any that the golden run knows of (:mod:`wildcards`)
``{ distribution = "normal", mean = 5, spread = 2 }``     as in :mod:`colo.faults.delay`; also
``{ distribution = "exponential", mean = 5 }``
``{ distribution = "pareto", least = 5 }``
``{ distribution = "uniform", low = 1, high = 9 }``
``{ distribution = "log-uniform", low = 1, high = 9 }``   each power of two as likely
``{ distribution = "weighted", values = [...], weights = [...] }``
==================================================  =================================================

What a distribution gives beyond the limits of its field is brought to the nearer limit.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from colo.faults.delay import exponential, normal, pareto, uniform
from colo.faults.document import Document
from colo.faults.errors import Path, nearest, shown
from colo.faults.fields import Real, Whole, alternatives, describe, fits, limit, structs, words

LIST_MAX = 4096
"""Values in one list."""
RANGE_MAX = 100
"""Characters."""
WEIGHT_MAX = 1_000_000

_RANGE = re.compile(r"\s*([-+.0-9A-Fa-fxX_]+?)\s*\.\.\s*([-+.0-9A-Fa-fxX_]+)\s*")
_DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "uniform": ("low", "high"),
    "log-uniform": ("low", "high"),
    "normal": ("mean", "spread"),
    "exponential": ("mean",),
    "pareto": ("least",),
    "weighted": ("values", "weights"),
}


@dataclass(frozen=True)
class Fixed:
    value: Any


@dataclass(frozen=True)
class Between:
    low: Any
    high: Any


@dataclass(frozen=True)
class OneOf:
    options: tuple[Any, ...]
    """Choices, or templates of tables."""
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Wild:
    """Any that the golden run knows of."""


@dataclass(frozen=True)
class Drawn:
    distribution: str
    numbers: tuple[int, ...]
    low: int
    high: int
    """Limits of the field."""


Choice = Fixed | Between | OneOf | Wild | Drawn


def read_choice(document: Document, path: Path, found: Any, hint: Any, wild: bool) -> Choice:
    """The choice that ``found`` writes for a plain field; ``wild``: whether a wildcard means something."""
    if isinstance(found, list):
        return _one_of(document, path, found, hint, wild)
    if isinstance(found, dict):
        return _drawn(document, path, found, hint, wild)
    numeric = _numeric(hint)
    if found == "*" and (wild or numeric is not None):
        if wild:
            return Wild()
        raise document.error(path, "'*'", describe(hint), "the golden run has no list of these; give a range")
    if isinstance(found, str) and numeric is not None:
        return _between(document, path, found, hint)
    if not fits(found, hint):
        raise document.error(path, shown(found), describe(hint), advice(found, hint))
    return Fixed(float(found) if isinstance(numeric, Real) else found)


def advice(found: Any, hint: Any) -> str:
    """What to write instead of a wrong value, when that can be guessed."""
    if isinstance(found, float) and found.is_integer() and isinstance(_numeric(hint), Whole):
        return f"write {shown(int(found))}, without a point or an exponent"
    tags = (str(kind.__struct_config__.tag) for kind in structs(hint))
    return nearest(found, (*words(hint), *tags))


def _numeric(hint: Any) -> Whole | Real | None:
    """The limits of the numbers that the field takes."""
    for member in alternatives(hint):
        found = limit(member)
        if isinstance(found, Whole | Real):
            return found
    return None


def _between(document: Document, path: Path, found: str, hint: Any) -> Between:
    real = isinstance(_numeric(hint), Real)
    match = _RANGE.fullmatch(found) if len(found) <= RANGE_MAX else None
    advice = 'a range is "first..last"' + ("" if real else ', a list is [1, 2], any is "*"')
    try:
        ends = [float(end) if real else int(end, 0) for end in match.groups()] if match else []
    except ValueError:
        ends = []
    if not ends:
        raise document.error(path, shown(found), describe(hint), advice)
    for end in ends:
        if not fits(end, hint):
            raise document.error(path, f"{shown(end)} in {shown(found)}", describe(hint))
    if ends[0] > ends[1]:
        raise document.error(path, shown(found), "a range that goes up", f'"{ends[1]}..{ends[0]}"?')
    return Between(*ends)


def _one_of(document: Document, path: Path, found: list[Any], hint: Any, wild: bool) -> OneOf:
    size_of_list(document, path, found)
    options = []
    for number, entry in enumerate(found):
        if isinstance(entry, list):
            raise document.error((*path, number), "a list in a list", "a value", "one list is enough")
        options.append(read_choice(document, (*path, number), entry, hint, wild))
    return OneOf(tuple(options), (1,) * len(options))


def size_of_list(document: Document, path: Path, found: list[Any]) -> None:
    if not 1 <= len(found) <= LIST_MAX:
        raise document.error(path, f"a list of {len(found)}", f"a list of 1 to {LIST_MAX}", "use a range")


def _drawn(document: Document, path: Path, found: dict[str, Any], hint: Any, wild: bool) -> Choice:
    name = found.get("distribution")
    if not isinstance(name, str) or name not in _DISTRIBUTIONS:
        where = (*path, "distribution") if "distribution" in found else path
        said = shown(name) if "distribution" in found else "a table without distribution"
        raise document.error(
            where, said, "one of " + ", ".join(_DISTRIBUTIONS), nearest(name, _DISTRIBUTIONS)
        )
    keys = _DISTRIBUTIONS[name]
    for key in found:
        if key not in (*keys, "distribution"):
            raise document.unknown((*path, key), (*keys, "distribution"))
    for key in keys:
        if key not in found:
            raise document.error(path, f"no {key}", f"{key} with the distribution {name!r}")
    if name == "weighted":
        return _weighted(document, path, found, hint, wild)
    limits = _numeric(hint)
    if not isinstance(limits, Whole):
        raise document.error(path, f"the distribution {name!r}", describe(hint), "use a range or a list")
    for key in keys:
        least = 1 if name == "log-uniform" else 0 if key in ("spread", "least") else limits.low
        wanted = Whole(least, limits.high)
        number = found[key]
        if not isinstance(number, int) or isinstance(number, bool) or not wanted.low <= number <= wanted.high:
            raise document.error((*path, key), shown(number), str(wanted))
    numbers = tuple(found[key] for key in keys)
    if "low" in keys and numbers[0] > numbers[1]:
        raise document.error((*path, "low"), str(numbers[0]), f"at most high, {numbers[1]}")
    return Drawn(name, numbers, limits.low, limits.high)


def _weighted(document: Document, path: Path, found: dict[str, Any], hint: Any, wild: bool) -> OneOf:
    values, weights = found["values"], found["weights"]
    if not isinstance(values, list):
        raise document.error((*path, "values"), shown(values), "a list")
    options = _one_of(document, (*path, "values"), values, hint, wild).options
    if not isinstance(weights, list) or len(weights) != len(values):
        raise document.error(
            (*path, "weights"), shown(weights), f"a list of {len(values)}, one for each value"
        )
    for number, weight in enumerate(weights):
        if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= WEIGHT_MAX:
            expected = str(Whole(0, WEIGHT_MAX))
            raise document.error((*path, "weights", number), shown(weight), expected)
    if not any(weights):
        raise document.error((*path, "weights"), "nothing but 0", "a weight that is more")
    return OneOf(options, tuple(weights))


def weighted_index(source: random.Random, weights: tuple[int, ...]) -> int:
    """The number of an option, each as likely as its weight says."""
    rest = source.randrange(sum(weights))
    for index, weight in enumerate(weights):
        if rest < weight:
            return index
        rest -= weight
    raise AssertionError("the weights do not add up")


def draw_number(source: random.Random, choice: Between | Drawn) -> int | float:
    """A number from a range or a distribution."""
    if isinstance(choice, Between):
        if isinstance(choice.low, float):
            return min(choice.low + (float(choice.high) - choice.low) * source.random(), float(choice.high))
        return uniform(source, choice.low, choice.high)
    return min(max(_number(source, choice), choice.low), choice.high)


def _number(source: random.Random, choice: Drawn) -> int:
    first = choice.numbers[0]
    match choice.distribution:
        case "uniform":
            return uniform(source, first, choice.numbers[1])
        case "log-uniform":
            return _log_uniform(source, first, choice.numbers[1])
        case "normal":
            return first + normal(source, choice.numbers[1])
        case "exponential":
            return exponential(source, first)
    return pareto(source, first)


def _log_uniform(source: random.Random, low: int, high: int) -> int:
    bits = uniform(source, low.bit_length(), high.bit_length())
    return uniform(source, max(low, 1 << (bits - 1)), min(high, (1 << bits) - 1))
