#!/usr/bin/env python3
"""Run the simulated pair (tests/protocol) under faults: seed after seed, or one seed with its log.

    tools/simulate.py --seconds 600                  until the time is over or a rule is broken
    tools/simulate.py --world lockstep-tcp           of one kind; without it the kinds take turns
    tools/simulate.py --world colo --seed 17         one seed: every event, a line each
    tools/simulate.py --seed 17 --plan '52 KILL primary 0'

A failing seed is printed with its log and the command that shows it again; the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.protocol.faults import Fault, mild_plan, parsed, random_plan
from tests.protocol.nodes import BRIEF
from tests.protocol.simulator import WORLDS, Failure, Simulator

SECONDS = 60
EXHAUSTIVE_EVERY = 200
"""Seeds between two that are run again for every step, with a fault after the other."""
REPORT_EVERY_S = 10.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--first", type=int, default=1_000_000, help="seed to begin with")
    parser.add_argument("--seed", type=int, action="append", help="this one only, with its log")
    parser.add_argument("--plan", type=parsed, help="faults instead of the seed's own")
    parser.add_argument("--brief", action="store_true", help="the short worlds of the exhaustive tests")
    parser.add_argument("--world", choices=WORLDS, help="policy and companion")
    parser.add_argument("--arbiter", choices=("memory", "file", "manual"), default="memory")
    return parser.parse_args()


def made(world: str, arguments: argparse.Namespace, directory: str) -> Simulator:
    """The simulator of worlds of that kind."""
    simulator = Simulator(world, arguments.arbiter, directory)
    if arguments.brief:
        brief = Simulator(dataclasses.replace(WORLDS[world], **BRIEF), arguments.arbiter, directory)
        brief.name = f"--brief {simulator.name}"
        return brief
    return simulator


def is_mild(simulator: Simulator) -> bool:
    return "diverging" in simulator.name


def show(simulator: Simulator, arguments: argparse.Namespace) -> int:
    """The seeds that were asked for, each with its log."""
    for seed in arguments.seed:
        drawn = mild_plan if is_mild(simulator) else random_plan
        plan = drawn(Random(f"plan {seed}")) if arguments.plan is None else arguments.plan
        try:
            print("\n".join(simulator.run(seed, plan).lines()))
        except Failure as failure:
            print("\n".join(failure.log))
            print(failure.violation)
            return 1
    return 0


def campaign(simulators: list[Simulator], arguments: argparse.Namespace) -> int:
    """Seed after seed until the time is over."""
    started = reported = time.monotonic()
    for seed in itertools.count(arguments.first):
        now = time.monotonic()
        if now - started > arguments.seconds:
            break
        if now - reported > REPORT_EVERY_S:
            print(f"seed {seed}: {_sums(simulators)}", flush=True)
            reported = now
        try:
            for simulator in simulators:
                _run(simulator, seed)
        except Failure as failure:
            print("\n".join(failure.log))
            print(failure)
            return 1
    print(_sums(simulators))
    return 0


def _run(simulator: Simulator, seed: int) -> None:
    if is_mild(simulator):
        simulator.mild(seed)
        return
    simulator.random(seed)
    turn, rest = divmod(seed, EXHAUSTIVE_EVERY)
    if rest == 0:
        faults = list(Fault)
        simulator.exhaustive(seed, (faults[turn % len(faults)],))
        simulator.last_words(seed)
        simulator.last_words(seed, Fault.GASP)
        simulator.late(seed)


def _sums(simulators: list[Simulator]) -> str:
    runs, steps = (sum(getattr(each, name) for each in simulators) for name in ("runs", "steps"))
    return f"{runs} runs, {steps} steps, none broken"


def main() -> int:
    arguments = _arguments()
    kinds = list(WORLDS) if arguments.world is None else [arguments.world]
    if arguments.seed and arguments.world is None:
        kinds = ["periodic"]
    with tempfile.TemporaryDirectory() as directory:
        simulators = [made(kind, arguments, directory) for kind in kinds]
        return show(simulators[0], arguments) if arguments.seed else campaign(simulators, arguments)


if __name__ == "__main__":
    sys.exit(main())
