"""One world of a campaign on its way: made, set up, given a trial's faults, run to its end, judged.

Everything up to the moment at which faults are armed is of the plan's seed, so a server does it once, and
forks a child for each trial there (:mod:`colo.campaign.world`).  Everything after it is of the trial's seed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from colo.campaign.double import is_double
from colo.campaign.injection import Happened
from colo.campaign.noticed import Noticed
from colo.campaign.outcome import Verdict
from colo.campaign.scenario import CRASH_TEXTS, DETECTED_TEXTS
from colo.campaign.scenery import UNPROTECTED, Scenery
from colo.campaign.trial import Report
from colo.checkers.history import History
from colo.checkers.linearizability import linearizable
from colo.checkers.models import Counter as CounterModel
from colo.checkers.verdict import Outcome as Judged
from colo.failover import Ending
from colo.faults.model import Outcome, Trial
from colo.sim import faults
from colo.sim.clients import http_get, redis_counter, udp_echo
from colo.sim.events import Line, short
from colo.sim.loop import WorldError
from colo.sim.world import World

if TYPE_CHECKING:
    from colo.sim.clients import Actor
    from colo.sim.host import Host
    from colo.sim.node import SimNode
    from colo.sim.pair import SimPair

SETUP_S = 60.0
"""Virtual time until a pair is protected and its clients were answered: a large guest takes seconds."""
WHY_MAX = 300
NOBODY_SERVES = "nobody serves"
DOUBLE_FAILURE = f"{NOBODY_SERVES}, after a double failure"
FAULT_LINES = ("fault", "fault-missed")
"""What the world's log calls an injection."""
SAID = ((Outcome.CRASH, CRASH_TEXTS), (Outcome.DETECTED, DETECTED_TEXTS))


