"""``colo sim``: one world, run to its end or for a time, and the digest of all that happened in it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from colo.campaign.scene import Scene
    from colo.cli import Parser
    from colo.sim.events import Line
    from colo.sim.world import World

EPILOG = """\
PLAN is a campaign's plan with a [world] (colo campaign --help): its world is run once, without its faults, or
with those of one trial.  GUEST is the name of a guest, for a pair of it and one client that asks for as long
as --seconds says.

The last line has the digest of everything that happened.  The same seed and the same build give the same one,
on any host and under any load; --check-determinism runs twice and names the first difference.

examples:
  colo sim redis --policy colo --seconds 2 --kill 0.5
  colo sim pair.toml --trial 17 --log events.txt
  colo sim udpecho --policy lockstep --check-determinism

exit status: 0 it ran (and both runs were one), 1 it failed, or they differ; 2 usage or an error in the plan
"""
POLICIES = ("periodic", "lockstep", "colo", "none")


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "sim",
        help="a simulated world: a pair, its network and its clients, in virtual time",
        description="Run machines, the real COLO code and clients under one virtual clock and one seed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", metavar="PLAN|GUEST")
    add("--trial", metavar="N", type=int, help="with the faults of this trial of the plan")
    add("--policy", choices=POLICIES, help="of the pair (colo), or the plan's first; none: a machine alone")
    add("--seed", type=int, default=0, help="default 0; a plan has its own")
    add("--seconds", type=float, default=1.0, help="virtual, since the pair was protected; default 1")
    add("--kill", metavar="SECONDS", type=float, help="kill the primary then")
    add("--log", metavar="FILE", type=Path, help="every event, a line each")
    add("--check-determinism", action="store_true", help="run twice and compare every event")
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")


def main(options: argparse.Namespace) -> int:
    from colo.sim.events import check_runs

    run = _plan(options) if Path(options.what).is_file() else _guest(options)
    began_s = time.monotonic()
    if options.log is not None:
        with options.log.open("w", encoding="utf-8") as file:
            found = run(lambda line: print(line, file=file))
    else:
        found = run(lambda line: None)
    took_s = time.monotonic() - began_s
    if options.check_determinism:
        check_runs(lambda sink: str(run(sink)["digest"]))
    _show(options, found, took_s)
    return 0


def _show(options: argparse.Namespace, found: dict[str, Any], took_s: float) -> None:
    if options.json:
        import json

        print(json.dumps({**found, "checked": options.check_determinism, "wall_s": round(took_s, 3)}))
        return
    virtual_s = found["virtual_ns"] / 1e9
    checked = ", and again the same" if options.check_determinism else ""
    print(f"{virtual_s:.6f} virtual seconds in {took_s:.1f} s, {found['events']} events{checked}")
    if "outcome" in found:
        print(f"{found['outcome']}: {found['why']}")
    print(f"seed {found['seed']} digest {found['digest']}")
    sys.stdout.flush()


def _facts(world: World) -> dict[str, Any]:
    return {
        "seed": world.seed,
        "virtual_ns": world.now_ns,
        "events": world.log.count,
        "digest": world.digest,
    }


def _guest(options: argparse.Namespace) -> Callable[[Callable[[Line], None]], dict[str, Any]]:
    """A pair and its client."""

    def run(sink: Callable[[Line], None]) -> dict[str, Any]:
        from colo.checkers.history import History
        from colo.sim.clients import for_guest
        from colo.sim.world import World

        with World(options.seed) as world:
            world.log.sinks.append(sink)
            client = for_guest(options.what, History())
            if client is not None:
                world.client(client)
            policy = options.policy or "colo"
            if policy == "none":
                world.machine(options.what)
            else:
                pair = world.pair(options.what, policy)
                world.run_until(lambda: pair.is_protected, 60)
                if options.kill is not None:
                    world.after(options.kill, lambda: world.kill(pair.primary))
            world.run_for(options.seconds)
            return _facts(world)

    return run


def _plan(options: argparse.Namespace) -> Callable[[Callable[[Line], None]], dict[str, Any]]:
    """A plan's world, with the faults of one trial or with none."""
    from colo.campaign.planned import load
    from colo.campaign.scenery import Scenery
    from colo.campaign.world import perform, record
    from colo.faults import expand
    from colo.faults.model import Trial

    planned = load(Path(options.what))
    scenery = planned.scenario
    if not isinstance(scenery, Scenery):
        raise planned.plan.error((), "no [world]", "a plan of a world", "colo campaign runs the others")
    policy = options.policy or scenery.policies[0]
    if policy not in scenery.policies:
        raise planned.plan.error(("world", "policy"), f"--policy {policy}", ", ".join(scenery.policies))
    golden = record(scenery if options.trial is not None else scenery.under(policy), planned.seed)
    trial = Trial(seed=planned.seed)
    if options.trial is not None:
        trial = expand.trial(planned.plan, golden.facts(), options.trial)

    def run(sink: Callable[[Line], None]) -> dict[str, Any]:
        facts: dict[str, Any] = {}

        def watch(scene: Scene) -> None:
            scene.world.log.sinks.append(sink)
            facts["world"] = scene.world

        report = perform(golden, policy, trial, watch)
        assert report.outcome is not None
        return {**_facts(facts["world"]), "outcome": report.outcome.value, "why": report.why}

    return run
