"""A plan of a campaign: what to run, which faults, how many trials.  One file, or a mapping in Python::

    name = "bit flips in Redis"
    guest = "redis"
    seed = 1
    count = 1000

    [limits]
    virtual_ns = 5_000_000_000

    [quiet]
    start_ns = 100_000_000

    [[fault]]
    kind = "register"
    when = { at = "instruction", count = "*" }
    register = "*"
    mask = "*"

    [[fault]]
    kind = "node"
    target = "primary"
    when = { at = "step", step = "VmstateReceived", count = "1..20", node = "primary" }
    effect = "kill"

Each trial has every ``[[fault]]`` once.  With ``faults_per_trial`` it has that many instead, each drawn from
the tables by their ``weight``.  In place of a value there may be a range, a list, a wildcard or a
distribution (:mod:`colo.faults.choices`, :mod:`colo.faults.wildcards`).  With ``count = "all"`` every
combination of these is one trial (:mod:`colo.faults.grid`).

What is wrong is said with file, line, key, what was found and what was expected.  ``[world]``,
``[workload]`` and ``[observe]`` belong to whoever runs the plan, who reads them with :meth:`Plan.section`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

import msgspec

from colo.faults.choices import WEIGHT_MAX, Choice, read_choice
from colo.faults.document import Document, parse, read
from colo.faults.errors import PlanError, shown
from colo.faults.fields import Text, Whole, describe, fits
from colo.faults.model import FAULTS_MAX
from colo.faults.templates import Template, read_fault, read_struct
from colo.faults.triggers import Ns, Part, Quiet

S = TypeVar("S", bound=msgspec.Struct)

TRIALS_MAX = 10_000_000
TEMPLATES_MAX = 1000
SECTIONS = ("world", "workload", "observe")
"""Tables that others declare."""
KEYS = ("name", "guest", *SECTIONS, "seed", "count", "faults_per_trial", "limits", "quiet", "fault")

PerTrial = Annotated[int, Whole(0, FAULTS_MAX, "faults")]


class Head(Part, frozen=True, kw_only=True):
    """What a plan says once."""

    name: Annotated[str, Text(r"[^\x00-\x1f\x7f\ud800-\udfff]*", 200, "a name on one line")] = ""
    guest: Annotated[str, Text(r"[A-Za-z0-9_.:/+-]*", 200, "the name of a guest (colo guest list)")] = ""
    seed: Annotated[int, Whole(0, (1 << 63) - 1)] = 0
    count: Annotated[int, Whole(1, TRIALS_MAX, 'trials, or "all"')] = 1


class Limits(Part, frozen=True, kw_only=True):
    """When a trial is called a hang.  0: whoever runs it decides, by the golden run."""

    virtual_ns: Ns = 0


@dataclass(frozen=True)
class Plan:
    """A plan that makes sense, as far as that can be known without a golden run."""

    document: Document
    head: Head
    limits: Limits
    quiet: Quiet
    templates: tuple[Template, ...]
    weights: tuple[int, ...]
    per_trial: Choice | None
    everything: bool = False
    """Every combination of its choices is a trial, instead of ``head.count`` drawn ones."""

    def section(self, name: str, kind: type[S]) -> S:
        """One of :data:`SECTIONS` as a struct whose errors point to lines; absent, all defaults."""
        return read_struct(self.document, (name,), self.document.data.get(name, {}), kind)

    def error(self, path: tuple[str | int, ...], found: str, expected: str, advice: str = "") -> PlanError:
        """An error about a key of this plan, to be raised by whoever runs it."""
        return self.document.error(path, found, expected, advice)


def load(file: FilePath) -> Plan:
    """The plan in a file; raises :class:`PlanError`."""
    return plan_of(read(file))


def loads(text: str, name: str = "plan.toml") -> Plan:
    """The plan in a text; ``name`` says whether it is TOML or YAML."""
    return plan_of(parse(text, name))


def plan(**parts: Any) -> Plan:
    """The plan with these keys; ``fault`` is a list of mappings as in a file, or of faults of the model."""
    return plan_of(Document("plan", dict(parts)))


def plan_of(document: Document) -> Plan:
    """The plan that a document writes."""
    data = document.data
    for key in data:
        if key not in KEYS:
            raise document.unknown((key,), KEYS)
    for name in SECTIONS:
        if not isinstance(data.get(name, {}), Mapping):
            raise document.error((name,), shown(data[name]), f"a table, [{name}]")
    everything = data.get("count") == "all"
    if everything and "faults_per_trial" in data:
        found = "faults that are drawn"
        raise document.error(
            ("faults_per_trial",), found, 'a count that is a number, not "all"', "leave one out"
        )
    said = {name: data[name] for name in Head.__struct_fields__ if name in data}
    if everything:
        del said["count"]
    head = read_struct(document, (), said, Head)
    per_trial = _per_trial(document)
    limits = read_struct(document, ("limits",), data.get("limits", {}), Limits)
    quiet = read_struct(document, ("quiet",), data.get("quiet", {}), Quiet)
    templates, weights = _templates(document, per_trial is not None)
    return Plan(document, head, limits, quiet, templates, weights, per_trial, everything)


def _per_trial(document: Document) -> Choice | None:
    if "faults_per_trial" not in document.data:
        return None
    found = document.data["faults_per_trial"]
    return read_choice(document, ("faults_per_trial",), found, PerTrial, wild=False)


def _templates(document: Document, drawn: bool) -> tuple[tuple[Template, ...], tuple[int, ...]]:
    """The faults and their weights."""
    found = document.data.get("fault", [])
    if not isinstance(found, list | tuple):
        raise document.error(("fault",), shown(found), "a list of tables, [[fault]]")
    most = TEMPLATES_MAX if drawn else FAULTS_MAX
    if len(found) > most or not found:
        advice = "" if drawn or not found else "or faults_per_trial, which draws from them"
        raise document.error(("fault",), f"{len(found)} faults", f"1 to {most}", advice)
    templates, weights = [], []
    for number, table in enumerate(found):
        path = ("fault", number)
        rest, weight = _weight(document, path, table, drawn)
        templates.append(read_fault(document, path, rest))
        weights.append(weight)
    if not any(weights):
        raise document.error(("fault",), "nothing but weight 0", "a fault that can be drawn")
    return tuple(templates), tuple(weights)


def _weight(document: Document, path: tuple[str, int], table: Any, drawn: bool) -> tuple[Any, int]:
    """A fault's table without its weight, and the weight."""
    if not isinstance(table, dict) or "weight" not in table:
        return table, 1
    where, weight = (*path, "weight"), table["weight"]
    if not drawn:
        expected = "no weight in a plan without faults_per_trial"
        raise document.error(where, shown(weight), expected, "every trial has every fault")
    if not fits(weight, hint := Annotated[int, Whole(0, WEIGHT_MAX)]):
        raise document.error(where, shown(weight), describe(hint))
    return {key: value for key, value in table.items() if key != "weight"}, weight
