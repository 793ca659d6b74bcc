"""Every combination of the choices of a plan: ``count = "all"``.

Trial *n* is the *n*-th combination, the last field of the last fault varying fastest; it is found by
division, so no other trial has to be made for it.  Lists, ranges of whole numbers and wildcards are
enumerated; a distribution or a range of real numbers has no end and is refused, and so is a wildcard that
stands for something else with each value of another choice.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from itertools import accumulate
from typing import Any

from colo.faults.choices import Between, Fixed, OneOf, Wild
from colo.faults.errors import FaultError, PlanError
from colo.faults.golden import Golden
from colo.faults.plan import TRIALS_MAX, Plan
from colo.faults.templates import Template, build
from colo.faults.wildcards import FIRST, WILDCARDS, Options, Scene, options, outside_quiet


def combinations(plan: Plan, golden: Golden) -> Options:
    """All of them, as tuples of faults; raises :class:`PlanError` when there are too many to run."""
    axes = [_struct(plan, template, golden, None) for template in plan.templates]
    whole = _product(axes)
    if whole.count > TRIALS_MAX:
        found = f"{whole.count} combinations"
        raise plan.error(("count",), found, f"at most {TRIALS_MAX}", "narrow a range, or draw some: a number")
    return whole


def _struct(plan: Plan, template: Template, golden: Golden, fault: dict[str, Any] | None) -> Options:
    """The structs that a template can be."""
    fixed = {name: choice.value for name, choice in template.fields.items() if isinstance(choice, Fixed)}
    scene = Scene(golden, plan.quiet, random.Random(0), fixed if fault is None else fault, fixed)
    rank = {name: index for index, name in enumerate(FIRST)}
    names = sorted(template.fields, key=lambda name: rank.get(name, len(FIRST)))
    axes = [_located(plan, template, name, scene) for name in names]
    values = _product(axes)

    def at(index: int) -> Any:
        return build(plan.document, template, dict(zip(names, values.at(index), strict=True)))

    return Options(values.count, at)


def _located(plan: Plan, template: Template, name: str, scene: Scene) -> Options:
    try:
        return _field(plan, template, name, template.fields[name], scene)
    except PlanError:
        raise
    except FaultError as error:
        raise plan.document.at(error, (*template.path, name)) from None


def _field(plan: Plan, template: Template, name: str, choice: Any, scene: Scene) -> Options:
    """The values of one field."""
    match choice:
        case Template():
            return _struct(plan, choice, scene.golden, dict(scene.fault))
        case Fixed(value):
            return Options(1, lambda _: value)
        case OneOf(choices, weights) if len(set(weights)) == 1:
            return _sum([_field(plan, template, name, each, scene) for each in choices])
        case Between(int(), int()):
            low, high = outside_quiet(template.kind, name, scene, choice.low, choice.high)
            return Options(high - low + 1, lambda index: low + index)
        case Wild():
            return _wild(template, name, scene)
    raise FaultError(
        (), "a choice without an end", "a list or a range of whole numbers", 'with count = "all"'
    )


def _wild(template: Template, name: str, scene: Scene) -> Options:
    wildcard = WILDCARDS.get((template.kind, name))
    for other in (*(wildcard.needs if wildcard else ()), "node"):
        if not isinstance(template.fields.get(other, Fixed("")), Fixed):
            raise FaultError((), f"'*' beside a choice of {other}", f"one {other}", "or give the values")
    return options(template.kind, name, scene)


def _product(axes: list[Options]) -> Options:
    """Tuples of one of each, the last varying fastest."""

    def at(index: int) -> tuple[Any, ...]:
        found = []
        for axis in reversed(axes):
            index, place = divmod(index, axis.count)
            found.append(axis.at(place))
        return tuple(reversed(found))

    return Options(math.prod(axis.count for axis in axes), at)


def _sum(axes: list[Options]) -> Options:
    """One after the other."""
    ends = list(accumulate(axis.count for axis in axes))

    def at(index: int) -> Any:
        number = bisect_right(ends, index)
        return axes[number].at(index - (ends[number - 1] if number else 0))

    return Options(ends[-1], at)
