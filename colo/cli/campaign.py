"""``colo campaign``: a plan's trials, forked from one golden run, and what each came to."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colo.campaign.campaign import Campaign, Found, Standing, Workers
    from colo.cli import Parser

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
SHOW_EVERY_S = 0.5
PLAIN_EVERY_S = 10.0
"""Without a terminal: a log is to be read later."""

EPILOG = """\
how it goes: the guest is resumed from its booted snapshot and goes through the plan's workload once, without
faults: the golden run.  Each trial is a process forked from the golden run a moment before its first fault,
so it costs what it executes.  A trial ends when its state is the golden run's again, when the guest ends,
when everything was said that the golden run said, or at limits.virtual_ns.

worlds: with a [world] in the plan, the guest has clients, a network and, by its policies, a second machine
around it.  Such a world is set up once, and each trial is forked from where faults are armed.  With
policy = ["none", "lockstep"] every trial is run in a world of each, with the same seed and faults, and there
are two tables: outcome by policy, and what became of each outcome of the first policy under the others.  The
keys are in colo/campaign/world.py.

outcomes: masked (nobody could tell), detected (the guest or the pair said so), failed-over (a survivor
serves), crash (it ended), hang (nothing more within the limit), sdc (silent data corruption: wrong output
and no word about it).  The rules are in colo/campaign/outcome.py and, of worlds, in colo/campaign/world.py.

the directory (--out, default: the plan's name with .campaign) has the plan, the golden run, trials.jsonl with
a line for each finished trial and, in the end, results.parquet (results.csv without pyarrow).  A campaign
that was interrupted or killed goes on when the same command is given again.

examples:
  colo campaign --example redis > flips.toml                    a plan to begin with; alone: what there is
  colo campaign flips.toml
  colo campaign flips.toml --workers 8 --out /srv/flips
  colo campaign flips.toml --scheduler tcp://10.0.0.1:8786      workers of a Dask cluster
  colo replay flips.campaign#17                                 what trial 17 was
  colo replay redis.campaign#17/lockstep                        the same in one of several worlds

--scheduler needs: pip install 'colo-vmm[dask]'; Parquet: pip install 'colo-vmm[experiment]'

exit status: 0 every trial has an outcome, 1 some have none or something failed, 2 usage or an error in the
plan, 130 interrupted
"""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "campaign",
        help="thousands of trials of a fault plan, each classified",
        description="Run every trial of a fault plan and classify what it came to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--example",
        metavar="NAME",
        nargs="?",
        action=_Example,
        help="print a plan to begin with, or their names",
    )
    add("plan", metavar="PLAN", type=Path, help="a TOML or YAML file (colo/faults/plan.py has its keys)")
    add("--out", metavar="DIR", type=Path, help="where the results are; default: PLAN.campaign, here")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", metavar="N", type=_count, help="processes on this host; default: its cores"
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster's, such as tcp://10.0.0.1:8786")
    add(
        "--wall-limit",
        metavar="SECONDS",
        type=float,
        help="of the host's time for one trial, a safety net: a trial that exceeds it has no outcome",
    )
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")


class _Example(argparse.Action):
    """Like ``--help``: no PLAN is needed beside it, and nothing else happens."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from colo import plans

        known = plans.examples()
        if values is None:
            print("\n".join(f"{name:<12}{purpose}" for name, purpose in known.items()))
        elif values in known:
            print(plans.text(values), end="")
        else:
            parser.error(f"--example {values}: expected one of {', '.join(known)}")
        parser.exit()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers: expected 1 to 1024")
    return int(text)


def main(options: argparse.Namespace) -> int:
    """The exit status."""
    from colo.campaign import planned
    from colo.campaign.campaign import Campaign
    from colo.campaign.fork_server import WALL_LIMIT_S
    from colo.faults.errors import FaultError

    progress = Progress()
    try:
        plan = planned.load(options.plan)
        directory = options.out or Path(f"{options.plan.stem}.campaign")
        with Campaign(plan, directory, progress.say) as campaign:
            try:
                found = campaign.run(
                    _workers(options, progress),
                    watch=progress.show,
                    wall_limit_s=options.wall_limit or WALL_LIMIT_S,
                )
            except KeyboardInterrupt:
                progress.end()
                _tell_interrupted(campaign)
                return EXIT_INTERRUPTED
            progress.end()
            _tell(campaign, found, as_json=options.json)
    except FaultError as exc:
        progress.end()
        print(f"colo: {exc}", file=sys.stderr)
        return 2
    return EXIT_FAILED if any(row.failure for row in found.rows) else 0


def _workers(options: argparse.Namespace, progress: Progress) -> Workers:
    if options.scheduler is not None:
        from colo.campaign.cluster import DaskWorkers

        return DaskWorkers(options.scheduler, progress.say)
    from colo.campaign.workers import LocalWorkers

    return LocalWorkers(options.workers or len(os.sched_getaffinity(0)), progress.say)


def _tell_interrupted(campaign: Campaign) -> None:
    done, total = len(campaign.results.rows), campaign.total
    print(
        f"colo: interrupted with {done} of {total} trials done; the same command goes on from here",
        file=sys.stderr,
    )


def _tell(campaign: Campaign, found: Found, *, as_json: bool) -> None:
    if as_json:
        from colo.campaign import table

        facts = {
            "plan": campaign.planned.name,
            "trials": len(found.rows),
            "outcomes": table.counts(found.rows),
            **_by_policy(campaign, found),
            "latent": sum(row.latent for row in found.rows),
            "failed": sum(bool(row.failure) for row in found.rows),
            "golden": found.golden_digest,
            "digest": found.digest,
            "results": str(found.exported),
            "done_now": found.done_now,
            "seconds": round(found.seconds, 3),
        }
        import json

        print(json.dumps(facts))
        return
    print("\n".join(campaign.table()))
    rate = (
        f"{60 * found.done_now / found.seconds:,.0f} a minute" if found.done_now else "none were left to do"
    )
    print(f"{len(found.rows)} trials in {found.exported}, {rate}; digest {found.digest}")
    shown = next((row for row in found.rows if row.outcome not in ("", "masked")), None)
    if shown is not None:
        world = f"/{shown.policy}" if len(campaign.policies) > 1 else ""
        which = f"{campaign.directory}#{shown.trial}{world}"
        print(f"next: colo replay {which}   ({shown.outcome}: {shown.why})")


def _by_policy(campaign: Campaign, found: Found) -> dict[str, object]:
    """Where there are several."""
    from colo.campaign import table

    policies = campaign.policies
    if len(policies) == 1:
        return {}
    rows = {policy: [row for row in found.rows if row.policy == policy] for policy in policies}
    return {
        "policies": {policy: table.counts(mine) for policy, mine in rows.items()},
        "transitions": table.transitions(found.rows, policies),
    }


class Progress:
    """A line on standard error that tells how far it is; on a terminal it stays one line."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._next_s = 0.0
        self._open = False

    def say(self, text: str) -> None:
        self.end()
        print(f"colo: {text}", file=sys.stderr, flush=True)

    def show(self, standing: Standing) -> None:
        now = time.monotonic()
        if now < self._next_s and standing.done < standing.total:
            return
        self._next_s = now + (SHOW_EVERY_S if self._live else PLAIN_EVERY_S)
        line = (
            f"  {standing.done:,} of {standing.total:,} trials, {standing.per_minute:,.0f} a minute,"
            f" {_duration(standing.left_s)} left"
        )
        if self._live:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
