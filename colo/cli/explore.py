"""``colo explore``: trials chosen by which situations of the protocol earlier ones reached."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colo.campaign.exploring import Exploration, Failure, Standing
    from colo.campaign.planned import Planned
    from colo.cli import Parser

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
TRIALS = 500
SHOW_EVERY_S = 5.0
COVERAGE, CHART = "coverage.json", "combinations.txt"

EPILOG = """\
A campaign draws its trials as the plan says, one like another.  An exploration looks at where each one went:
which combinations of a protocol state, a message and a fault in effect it reached.  A trial that reached one
for the first time is kept, and new trials are kept ones changed a little: another seed, a fault more, less or
in place of another, a trigger a little earlier or later.  One in four is a fresh one of the plan.

PLAN is a campaign's plan with a [world] (colo campaign --help).  GUEST is the name of a guest: a pair of it
meets every fault that a pair is to survive, alone and two at a time (colo/faults/broad.py).

Trials that come to crash, hang or sdc are failures; of each kind the first is shrunk to the smallest set of
faults that still fails, in a file for colo replay.  When nobody serves after a node failed, and another node,
the wire between the two or their arbiter, that is a double failure, which no pair survives, and only counted.

In the end there is a chart with a row for each pair of state and message, and a column for each fault: a
digit is how often the combination was seen, a dot is one that was not.  What is not seen was either never
tried or cannot be.

the directory (--out, default: the plan's or guest's name with .explore) has the golden run, the chart in
combinations.txt, coverage.json for programs, and failure-1.toml ... for each kind of failure.

examples:
  colo explore udpecho --policy lockstep
  colo explore pair.toml --seconds 600 --out /srv/found
  colo replay udpecho.explore/failure-1.toml --campaign udpecho.explore --diff golden

The same plan, seed and --trials are the same exploration, with the same digest in the last line.

exit status: 0 nothing failed, 1 something did; 2 usage, or the plan or guest is none; 130 interrupted
"""
POLICIES = ("periodic", "lockstep", "colo")


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "explore",
        help="faults where the protocol has not met them yet: trials guided by coverage",
        description="Search a simulated pair for failures, guided by the situations that trials reach.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", metavar="PLAN|GUEST")
    add("--policy", choices=POLICIES, help="of the pair (colo), or one of the plan's; default: its first")
    add("--seed", type=int, help="default: the plan's, or 0")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--trials", metavar="N", type=_count, help=f"after so many; default {TRIALS}")
    limit.add_argument("--seconds", metavar="S", type=float, help="of the host's time, instead")
    add("--out", metavar="DIR", type=Path, help="where the results are")
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of trials: expected 1 or more")
    return int(text)


def main(options: argparse.Namespace) -> int:
    """The exit status."""
    from colo.campaign.exploring import Exploration
    from colo.faults.errors import FaultError
    from vmm.errors import GuestBuildError

    began_s = time.monotonic()
    show = Progress(began_s)
    try:
        planned = _planned(options)
        policy = options.policy or next(each for each in (*_policies(planned), "none") if each)
        with Exploration(planned, policy, say=show.say) as exploration:
            limit, stop = _limit(options, began_s), Stop()
            exploration.explore(
                lambda standing: limit(standing) and not stop.asked,
                lambda standing: show(exploration, standing),
            )
            directory = options.out or Path(f"{Path(options.what).stem}.explore")
            _write(directory, exploration)
            _tell(options, exploration, directory, time.monotonic() - began_s)
            failed = EXIT_FAILED if exploration.standing.failures else 0
            return EXIT_INTERRUPTED if stop.asked else failed
    except (FaultError, GuestBuildError) as exc:
        print(f"colo: {exc}", file=sys.stderr)
        return 2


def _planned(options: argparse.Namespace) -> Planned:
    import msgspec

    import vmm.guest
    from colo.campaign import planned
    from colo.faults import broad, plan

    if Path(options.what).is_file():
        found = planned.load(Path(options.what))
        if options.seed is None:
            return found
        head = msgspec.structs.replace(found.plan.head, seed=options.seed)
        return msgspec.structs.replace(found, plan=_with(found.plan, head))
    vmm.guest.open(options.what)  # or the word is wrong: neither a plan nor a guest
    parts = broad.plan(options.what, options.policy or "colo", options.seed or 0)
    return planned.planned(plan.plan(**parts), "")


def _with(plan: Any, head: Any) -> Any:
    import dataclasses

    return dataclasses.replace(plan, head=head)


def _policies(planned: Planned) -> tuple[str, ...]:
    """Of its pairs, if it has any."""
    return tuple(each for each in getattr(planned.scenario, "policies", ()) if each != "none")


def _limit(options: argparse.Namespace, began_s: float) -> Any:
    if options.seconds is not None:
        return lambda standing: time.monotonic() - began_s < options.seconds
    trials = options.trials or TRIALS
    return lambda standing: standing.trials < trials


class Stop:
    """Ctrl-C ends the exploration after the trial that runs, with its results; a second one at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Progress:
    """A line on standard error every few seconds, and one for each kind of failure."""

    def __init__(self, began_s: float) -> None:
        self._next_s = began_s + SHOW_EVERY_S
        self._failures = 0

    def say(self, text: str) -> None:
        print(f"colo: {text}", file=sys.stderr, flush=True)

    def __call__(self, exploration: Exploration, standing: Standing) -> None:
        for failure in standing.failures[self._failures :]:
            self.say(f"{failure.outcome or 'no outcome'}: {failure.why}")
        self._failures = len(standing.failures)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + SHOW_EVERY_S
            coverage = exploration.coverage
            self.say(
                f"{standing.trials} trials, {len(coverage)} combinations of {len(coverage.situations)}"
                f" situations and {len(coverage.faults)} faults; {standing.kept} trials kept,"
                f" {self._failures} kinds of failures"
            )


