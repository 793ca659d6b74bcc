"""``colo compare-policies``: the same loads under one policy after the other, and what each costs."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from colo.experiment.schedule import INTERVALS_MS, TIMED
from colo.experiment.workloads import WORKLOADS, guests
from colo.policy import POLICIES

if TYPE_CHECKING:
    from colo.cli import Parser
    from colo.experiment.comparing import Comparison, Options

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
ABOUT = {
    "unprotected": "one node, nobody follows it: what the guest does by itself, and the 100 % of the shares",
    "periodic": "a checkpoint every --intervals; what the guest says waits for the next one (Remus)",
    "colo": "both guests run; what both say goes at once, a difference makes a checkpoint (COLO)",
    "lockstep": "the other guest repeats a log of all inputs; what the log covers goes at once",
}


def _about(policy: str) -> str:
    """What a policy is; one that is newer than this text says it itself."""
    return ABOUT.get(policy) or (inspect.getdoc(POLICIES[policy]) or "").partition("\n")[0]


def _listing(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:<12} {about}" for name, about in pairs)


def _epilog() -> str:
    policies = [(name, _about(name)) for name in ("unprotected", *POLICIES)]
    loads = "\n".join(
        f" guest {guest}\n" + _listing([(each.name, each.about) for each in WORKLOADS if each.guest == guest])
        for guest in guests()
    )
    return f"""\
policies:
{_listing(policies)}

workloads:
{loads}

how it is measured: every policy gets a fresh guest from the same snapshot in every round, and the same loads;
the order of policies is balanced, so that a host which warms up or gets busy favours none.  Clients run in
the pair's network namespace, one bridge away from the guest, the unprotected guest's too.  Every answer is
compared with what it must be.  One request is in flight on each connection, and the next one is sent when
its answer is there: late answers mean fewer requests.

columns: share is of the unprotected guest's rate in the same round (in brackets: lowest and highest round);
pause is how long the guest stood still for a checkpoint; state is what checkpoints sent, link everything
that went to the secondary; held is how long the oldest output of a checkpoint had waited, waited what output
waited for a comparison on the mean.  Faults are answers that were wrong, lost or repeated, connections that
ended or are stuck.

examples:
  colo compare-policies kv                                 every workload under every policy: some minutes
  colo compare-policies kv --workload echo time --connections 1 8 --rounds 5
  colo compare-policies kv --workload inc --kills 50 --connections 1 4 16 --csv kv.csv
  colo compare-policies redis --policies periodic --intervals 10 50 200 --plot redis.svg

--plot and --parquet need: pip install 'colo-vmm[experiment]'

exit status: 0 every answer was right; 1 an answer was not, a connection was lost, or a load failed;
2 usage; 130 interrupted (what was measured until then is printed and saved).
"""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "compare-policies",
        help="measure a guest unprotected and under each policy",
        description="Run the same loads on a guest under one policy after the other, and compare.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("guest", metavar="GUEST", help=f"one with workloads: {', '.join(guests())}")
    _add_what(parser.add_argument_group("what is compared"))
    _add_how(parser.add_argument_group("how it is measured"))
    _add_output(parser.add_argument_group("what comes of it (the table is always printed, or --json)"))


def _add_what(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--workload", metavar="NAME", nargs="+", default=[], help="default: all of the guest, see below")
    add("--policies", metavar="NAME", nargs="+", default=[], help=f"default: {' '.join(POLICIES)}")
    default = " ".join(map(str, INTERVALS_MS))
    add(
        "--intervals",
        metavar="MS",
        nargs="+",
        type=positive,
        default=list(INTERVALS_MS),
        help=f"between checkpoints of {TIMED}; default {default}",
    )
    add(
        "--connections",
        metavar="N",
        nargs="+",
        type=positive,
        default=[],
        help="each load with so many; default: the workload's own (1; redis-benchmark 50; wrk 8)",
    )
    add(
        "--kills", metavar="N", type=natural, default=0, help="then kill -9 a node so often under each policy"
    )
    add("--victim", choices=("primary", "secondary"), default="primary", help="which one; default primary")


def _add_how(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--seconds", metavar="S", type=duration, default=3.0, help="of each load; default 3")
    add(
        "--warm-up", metavar="S", type=duration, default=0.5, help="of it before anything counts; default 0.5"
    )
    add("--rounds", metavar="N", type=positive, default=3, help="default 3; as many as policies balance best")
    add("--seed", metavar="N", type=natural, default=0, help="of the order and of the moments of kills")
    add("--silence", metavar="MS", type=positive, help="after which a node is lost; more on a busy host")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--json", action="store_true", help="everything, as one JSON object, in place of the table")
    add("--csv", metavar="FILE", type=Path, help="a line for each load in each round")
    add("--parquet", metavar="FILE", type=Path, help="the same")
    add("--plot", metavar="FILE", type=Path, help=".png, .svg or .pdf: shares, latencies, silences")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return value


def options(given: argparse.Namespace) -> Options:
    from colo.experiment.comparing import Options

    return Options(
        guest=given.guest,
        workloads=given.workload,
        policies=given.policies,
        intervals_ms=given.intervals,
        connections=given.connections,
        seconds=given.seconds,
        warm_s=given.warm_up,
        rounds=given.rounds,
        seed=given.seed,
        kills=given.kills,
        victim=given.victim,
        silence_ms=given.silence,
        csv=given.csv,
        parquet=given.parquet,
        plot=given.plot,
    )


def main(given: argparse.Namespace) -> int:
    from colo.cli.progress import Progress
    from colo.experiment import conditions
    from colo.experiment.comparing import Comparison

    comparison = Comparison(options(given))
    with Progress("preparing") as progress:
        comparison.prepare(progress.step)
    for note in filter(None, (*comparison.left_out, conditions.busy())):
        print(f"colo: {note}", file=sys.stderr)
    with Progress("comparing") as progress:
        comparison.run(lambda text, left_s: progress.step(f"{text}; {left(left_s)} left"))
    return _show(comparison, given.json)


def _show(comparison: Comparison, as_json: bool) -> int:
    import json

    if comparison.interrupted:
        print("colo: interrupted: this is what was measured until then", file=sys.stderr)
    print(json.dumps(comparison.document()) if as_json else comparison.text(), flush=True)
    for path in comparison.save():
        print(f"colo: written: {path}", file=sys.stderr)
    if comparison.interrupted:
        return EXIT_INTERRUPTED
    return 0 if comparison.flawless else EXIT_FAILED


def left(seconds: float) -> str:
    """About how long, for a person."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"
