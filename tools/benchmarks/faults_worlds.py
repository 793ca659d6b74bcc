"""How fast a simulated world goes: virtual seconds for each second of the host, with clients at work."""

from __future__ import annotations

import time

from colo.checkers.history import History, Returned
from colo.sim.clients import redis_counter
from colo.sim.world import World
from tools.benchmarks.faults_results import SPEED
from tools.benchmarks.run import Run

POLICIES, QUICK_POLICIES = ("periodic", "lockstep", "colo"), ("colo",)
GUEST, CLIENTS, PAUSE_S = "redis", 2, 0.005
PROTECTED_S = 60.0
"""Virtual seconds until a pair is protected."""
STEP_S = 0.02
WALL_S, QUICK_WALL_S = 5.0, 0.5
WARM_UP_S = 0.2


def measure(run: Run) -> None:
    for policy in ("none", *policies(run)):
        world_speed(run, policy)


def policies(run: Run) -> tuple[str, ...]:
    """Of the pairs."""
    return QUICK_POLICIES if run.quick else POLICIES


def world_speed(run: Run, policy: str) -> None:
    """Steps of virtual time until enough of the host's is over."""
    run.say(f"a world with {GUEST}, policy {policy}")
    history = History()
    with World(seed=1) as world:
        pair = None if policy == "none" else world.pair(GUEST, policy=policy)
        if pair is None:
            world.machine(GUEST)
        for _ in range(CLIENTS):
            world.client(redis_counter(history, pause_s=PAUSE_S))
        world.run_until(lambda: answers(history) and (pair is None or pair.is_protected), PROTECTED_S)
        world.run_for(WARM_UP_S)
        began_ns, answered, began = world.now_ns, answers(history), time.perf_counter()
        while time.perf_counter() - began < (QUICK_WALL_S if run.quick else WALL_S):
            world.run_for(STEP_S)
        wall_s = time.perf_counter() - began
        run.record(
            kind=SPEED,
            what=f"{GUEST}, {CLIENTS} clients",
            how="unprotected" if policy == "none" else f"pair, {policy}",
            virtual_s=(world.now_ns - began_ns) / 1e9,
            wall_s=wall_s,
            answers=answers(history) - answered,
        )


def answers(history: History) -> int:
    return sum(isinstance(event, Returned) for event in history.events)