def _write(directory: Path, exploration: Exploration) -> None:
    from colo.campaign import kinds
    from colo.campaign.campaign import GOLDEN
    from colo.errors import ColoError
    from colo.faults import text

    try:
        directory.mkdir(parents=True, exist_ok=True)
        kinds.save(exploration.run, directory / GOLDEN)
        (directory / COVERAGE).write_bytes(exploration.coverage.pack() + b"\n")
        (directory / CHART).write_text(exploration.coverage.chart(), encoding="utf-8")
        for number, failure in enumerate(exploration.standing.failures, 1):
            comment = "".join(f"# {line}\n" for line in f"{failure.outcome}: {failure.why}".splitlines())
            path = directory / f"failure-{number}.toml"
            path.write_text(comment + text.to_toml(failure.smallest), encoding="utf-8")
    except OSError as exc:
        raise ColoError(f"explore {directory}: {exc.strerror}: expected a directory to write to") from None


def _tell(options: argparse.Namespace, exploration: Exploration, directory: Path, took_s: float) -> None:
    standing, coverage = exploration.standing, exploration.coverage
    unseen = sum(1 for _ in coverage.unseen())
    print(coverage.chart())
    outcomes = ", ".join(f"{count} {name or 'none'}" for name, count in sorted(standing.outcomes.items()))
    print(
        f"{standing.trials} trials in {took_s:.0f} s: {outcomes}; {standing.double_failures} double failures"
    )
    print(
        f"{len(coverage)} combinations seen, {unseen} not; {len(coverage.situations)} situations,"
        f" {len(coverage.faults)} faults; {standing.kept} trials kept"
    )
    for number, failure in enumerate(standing.failures, 1):
        _tell_failure(failure, directory, number)
    print(f"digest {exploration.digest}; results in {directory}")
    if options.json:
        import json

        print(json.dumps(_facts(exploration, directory, unseen, took_s)))
    sys.stdout.flush()


def _tell_failure(failure: Failure, directory: Path, number: int) -> None:
    from colo.faults import text

    few = "" if failure.minimal else " (there may be a smaller one)"
    print(f"\n{failure.outcome or 'no outcome'}, {failure.count} times: {failure.why}\nthe smallest{few}:")
    print("".join(f"  {line}\n" for line in text.to_toml(failure.smallest).splitlines()), end="")
    print(f"  colo replay {directory}/failure-{number}.toml --campaign {directory}\n")


def _facts(exploration: Exploration, directory: Path, unseen: int, took_s: float) -> dict[str, Any]:
    standing, coverage = exploration.standing, exploration.coverage
    return {
        "trials": standing.trials,
        "outcomes": dict(sorted(standing.outcomes.items())),
        "double_failures": standing.double_failures,
        "seen": len(coverage),
        "unseen": unseen,
        "situations": len(coverage.situations),
        "faults": coverage.faults,
        "kept": standing.kept,
        "failures": [
            {"outcome": each.outcome, "why": each.why, "count": each.count} for each in standing.failures
        ],
        "digest": exploration.digest,
        "results": str(directory),
        "wall_s": round(took_s, 3),
    }
