"""What a campaign takes from a plan file (:mod:`colo.faults.plan`) besides the faults.

::

    guest = "redis"

    [workload]
    span_ns = 500_000_000                                  # how long the golden run is observed
    input = [
        { at_ns = 1_000_000, text = "redis-cli -r 100 incr x | tail -1\\n" },    # typed on the console
        { at_ns = 2_000_000, port = "net0", hex = "ffffffffffff..." },           # a frame
    ]

    [limits]
    virtual_ns = 1_500_000_000                             # a trial that is not done by then hangs

    [observe]
    ports = ["com1"]                                       # whose output has to be the golden run's
    ignore = ["^\\\\d+ packets"]                              # but for lines that match
    detected = ["MY-CHECK FAILED"]                         # texts that say so, besides the usual ones

Times are virtual, from the start state: the guest's booted snapshot.

With a ``[world]`` instead of a ``[workload]`` the guest has a world around it, with clients, a network and a
second machine; with ``policy = ["none", "lockstep"]`` there, every trial is run with and without protection
(:mod:`colo.campaign.world` has the keys and the rules)::

    [world]
    policy = ["none", "lockstep", "colo"]
    operations = 40
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from colo.campaign.kinds import Run
from colo.campaign.scenario import CRASH_TEXTS, DETECTED_TEXTS, MARKS_MAX, SPAN_MAX_NS, Input, Scenario
from colo.campaign.scenery import Scenery
from colo.errors import ColoError
from colo.faults import expand, plan
from colo.faults.fields import Text, Whole
from colo.faults.model import ArbiterFault, AtStep, LinkFault, NodeFault, Trial
from colo.faults.plan import Plan
from colo.faults.templates import Template
from colo.faults.text import from_toml
from colo.faults.triggers import Ns, Part
from vmm.ram import RAM_MIB_MAX

SPAN_DEFAULT_NS = 1_000_000_000
CONSOLE_PORT = "com1"
WORLD_ADVICE = "give the plan a [world]"

Port = Annotated[str, Text(r"[a-z][a-z0-9-]*", 32, "a port of the machine's door: com1, net0, nmi ...")]


class Typed(Part, frozen=True, kw_only=True):
    """An input: ``text``, or bytes in base 16."""

    at_ns: Ns
    port: Port = CONSOLE_PORT
    text: str = ""
    hex: str = ""


class Workload(Part, frozen=True, kw_only=True):
    """``[workload]``"""

    span_ns: Annotated[int, Whole(1, SPAN_MAX_NS, "virtual nanoseconds")] = SPAN_DEFAULT_NS
    ram_mib: Annotated[int, Whole(0, RAM_MIB_MAX, "MiB, 0 for the guest's own")] = 0
    append: str = ""
    """Words for the kernel's command line."""
    input: tuple[Typed, ...] = ()


class Observe(Part, frozen=True, kw_only=True):
    """``[observe]``"""

    ports: tuple[str, ...] = (CONSOLE_PORT,)
    marks: Annotated[int, Whole(1, MARKS_MAX, "state hashes of the golden run")] = 32
    ignore: tuple[str, ...] = ()
    detected: tuple[str, ...] = ()
    crash: tuple[str, ...] = ()


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, as a campaign sees it."""

    plan: Plan
    text: str
    """What its file says."""
    scenario: Scenario | Scenery

    @property
    def name(self) -> str:
        return self.plan.head.name or self.plan.head.guest

    @property
    def seed(self) -> int:
        return self.plan.head.seed

    def trials(self, run: Run) -> list[Trial]:
        """All of them, by number."""
        return list(expand.trials(self.plan, run.facts()))


def load(path: Path) -> Planned:
    """The plan in a file; errors point to its lines."""
    found = plan.load(path)
    return planned(found, path.read_text(encoding="utf-8"))


def planned(found: Plan, text: str) -> Planned:
    """A plan with the text that it is known by."""
    if not found.head.guest:
        raise found.error(("guest",), "no guest", "the name of a guest (colo guest list)")
    world = "world" in found.document.data
    return Planned(plan=found, text=text, scenario=_scenery(found) if world else _scenario(found))


def _scenery(found: Plan) -> Scenery:
    """``[world]``"""
    for name in ("workload", "observe"):
        if name in found.document.data:
            raise found.error(
                (name,), f"[{name}]", "none in a world", "its clients say what is asked and compared"
            )
    scenery = found.section("world", Scenery)
    if found.limits.virtual_ns:
        scenery = msgspec.structs.replace(scenery, limit_ns=found.limits.virtual_ns)
    scenery = msgspec.structs.replace(scenery, guest=found.head.guest)
    if not scenery.asks:
        raise found.error(
            ("world",), f"no client, for {scenery.guest}", "client: udp-echo, redis-counter ..."
        )
    return scenery


def _require_machines_faults(found: Plan) -> None:
    """A machine alone has no links, no nodes and no protocol."""
    for number, template in enumerate(found.templates):
        kind = str(template.kind.__struct_config__.tag)
        if template.kind in (LinkFault, NodeFault, ArbiterFault):
            raise found.error(("fault", number, "kind"), repr(kind), "a fault of one machine", WORLD_ADVICE)
        when = template.fields["when"]
        if isinstance(when, Template) and when.kind is AtStep:
            path = ("fault", number, "when")
            raise found.error(path, "a step of the protocol", "a trigger of one machine", WORLD_ADVICE)


def _scenario(found: Plan) -> Scenario:
    _require_machines_faults(found)
    workload = found.section("workload", Workload)
    observe = found.section("observe", Observe)
    last_ns = found.limits.virtual_ns or 2 * workload.span_ns
    if last_ns < workload.span_ns:
        expected = f"at least workload.span_ns, {workload.span_ns}"
        raise found.error(("limits", "virtual_ns"), str(last_ns), expected)
    return Scenario(
        guest=found.head.guest,
        ram_mib=workload.ram_mib or None,
        append=workload.append or None,
        inputs=tuple(_inputs(found, workload.input)),
        span_ns=workload.span_ns,
        limit_ns=last_ns - workload.span_ns,
        marks=observe.marks,
        observe=observe.ports,
        ignore=tuple(_pattern(found, number, each) for number, each in enumerate(observe.ignore)),
        detected=(*DETECTED_TEXTS, *observe.detected),
        crash=(*CRASH_TEXTS, *observe.crash),
    )


def _inputs(found: Plan, typed: Sequence[Typed]) -> list[Input]:
    inputs = []
    for number, each in enumerate(typed):
        path = ("workload", "input", number)
        if bool(each.text) == bool(each.hex):
            raise found.error(path, "both" if each.text else "neither", "one of text and hex")
        try:
            data = each.text.encode() if each.text else bytes.fromhex(each.hex)
        except ValueError as exc:
            raise found.error((*path, "hex"), str(exc), "bytes in base 16") from None
        inputs.append(Input(at_ns=each.at_ns, port=each.port, data=data))
    return sorted(inputs, key=lambda each: each.at_ns)


def _pattern(found: Plan, number: int, text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise found.error(("observe", "ignore", number), str(exc), "a regular expression") from None
    return text


def trial(path: Path) -> Trial:
    """A trial in a TOML file, as :func:`colo.faults.text.to_toml` writes one."""
    try:
        return from_toml(path.read_text(encoding="utf-8"), str(path))
    except OSError as exc:
        raise ColoError(f"trial {path}: {exc.strerror}") from None
