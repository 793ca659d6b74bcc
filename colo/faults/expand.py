"""A plan and the facts of its golden run, made into trials.

Trial *n* is a function of the plan, the facts and *n* alone: every fault of every trial draws from a stream
of its own, ``random.Random(f"{seed} trial {n} fault {m}")``, so any trial can be had without the others, on
any host, and a change to one fault of a plan leaves the others as they were.  The streams use ``randrange``,
``getrandbits`` and ``random``, which CPython keeps the same between versions.  With ``count = "all"`` nothing
is drawn but the trial's seed (:mod:`colo.faults.grid`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from colo.faults.choices import Between, Choice, Drawn, Fixed, OneOf, draw_number, weighted_index
from colo.faults.delay import NS_MAX
from colo.faults.errors import FaultError
from colo.faults.golden import Golden
from colo.faults.grid import combinations
from colo.faults.model import AtTime, Fault, Trial
from colo.faults.plan import Plan
from colo.faults.templates import Template, build
from colo.faults.wildcards import FIRST, Options, Scene, options, outside_quiet


def count(plan: Plan, golden: Golden) -> int:
    """How many trials the plan has."""
    return combinations(plan, golden).count if plan.everything else plan.head.count


def trials(plan: Plan, golden: Golden, first: int = 0, end: int | None = None) -> Iterator[Trial]:
    """Trials ``first`` to ``end``, not included; all of them unless it is said which."""
    every = combinations(plan, golden) if plan.everything else None
    whole = every.count if every else plan.head.count
    for number in range(first, whole if end is None else min(end, whole)):
        yield _trial(plan, golden, number, every)


def trial(plan: Plan, golden: Golden, number: int) -> Trial:
    """Trial ``number``, from 0."""
    every = combinations(plan, golden) if plan.everything else None
    whole = every.count if every else plan.head.count
    if not 0 <= number < whole:
        raise plan.error(("count",), f"trial {number}", f"trials 0 to {whole - 1}")
    return _trial(plan, golden, number, every)


def _trial(plan: Plan, golden: Golden, number: int, every: Options | None) -> Trial:
    source = random.Random(f"{plan.head.seed} trial {number}")
    seed = source.getrandbits(63)
    if every is not None:
        return Trial(seed=seed, faults=_apart(plan, list(every.at(number))))
    faults = []
    for slot, template in enumerate(_chosen(plan, source)):
        stream = random.Random(f"{plan.head.seed} trial {number} fault {slot}")
        faults.append(_draw(plan, template, golden, stream, None))
    return Trial(seed=seed, faults=_apart(plan, faults))


def _chosen(plan: Plan, source: random.Random) -> list[Template]:
    """The templates of one trial."""
    if plan.per_trial is None:
        return list(plan.templates)
    count = _value(plan.per_trial, source)
    return [plan.templates[weighted_index(source, plan.weights)] for _ in range(count)]


def _value(choice: Choice, source: random.Random) -> Any:
    """A value that needs no golden run."""
    match choice:
        case Fixed(value):
            return value
        case Between() | Drawn():
            return draw_number(source, choice)
        case OneOf(choices, weights):
            return _value(choices[weighted_index(source, weights)], source)
    raise AssertionError("a wildcard needs a golden run")


def _draw(
    plan: Plan, template: Template, golden: Golden, stream: random.Random, fault: dict[str, Any] | None
) -> Any:
    """The struct of a template: a fault, or a part of ``fault``."""
    values: dict[str, Any] = {}
    scene = Scene(golden, plan.quiet, stream, values if fault is None else fault, values)
    rank = {name: index for index, name in enumerate(FIRST)}
    for name in sorted(template.fields, key=lambda name: rank.get(name, len(FIRST))):
        try:
            values[name] = _pick(plan, template.kind, name, template.fields[name], scene)
        except FaultError as error:
            if error.path:
                raise
            raise plan.document.at(error, (*template.path, name)) from None
    return build(plan.document, template, values)


def _pick(plan: Plan, kind: type[msgspec.Struct], name: str, choice: Any, scene: Scene) -> Any:
    """The value of one field."""
    match choice:
        case Template():
            return _draw(plan, choice, scene.golden, scene.source, dict(scene.fault))
        case OneOf(choices, weights):
            return _pick(plan, kind, name, choices[weighted_index(scene.source, weights)], scene)
        case Between(low, high):
            return draw_number(scene.source, Between(*outside_quiet(kind, name, scene, low, high)))
        case Drawn():
            low, high = outside_quiet(kind, name, scene, choice.low, choice.high)
            return min(max(draw_number(scene.source, choice), low), high)
        case Fixed(value):
            return value
    found = options(kind, name, scene)
    return found.at(scene.source.randrange(found.count))


def _apart(plan: Plan, faults: list[Fault]) -> tuple[Fault, ...]:
    """Faults at a time moved to later, until none is nearer to the one before than ``quiet.between_ns``."""
    least = plan.quiet.between_ns
    timed = [index for index, fault in enumerate(faults) if isinstance(fault.when, AtTime)]
    if least and len(timed) > 1:
        earliest = 0
        for index in sorted(timed, key=lambda index: _ns(faults[index])):
            ns = max(_ns(faults[index]), earliest)
            if ns > NS_MAX:
                raise plan.error(("quiet", "between_ns"), str(least), f"room for {len(timed)} faults")
            faults[index] = msgspec.structs.replace(faults[index], when=AtTime(ns=ns))
            earliest = ns + least
    return tuple(faults)


def _ns(fault: Fault) -> int:
    assert isinstance(fault.when, AtTime)
    return fault.when.ns
