"""``kill -9`` of a node while clients count: how long they hear nothing, and whether anything is lost.

One pair for each case; a new secondary protects the survivor between two kills, so that the two take
turns.  Kills fall on every phase of a checkpoint.  The silence of a connection is the longest gap
between two of its replies, of those gaps that end after the kill and begin within a second of it; the
checkpoints' own rhythm is in it (see the line `between replies`).  Where it goes is read from the
survivor's trace.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from tools.benchmarks import qemu_colo
from tools.benchmarks.emulator import Lost
from tools.benchmarks.protected import WITHIN_S, Protected, free_port, spread, until
from tools.benchmarks.redis_client import Clients, Incrementing, value_of
from tools.benchmarks.run import Run

ROUNDS = 10
CONNECTIONS = (1, 8)
HEARTBEAT_MS, SILENCE_MS = 20, 100
AROUND_S = 1.0
"""A gap that begins later has another cause: protection is being restored."""
STEADY_S = (0.4, 0.8)
"""Between protection and the next kill."""
ANSWER_WITHIN_S = 10.0
"""A connection without a reply for so long is stuck."""
GOALS_MS = {"primary": 60.0, "secondary": None}
"""For the median silence; a secondary's death should cost no more than the replies of one epoch."""
GOAL_BEYOND_MS = {"primary": None, "secondary": 20.0}
"""For what the silence is above the usual time between replies: one period of checkpoints."""
PEERS_MS = {"primary": qemu_colo.SILENCE_PRIMARY_MS, "secondary": qemu_colo.SILENCE_SECONDARY_MS}
STEPS = {
    "failover require": "noticed",
    "failover active": "protocol left",
    "took-over": "guest made ready",
    "failover completed": "guest runs alone",
}
"""Lines of a survivor's trace, in their order; between the second and the next it asks the arbiter."""
FIRST_REPLY = "first reply after that"
METHOD = (
    "Redis, closed-loop INCR through a published port; "
    f"heartbeat {HEARTBEAT_MS} ms, silence {SILENCE_MS} ms, other settings as `colo up` takes them; a round "
    "is one kill -9 of the primary and one of the secondary for each number of connections; every reply must "
    "be the one before and one more"
)


def measure(run: Run) -> None:
    for connections in CONNECTIONS[-1:] if run.quick else CONNECTIONS:
        case = Case(run, connections)
        with run.apart(f"{connections} connections"):
            case.measure(run)


class Side:
    """What is seen when nodes of one role are killed."""

    def __init__(self, run: Run, name: str, role: str) -> None:
        self.role = role
        whole = f"{name}, {role} killed: silence"
        self.silence = run.figure(whole, "ms", peer=PEERS_MS[role], limit=GOALS_MS[role])
        self.beyond = run.figure("  beyond the usual", "ms", limit=GOAL_BEYOND_MS[role])
        self.steps = {step: run.figure(f"  to: {step}", "ms") for step in (*STEPS.values(), FIRST_REPLY)}
        self.restored = run.figure("  to: protected again", "s")
        self.later = run.figure("  longest silence meanwhile", "ms")


