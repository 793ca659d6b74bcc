#!/usr/bin/env python3
"""Run the simulated pair (tests/protocol) under faults: seed after seed, or one seed with its log.

    tools/simulate.py --seconds 600            until the time is over or a rule is broken
    tools/simulate.py --seed 17                one seed: every event, a line each
    tools/simulate.py --seed 17 --plan '52 KILL primary 0'

A failing seed is printed with its log and the command that shows it again; the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.protocol.faults import Fault, parsed, random_plan
from tests.protocol.nodes import Parts
from tests.protocol.simulator import Failure, Simulator

SECONDS = 60
EXHAUSTIVE_EVERY = 200
"""Seeds between two that are run again for every step."""
REPORT_EVERY_S = 10.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--first", type=int, default=1_000_000, help="seed to begin with")
    parser.add_argument("--seed", type=int, action="append", help="this one only, with its log")
    parser.add_argument("--plan", type=parsed, help="faults instead of the seed's own")
    parser.add_argument("--brief", action="store_true", help="the short worlds of the exhaustive tests")
    parser.add_argument("--arbiter", choices=("memory", "file", "manual"), default="memory")
    return parser.parse_args()


def show(simulator: Simulator, arguments: argparse.Namespace) -> int:
    """The seeds that were asked for, each with its log."""
    for seed in arguments.seed:
        plan = random_plan(Random(f"plan {seed}")) if arguments.plan is None else arguments.plan
        try:
            print("\n".join(simulator.run(seed, plan).lines()))
        except Failure as failure:
            print("\n".join(failure.log))
            print(failure.violation)
            return 1
    return 0


def campaign(simulator: Simulator, arguments: argparse.Namespace) -> int:
    """Seed after seed until the time is over."""
    started = reported = time.monotonic()
    for seed in itertools.count(arguments.first):
        now = time.monotonic()
        if now - started > arguments.seconds:
            break
        if now - reported > REPORT_EVERY_S:
            print(f"seed {seed}: {simulator.runs} runs, {simulator.steps} steps, none broken", flush=True)
            reported = now
        try:
            simulator.random(seed)
            if seed % EXHAUSTIVE_EVERY == 0:
                simulator.exhaustive(seed, tuple(Fault))
        except Failure as failure:
            print("\n".join(failure.log))
            print(failure)
            return 1
    print(f"{simulator.runs} runs, {simulator.steps} steps, none broken")
    return 0


def main() -> int:
    arguments = _arguments()
    parts = Parts(operations=2, epochs=2) if arguments.brief else Parts()
    with tempfile.TemporaryDirectory() as directory:
        simulator = Simulator(parts, arguments.arbiter, directory)
        return show(simulator, arguments) if arguments.seed else campaign(simulator, arguments)


if __name__ == "__main__":
    sys.exit(main())
