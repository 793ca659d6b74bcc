"""Hypothesis strategies for faults, trials, schedules and plans, which shrink to the smallest set of faults.

They are derived from the declarations of the model, so a new kind or field is in them at once.  With the
facts of a golden run, triggers lie within it and targets exist::

    @given(trials(faults(golden, kinds=["node", "link"])))
    def test_serves_again(trial: Trial) -> None: ...

Hypothesis is needed here and nowhere else in the package (the extra ``test``).  Values that are right one
by one and wrong together (a field that an effect has not) are mended without drawing again, because what is
drawn again does not shrink.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from hypothesis import reject
from hypothesis import strategies as st

from colo.faults import model
from colo.faults.bases import Bits, Effect, Lasting
from colo.faults.delay import Delay
from colo.faults.errors import FaultError
from colo.faults.fields import Real, Text, Whole, alternatives, hints, infos, limit, plain, words
from colo.faults.golden import Golden, Guest, Span
from colo.faults.model import FAULTS_MAX, KINDS, REGISTERS, Fault, Trial
from colo.faults.plan import Plan
from colo.faults.plan import plan as make_plan
from colo.faults.triggers import Intermittent, Quiet

TEXT_MAX = 20
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\0\x7f\u20ac\U0001f600"
"""Of texts: those that have a meaning somewhere, and some that are long in UTF-8."""

Known = dict[tuple[type[msgspec.Struct], str], st.SearchStrategy[Any]]
"""By kind and field, values that are better than any."""
Values = dict[str, Any]


def faults(golden: Golden | None = None, kinds: Iterable[str] = tuple(KINDS)) -> st.SearchStrategy[Fault]:
    """Any fault of these kinds; with a golden run, one that can happen in it."""
    known = _known(golden) if golden is not None else {}
    return st.one_of([_struct(KINDS[kind], known) for kind in kinds])


def trials(some: st.SearchStrategy[Fault] | None = None, faults_max: int = 4) -> st.SearchStrategy[Trial]:
    """Trials of few faults; the seed shrinks to 0, the faults to none."""
    several = st.lists(some if some is not None else faults(), max_size=min(faults_max, FAULTS_MAX))
    return st.builds(
        lambda seed, made: Trial(seed=seed, faults=tuple(made)), st.integers(0, 1 << 32), several
    )


def schedules(
    golden: Golden, kinds: Iterable[str] = tuple(KINDS), quiet: Quiet | None = None, faults_max: int = 4
) -> st.SearchStrategy[Trial]:
    """Trials whose faults are all at times, in order, outside the quiet periods and apart from each other.

    What is drawn is how long after the one before each comes, so a failing schedule also shrinks to the
    smallest waits.  Where the golden run has no room for another fault, there are fewer.
    """
    quiet = quiet if quiet is not None else Quiet()
    last = golden.end_ns - quiet.end_ns
    least = quiet.between_ns
    waits = st.integers(0, max(0, last - quiet.start_ns))

    def made(seed: int, several: list[tuple[int, Fault]]) -> Trial:
        placed: list[Fault] = []
        ns = quiet.start_ns
        for number, (wait, fault) in enumerate(several):
            ns += wait + (least if number else 0)
            if ns <= last:
                placed.append(msgspec.structs.replace(fault, when=model.AtTime(ns=ns)))
        return Trial(seed=seed, faults=tuple(placed))

    several = st.lists(st.tuples(waits, faults(golden, kinds)), max_size=min(faults_max, FAULTS_MAX))
    return st.builds(made, st.integers(0, 1 << 32), several)


def plans(some: st.SearchStrategy[Fault] | None = None, faults_max: int = 4) -> st.SearchStrategy[Plan]:
    """Plans of exact faults, all in each trial or some drawn for each."""
    several = st.lists(
        some if some is not None else faults(), min_size=1, max_size=min(faults_max, FAULTS_MAX)
    )

    def made(seed: int, count: int, few: list[Fault], drawn: int | None) -> Plan:
        parts: dict[str, Any] = {"seed": seed, "count": count, "fault": [plain(fault) for fault in few]}
        return make_plan(**parts, **({} if drawn is None else {"faults_per_trial": drawn}))

    return st.builds(
        made, st.integers(0, 1 << 32), st.integers(1, 1000), several, st.none() | st.integers(0, faults_max)
    )


def _struct(kind: type[msgspec.Struct], known: Known) -> st.SearchStrategy[Any]:
    """A struct of one kind: what it requires, and some of what it allows."""
    fields = {
        name: known[kind, name] if (kind, name) in known else _field(hint, known)
        for name, hint in hints(kind).items()
    }
    required = {info.name for info in infos(kind) if info.required}
    must = {name: fields[name] for name in fields if name in required}
    may = {name: fields[name] for name in fields if name not in required}
    return st.fixed_dictionaries(must, optional=may).map(lambda values: _mended(kind, values))


def _mended(kind: type[msgspec.Struct], values: Values) -> Any:
    """The struct, its values brought into agreement."""
    for rule, mend in MENDS:
        if issubclass(kind, rule):
            mend(kind, values)
    try:
        return kind(**values)
    except FaultError:
        return reject()


def _mend_bits(_: Any, values: Values) -> None:
    """Mask and value within the bits that there are; nothing toggles for good."""
    values["mask"] = values["mask"] & ((1 << 8 * values.get("width", 8)) - 1) or 1
    if values.get("operation") != "overwrite":
        values.pop("value", None)
    elif "value" in values:
        values["value"] &= values["mask"]
    if values.get("operation", "toggle") == "toggle" and values.get("persistence") == "permanent":
        del values["persistence"]


def _mend_effect(kind: type[Effect], values: Values) -> None:
    """Only the parameters that the effect has, and the one that it needs."""
    effect = values["effect"]
    for name in frozenset[str]().union(*kind.uses.values()) - kind.uses[effect]:
        values.pop(name, None)
    needed = kind.needs.get(effect)
    if needed is not None and not values.get(needed):
        values[needed] = Delay(ns=1) if needed == "delay" else 1
    if effect == "slow" and "factor" in kind.uses[effect] and values.get("factor", 1.0) <= 1.0:
        values["factor"] = 2.0


def _mend_lasting(kind: type[Lasting], values: Values) -> None:
    """A duration where there has to be one, and not beside what says it already."""
    lasts = values["effect"] in kind.conditions if issubclass(kind, Effect) else True
    persistence = values.get("persistence")
    if values.get("effect") == "kill" or (values.get("effect") == "restart" and persistence == "permanent"):
        values.pop("persistence", None)
        persistence = None
    if persistence == "permanent":
        values.pop("for_ns", None)
        values.pop("times", None)
    elif lasts:
        values["for_ns"] = values.get("for_ns") or 1
    if isinstance(persistence, Intermittent) and "for_ns" in values:
        values["for_ns"] = min(values["for_ns"], persistence.period_ns)
    if values.get("for_ns"):
        values.pop("times", None)


def _mend_jump(_: Any, values: Values) -> None:
    values["by_ns"] = values["by_ns"] or 1
    if values.get("persistence") == "permanent":
        del values["persistence"]


def _mend_lost(_: Any, values: Values) -> None:
    if values.get("line") is not None:
        values.pop("vector", None)
    elif values.get("vector") is None:
        values["line"] = 0
    if values.get("persistence") == "permanent":
        values.pop("times", None)


def _mend_delay(_: Any, values: Values) -> None:
    if values.get("distribution") not in ("uniform", "normal"):
        values.pop("spread_ns", None)


MENDS: tuple[tuple[type[msgspec.Struct], Callable[[Any, Values], None]], ...] = (
    (Bits, _mend_bits),
    (Effect, _mend_effect),
    (Lasting, _mend_lasting),
    (model.ClockJump, _mend_jump),
    (model.LostInterrupt, _mend_lost),
    (Delay, _mend_delay),
)


def _field(hint: Any, known: Known) -> st.SearchStrategy[Any]:
    """Any value of a field."""
    return st.one_of([_member(member, known) for member in alternatives(hint)])


def _member(hint: Any, known: Known) -> st.SearchStrategy[Any]:
    if words(hint):
        return st.sampled_from(words(hint))
    if hint is type(None):
        return st.none()
    match limit(hint):
        case Whole(low, high):
            return st.integers(low, high)
        case Real(low, high):
            return st.floats(low, high)
        case Text(pattern, length):
            return _text(pattern, length)
    return _struct(hint, known)


@functools.cache
def _text(pattern: str, length: int) -> st.SearchStrategy[str]:
    """Texts of a pattern that tells of a first character and of those after it.

    Hypothesis can read patterns, but takes a second for its first tables of Unicode: too long for a test.
    """
    matches = re.compile(pattern).fullmatch
    first = [char for char in CHARACTERS if matches(char)]
    rest = [char for char in CHARACTERS if matches(first[0] + char)]
    some = st.builds(str.__add__, st.sampled_from(first), st.text(rest, max_size=min(length - 1, TEXT_MAX)))
    return st.just("") | some if matches("") else some


def _known(golden: Golden) -> Known:
    """What the golden run makes possible."""
    found: Known = {(model.AtTime, "ns"): st.integers(0, golden.end_ns)}
    names = sorted(golden.guests)
    for kind in KINDS.values():
        found[(kind, "target")] = _among(names)
    found[(model.LinkFault, "target")] = _among(golden.links)
    found[(model.DiskFault, "target")] = _among(sorted(golden.disks))
    found[(model.ArbiterFault, "target")] = _among(golden.arbiters)
    guests = list(golden.guests.values())
    longest = max((guest.instructions for guest in guests), default=0)
    found[(model.AtInstruction, "count")] = st.integers(0, max(0, longest - 1))
    found[(model.RegisterFault, "register")] = _among(_all(guests, "registers") or REGISTERS)
    for trigger in (model.AtInstruction, model.AtAddress, model.AtText):
        found[(trigger, "node")] = _among(names)
    steps = [
        (node, step, count) for node, done in sorted(golden.steps.items()) for step, count in done.items()
    ]
    made = [st.builds(_at_step, st.just(node), st.just(step), st.integers(1, n)) for node, step, n in steps]
    triggers = [_struct(model.AtTime, found)]
    triggers += [_struct(model.AtInstruction, found)] if longest else []
    triggers += made
    executed = [address for address, _ in _all(guests, "executed")]
    if executed:
        found[(model.AtAddress, "address")] = st.sampled_from(executed)
        found[(model.AtAddress, "hits")] = st.integers(1, max(n for _, n in _all(guests, "executed")))
        found[(model.InstructionFault, "address")] = st.none() | st.sampled_from(executed)
        triggers.append(_struct(model.AtAddress, found))
    touched: list[Span] = list(_all(guests, "virtual"))
    if touched:
        found[(model.DataFault, "address")] = st.one_of([st.integers(a, max(a, b - 8)) for a, b in touched])
        found[(model.DataFault, "space")] = st.just("virtual")
    for kind in KINDS.values():
        found[(kind, "when")] = st.one_of(triggers)
    return found


def _at_step(node: str, step: str, count: int) -> model.AtStep:
    return model.AtStep(step=step, count=count, node=node)


def _all(guests: list[Guest], name: str) -> list[Any]:
    """What any of the machines has, each once, in order."""
    return list(dict.fromkeys(entry for guest in guests for entry in getattr(guest, name)))


def _among(names: Iterable[Any]) -> st.SearchStrategy[Any]:
    options = list(names)
    return st.sampled_from(options) if options else st.just("")