class Scene:
    """A world under one policy.  Use it in a ``with`` statement."""

    def __init__(self, scenario: Scenery, seed: int) -> None:
        """``seed`` is the plan's."""
        (policy,) = scenario.policies
        self._scenario = scenario
        self.world = World(seed)
        self.history = History()
        self.heard: list[list[int]] = []
        """Numbers of echoes, of each client."""
        self.pages: list[tuple[int, str]] = []
        """Status, and digest of the body."""
        self.steps: dict[str, Counter[str]] = {}
        self.happened: list[Happened] = []
        self.noticed = Noticed()
        self.armed_ns = 0
        self.world.log.sinks += [self._note, self.noticed.hear]
        self.pair: SimPair | None = None
        if policy == UNPROTECTED:
            self.first: SimNode = self.world.machine(scenario.guest)
        else:
            self.pair = self._new_pair(policy)
            self.first = self.pair.primary
        self.clients: list[Host] = [self.world.client(self._actor()) for _ in range(scenario.clients)]

    def _new_pair(self, policy: str) -> SimPair:
        wanted = self._scenario
        again_s = wanted.again_ns / 1e9 if wanted.again_ns else None
        return self.world.pair(wanted.guest, policy, unix=not wanted.two_hosts, again_after_s=again_s)

    def _actor(self) -> Actor:
        operations, pause_s = self._scenario.operations, self._scenario.pause_ns / 1e9
        match self._scenario.asks:
            case "redis-counter":
                return redis_counter(self.history, operations=operations, pause_s=pause_s)
            case "http-get":
                return http_get(
                    self._hear_page, path=self._scenario.path, requests=operations, pause_s=pause_s
                )
        self.heard.append([])
        return udp_echo(self.heard[-1].append, operations=operations, pause_s=pause_s)

    def _hear_page(self, status: int, body: bytes) -> None:
        self.pages.append((status, f"{len(body)} bytes {short(body)}"))

    def _note(self, line: Line) -> None:
        if line.what in FAULT_LINES:
            missed = line.detail if line.what == "fault-missed" else ""
            self.happened.append(
                Happened(line.at_ns - self.armed_ns, 0, f"{line.who}: {line.detail}", missed)
            )

    def _step(self, node: SimNode, event: str) -> None:
        self.steps.setdefault(node.name, Counter())[event] += 1

    # Running

    def set_up(self) -> None:
        """To when faults are armed."""
        if self._scenario.begin == "protected":
            self.world.run_until(self._is_ready, SETUP_S)
        self.armed_ns = self.world.now_ns

    def _is_ready(self) -> bool:
        protected = self.pair is None or self.pair.is_protected
        return protected and (len(self.history.events) > 1 or any(self.heard) or bool(self.pages))

    def begin(self, trial: Trial) -> None:
        """From here on the world is the trial's."""
        self.world.reseed(trial.seed)
        self.noticed.begin()
        self.world.on_step.append(self._step)
        faults.arm_trial(self.world, trial)

    def run(self) -> None:
        """Until every client has its answers; WorldError at the limit."""
        self.world.run_until(self.is_done, self._scenario.limit_ns / 1e9)

    def perform(self, trial: Trial, known: tuple[str, ...]) -> Report:
        """The trial, in a world that was set up; ``known`` is what its golden run noticed."""
        self.begin(trial)
        verdict = self._ran(known)
        if verdict.why == NOBODY_SERVES and is_double(trial, self.happened):
            verdict = msgspec.structs.replace(verdict, why=DOUBLE_FAILURE)
        return Report(
            outcome=verdict.outcome,
            why=verdict.why,
            difference=verdict.difference,
            happened=tuple(self.happened),
            ended_ns=self.elapsed_ns,
            digest=self.world.digest,
        )

    def _ran(self, known: tuple[str, ...]) -> Verdict:
        try:
            self.run()
        except WorldError as exc:
            if exc.__cause__ is not None:
                cause = exc.__cause__
                return Verdict(Outcome.CRASH, f"{type(cause).__name__}: {cause}"[:WHY_MAX])
        return self.verdict(known)

    def is_done(self) -> bool:
        return all(each.actor.done() for each in self.clients)

    @property
    def elapsed_ns(self) -> int:
        return self.world.now_ns - self.armed_ns

    # Judging: the rules are those of colo/campaign/world.py, in their order

    def verdict(self, known: tuple[str, ...] = ()) -> Verdict:
        """Of a world that ran without an exception of ours."""
        wrong, noticed = self._wrong()[:WHY_MAX], self.noticed.beside(known)[:WHY_MAX]
        if self.is_done() and not wrong:
            return self._served(noticed)
        said = self._said()
        if said is not None:
            return Verdict(*said, wrong)
        lost = self._lost()
        if noticed and not lost:
            then = "a wrong answer" if wrong else "a client still waits"
            return Verdict(Outcome.DETECTED, f"the pair: {noticed}; {then}", wrong)
        if wrong:
            return Verdict(Outcome.SDC, "a wrong answer", wrong)
        return Verdict(Outcome.CRASH, lost) if lost else Verdict(Outcome.HANG, "a client still waits")

    def _served(self, noticed: str) -> Verdict:
        """Every answer came and was right."""
        survivor = self._survivor()
        if survivor:
            return Verdict(Outcome.FAILED_OVER, survivor)
        if noticed:
            return Verdict(Outcome.DETECTED, f"the pair: {noticed}")
        whole = "every answer" if self.pair is None else "every answer, and the pair is whole"
        return Verdict(Outcome.MASKED, whole)

    def _said(self) -> tuple[Outcome, str] | None:
        """By a guest, on its console."""
        for outcome, words in SAID:
            for node in self.world.nodes.values():
                word = next((word for word in words if word in node.console), None)
                if word is not None:
                    return outcome, f"the console of {node.name} says {word.strip()!r}"
        return None

    def _lost(self) -> str:
        """The service is; empty: it is not."""
        serving = [node for node in self.world.nodes.values() if node.serves]
        if not serving:
            return NOBODY_SERVES
        ended = next((node.ended for node in serving if node.ended is not None), None)
        return f"the guest ended: {ended.value}" if ended is not None else ""

    def _survivor(self) -> str:
        serving = next((node for node in self.world.nodes.values() if node.serves), None)
        if serving is None or self.pair is None:
            return ""
        if serving is not self.first:
            return f"{serving.name} serves"
        return f"{serving.name} went on alone" if serving.ending is Ending.ALONE else ""

    def _wrong(self) -> str:
        for number, heard in enumerate(self.heard):
            if heard != list(range(1, len(heard) + 1)):
                return f"client {number} heard {heard[-5:]}"
        for status, body in self.pages:
            if (status, body) != self.pages[0] or status != 200:
                return f"a page with status {status}, {body}; the first was {self.pages[0]}"
        if self.history.events:
            found = linearizable(self.history, CounterModel())
            if found.outcome is not Judged.RIGHT:
                return str(found)
        return ""

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.world.close()