class Case:
    """So many connections to one pair that is hit again and again."""

    def __init__(self, run: Run, connections: int) -> None:
        self.dialogues = [Incrementing(b"count:%d" % each) for each in range(connections)]
        name = "1 connection" if connections == 1 else f"{connections} connections"
        self.usual = run.figure(f"{name}, between replies", "ms")
        self.sides = [Side(run, name, role) for role in PEERS_MS]
        self.dead = run.figure(f"{name}: ended or stuck", "", limit=0, of="max")
        self.lost = run.figure("  acknowledged writes lost", "", limit=0, of="max")
        self.changed = run.figure("  replies changed", "", limit=0, of="max")
        self.spurious = run.figure("  failovers without a kill", "", limit=0, of="max")

    def measure(self, run: Run) -> None:
        port = free_port()
        words = ("--heartbeat", str(HEARTBEAT_MS), *(() if run.quick else ("--silence", str(SILENCE_MS))))
        with Protected(run, "redis", *words, publish=(port, 6379)) as pair:
            pair.wait("protected")
            with Clients(port, self.dialogues) as clients:
                for side in self.sides:
                    for number, wait_s in zip(run.rounds(), spread(*STEADY_S, run.count), strict=True):
                        self._round(run, pair, side, number, wait_s)
                clients.stop()
                self.dead.samples.append(float(clients.alive.count(False) + self._stuck(pair.said[-1].at_s)))
            for each in self.dialogues:
                each.compare(value_of(port, each.key))
        self.lost.samples.append(float(sum(each.lost for each in self.dialogues)))
        self.changed.samples.append(float(sum(each.changed for each in self.dialogues)))
        failovers = sum(said.event == "colo-exit" for said in pair.said)
        self.spurious.samples.append(float(failovers - run.count * len(self.sides)))

    def _round(self, run: Run, pair: Protected, side: Side, number: int, wait_s: float) -> None:
        until(lambda: pair.is_protected, WITHIN_S, "protection")
        steady_s = time.monotonic()
        time.sleep(wait_s)
        victim, survivor = pair.primary, pair.secondary
        if side.role == "secondary":
            victim, survivor = survivor, victim
        heard = len(pair.said)
        at_s = pair.kill(victim)
        usual_ms = self._usual(steady_s, at_s)
        protected_s = pair.wait("protected", heard).at_s
        stuck = self._stuck(at_s)
        time.sleep(AROUND_S)
        gaps_ms = [silence(each.replies, at_s, at_s + AROUND_S) for each in self.dialogues]
        side.silence.samples += gaps_ms
        side.beyond.samples += [max(0.0, gap - usual_ms) for gap in gaps_ms]
        side.restored.samples.append(protected_s - at_s)
        later = [silence(each.replies, at_s + AROUND_S, protected_s) for each in self.dialogues]
        side.later.samples.append(max(later))
        run.record(
            role=side.role,
            connections=len(self.dialogues),
            round=number,
            silence_ms=round(max(gaps_ms), 3),
            usual_ms=round(usual_ms, 3),
            protected_s=round(protected_s - at_s, 3),
            stuck=stuck,
            **self._split(pair.trace(survivor), at_s, side),
            silences_ms=" ".join(f"{gap:.3f}" for gap in gaps_ms),
        )

    def _usual(self, begin_s: float, end_s: float) -> float:
        """The median time between replies before a kill."""
        gaps = []
        for each in self.dialogues:
            replies = [reply for reply in each.replies if begin_s < reply < end_s]
            gaps += [(late - early) * 1e3 for early, late in pairwise(replies)]
        self.usual.samples += gaps
        return median(gaps) if gaps else 0.0

    def _stuck(self, at_s: float) -> int:
        """Connections that get no reply any more."""

        def silent() -> int:
            return sum(each.replies[-1:] <= [at_s] for each in self.dialogues)

        try:
            until(lambda: silent() == 0, ANSWER_WITHIN_S, "replies after a kill")
        except Lost:
            return silent()
        return 0

    def _split(self, trace: Sequence[dict[str, Any]], at_s: float, side: Side) -> dict[str, float]:
        """Milliseconds from the kill to each step, and to the first reply behind the last of them."""
        found: dict[str, float] = {}
        for each in trace:
            step = STEPS.get(f"{each['event']} {each.get('status', '')}".strip())
            if step is not None and each["monotonic_s"] >= at_s:
                found.setdefault(step, each["monotonic_s"])
        over_s = found.get(STEPS["took-over"], found.get(STEPS["failover active"], at_s))
        replies = [reply for each in self.dialogues for reply in each.replies if reply > over_s]
        if replies:
            found[FIRST_REPLY] = min(replies)
        for step, when in found.items():
            side.steps[step].samples.append((when - at_s) * 1e3)
        return {f"{step}, ms": round((when - at_s) * 1e3, 3) for step, when in found.items()}


def silence(replies: Sequence[float], begin_s: float, end_s: float) -> float:
    """Milliseconds of the longest gap that ends after ``begin_s`` and begins before ``end_s``."""
    gaps = (late - early for early, late in pairwise(replies) if late > begin_s and early < end_s)
    return max(gaps, default=0.0) * 1e3
