"""``colo replay`` for a trial of a world: the same log again, and where it leaves the one without faults."""

from __future__ import annotations

import argparse
import json
import sys

from colo.campaign.replay import Wanted
from colo.campaign.scenery import WorldRun
from colo.errors import ColoError

EXIT_FAILED = 1
LINES = 20
"""Of the log, that are shown where it was asked to stop."""


def main(options: argparse.Namespace, wanted: Wanted, run: WorldRun) -> int:
    """The exit status."""
    from colo.campaign import world_replay
    from colo.faults import text

    if options.step or options.pcap:
        raise ColoError("replay: --step and --pcap are for the trial of a machine, this is one of a world")
    found = world_replay.again(run, wanted.policy, wanted.trial)
    report, departures = found.report, wanted.departures(found.report)
    assert report.outcome is not None
    if options.record is not None:
        world_replay.write_timeline(options.record, found.lines)
        print(f"colo: timeline in {options.record}: open it at ui.perfetto.dev", file=sys.stderr)
    lines = []
    if options.diff is not None:
        golden = world_replay.without_faults(run, wanted.policy, wanted.trial)
        lines = world_replay.story(found.lines, golden.lines)
    if options.json:
        facts = {
            "trial": wanted.name,
            "policy": wanted.policy,
            "outcome": report.outcome.value,
            "why": report.why,
            "digest": report.digest,
            "events": len(found.lines),
            "difference": lines,
            "departures": departures,
        }
        print(json.dumps(facts))
        return EXIT_FAILED if departures else 0
    print(f"{wanted.name}: {report.outcome.value} ({report.why})")
    print(text.to_toml(wanted.trial).rstrip())
    for each in report.happened:
        print(f"injected  at {each.ns:,} ns: {each}")
    if options.until is not None:
        until = [line for line in found.lines if line.at_ns <= options.until]
        print("\n".join(f"  {line}" for line in until[-LINES:]))
    print("\n".join([*lines, f"digest {report.digest} of {len(found.lines)} events"]))
    wanted.tell(departures)
    return EXIT_FAILED if departures else 0
