"""``colo replay``: one trial of a campaign again, exactly, and what became of its fault."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colo.campaign.explain import Beside, Parting
    from colo.campaign.replay import Wanted
    from colo.campaign.trial import Report
    from colo.cli import Parser

EXIT_FAILED = 1
CONSOLE_LINES = 10
STEPS_MAX = 100_000

EPILOG = """\
examples:
  colo replay flips.campaign#17                        the same trial, and that it came to the same
  colo replay redis.campaign#17/lockstep               in the world of one of the plan's policies
  colo replay flips.campaign#17 --diff golden          where it leaves the golden run, to the block
  colo replay flips.campaign#17 --until 1200000 --step 20 --diff golden
  colo replay flips.campaign#17 --record trial.json    a timeline for ui.perfetto.dev
  colo replay small.toml --campaign flips.campaign     a trial written by hand, or shrunk

times are virtual nanoseconds from the start state of the campaign.

exit status: 0 it came to what the campaign says, 1 it did not, or something failed
"""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="one trial of a campaign again, exactly",
        description="Do one trial of a campaign again and explain it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("trial", metavar="TRIAL", help="DIR#NUMBER[/POLICY] of a campaign, or a TOML file with a trial")
    add("--campaign", metavar="DIR", type=Path, help="with a file: whose golden run it is compared with")
    add("--policy", default="", help="with several of them in the plan: in which world")
    add("--until", metavar="NS", type=_whole, help="stop there, and show where the guest is")
    add("--step", metavar="N", type=_whole, default=0, help="then so many blocks, one by one")
    add("--diff", choices=("golden",), help="what is not as in the golden run: first, and where it stopped")
    add("--record", metavar="FILE", type=Path, help="write a timeline, trace-event JSON")
    add("--pcap", metavar="FILE", type=Path, help="write the frames of its cards")
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")


def _whole(text: str) -> int:
    plain = text.replace("_", "").replace(",", "")
    if not plain.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(plain)


def main(options: argparse.Namespace) -> int:
    """The exit status."""
    from colo.campaign import replay
    from colo.campaign.explain import Beside
    from colo.campaign.golden import GoldenRun

    wanted = replay.find(options.trial, options.campaign, options.policy)
    if not isinstance(wanted.golden, GoldenRun):
        from colo.cli import replay_world

        return replay_world.main(options, wanted, wanted.golden)
    with Beside(wanted.golden, wanted.trial, _say) as pair:
        if options.until is not None:
            return _look(options, pair, wanted)
        return _whole_run(options, pair, wanted)


def _say(text: str) -> None:
    print(f"colo: {text}", file=sys.stderr, flush=True)


# The whole trial


def _whole_run(options: argparse.Namespace, pair: Beside, wanted: Wanted) -> int:
    from colo.campaign import explain
    from colo.campaign.outcome import Judge
    from colo.campaign.trial import follow
    from colo.faults import text

    path = None
    if options.diff is not None:
        pair.advance(wanted.leaves_ns)
        path = explain.first(pair, explain.other_path, pair.run.span_ns)
    report = follow(pair.trial, pair.run, Judge(pair.run), pair.armed)
    departures = wanted.departures(report)
    _write(options, pair, wanted, path, report)
    assert report.outcome is not None
    if options.json:
        import json

        print(json.dumps(_facts(wanted, path, report, departures)))
        return EXIT_FAILED if departures else 0
    print(f"{wanted.name}: {report.outcome.value} ({report.why})")
    print(text.to_toml(wanted.trial).rstrip())
    lines = explain.story(pair, path, report)
    print("\n".join(lines if options.diff is not None else [line for line in lines if line[:4] != "path"]))
    wanted.tell(departures)
    return EXIT_FAILED if departures else 0


def _facts(wanted: Wanted, path: Parting | None, report: Report, departures: list[str]) -> dict[str, object]:
    assert report.outcome is not None
    return {
        "trial": wanted.name,
        "outcome": report.outcome.value,
        "why": report.why,
        "difference": report.difference,
        "happened": [{"ns": each.ns, "address": each.address, "text": str(each)} for each in report.happened],
        "ended_ns": report.ended_ns,
        "first_ns": None if path is None else path.ns,
        "first_differences": [] if path is None else list(path.differences),
        "departures": departures,
    }


def _write(
    options: argparse.Namespace, pair: Beside, wanted: Wanted, path: Parting | None, report: Report
) -> None:
    from colo.campaign.timeline import Timeline, write_pcap

    trial = pair.trial
    if options.record is not None:
        timeline = Timeline(pair.run)
        outcome = "" if report.outcome is None else report.outcome.value
        timeline.add_trial(trial.said, report.happened, report.ended_ns, outcome)
        if path is not None:
            timeline.add_parting(path.ns, "leaves the golden run's path", path.differences)
        timeline.write(options.record)
        _say(f"timeline in {options.record}: open it at ui.perfetto.dev")
    if options.pcap is not None:
        epoch_s = trial.machine.config.epoch_s
        frames = write_pcap(options.pcap, pair.run.scenario.inputs, trial.said, epoch_s)
        _say(f"{frames} frames in {options.pcap}")


# A moment of it


def _look(options: argparse.Namespace, pair: Beside, wanted: Wanted) -> int:
    """Stop at a time, step, and show."""
    pair.advance(options.until)
    print(f"{wanted.name} at {pair.trial.now_ns:,} ns")
    for each in pair.armed.happened:
        print(f"injected  at {each.ns:,} ns, before {each.address:#x}: {each}")
    for _ in range(min(options.step, STEPS_MAX)):
        pair.advance(pair.now_ns + 1)
        print(_where(pair))
    _show_machine(pair)
    if options.diff is not None:
        found = pair.differences()
        print("\n".join(["golden run != trial:", *(f"  {each}" for each in found or ["no difference"])]))
    return 0


def _where(pair: Beside) -> str:
    from colo.campaign.explain import rip

    trial, golden = rip(pair.trial), rip(pair.golden)
    beside = "" if trial == golden and pair.golden.now_ns == pair.trial.now_ns else f"   golden {golden:#x}"
    return f"  {pair.trial.now_ns:>15,} ns  rip {trial:#018x}{beside}"


def _show_machine(pair: Beside) -> None:
    from vmm.api import Pc

    registers = [f"{name} {value:#x}" for name, value in Pc(pair.trial.machine).registers.items()]
    for at in range(0, len(registers), 4):
        print("  " + "  ".join(f"{each:<24}" for each in registers[at : at + 4]).rstrip())
    console = pair.trial.machine.console.text.splitlines()[-CONSOLE_LINES:]
    if console:
        print("\n".join(["console:", *(f"  {line}" for line in console)]))
    if pair.trial.ended is not None:
        print(f"the guest has ended: {pair.trial.ended.value}")
