#!/usr/bin/env python3
"""Does one seed give one digest everywhere?  Runs the same scenarios in several environments and compares.

    tools/same_digest.py                                 the environments that are there
    tools/same_digest.py --make 3.12 --make 3.13         makes environments of those Pythons first
    tools/same_digest.py --make trixie                   a Debian tree in a folder, entered with chroot (root)
    tools/same_digest.py --python /usr/bin/python3.13    any that has the project installed, and any words
    tools/same_digest.py --python 'ssh host venv/bin/python'           that run one
    tools/same_digest.py --json here.json                two hosts or containers: on each of them,
    tools/same_digest.py --compare here.json there.json  and this where both files are

Every environment runs twice: quiet, and busy, that is beside processes that compute without end, with another
hash seed and time zone, and with two workers for the campaign.  What was made by --make lies in --work, has a
cache of its own, boots its own guests, and is used again by later runs.

What the two runs cannot differ in: the host's clock.  They are at different times of the day, and a run is
never at the time of another; setting the clock is left to whoever owns it.

scenarios (--only NAME runs some):
  counter           one machine: processor, devices and RAM at five points of its time
  udpecho-POLICY    a pair whose primary is killed, its network and a client: colo sim
  flips             60 flips of register bits in one guest: colo campaign
  redis-boot        Debian's kernel and Redis, booted there: the snapshot, byte for byte, and its state
  redis-lockstep    a pair of those whose primary is killed

exit status: 0 all the same, 1 something differs or failed, 2 usage, or what was run is not comparable
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.same_digest_places import ROOT, Place, PlaceError, cache_directory, made, make
from tools.same_digest_scenarios import SCENARIOS

RUNNER = Path(__file__).with_name("same_digest_scenarios.py")
QUIET, BUSY = "quiet", "busy"
SETTINGS = {
    QUIET: {"PYTHONHASHSEED": "0", "TZ": "UTC", "PYTHONSAFEPATH": "1"},
    BUSY: {"PYTHONHASHSEED": "4711", "TZ": "Pacific/Chatham", "PYTHONSAFEPATH": "1"},
}
"""PYTHONSAFEPATH: what is installed there is run, and not the folder that this was started in."""
WORKERS = {QUIET: "1", BUSY: "2"}
SAME, DIFFERENT, FAILED, MISSING = "=", "X", "!", "-"
SHOWN = 32


@dataclass
class Run:
    """One environment under one condition."""

    place: str
    condition: str
    words: str
    """What ran its Python."""
    facts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By scenario, what tools/same_digest_scenarios.py printed."""
    failure: str = ""

    @property
    def name(self) -> str:
        return f"{self.place} {self.condition}"


# Running


BUSY_SOURCE = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never wait, and end with this one even if it is killed."""
    command = [sys.executable, "-c", BUSY_SOURCE, str(os.getpid())]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for each in processes:
            each.kill()
            each.wait()


def run(place: Place, condition: str, options: argparse.Namespace) -> Run:
    """All scenarios there; the environment's last words when it could not."""
    words = ["-", "--seed", str(options.seed), "--workers", WORKERS[condition]]
    if place.own_cache and condition == QUIET:
        words.append("--without-snapshots")
    command = place.command(SETTINGS[condition], *words, *options.only)
    done = Run(place.name, condition, shlex.join(place.words[-1:] if place.own_cache else place.words))
    with RUNNER.open() as script, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                command, stdin=script, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        except OSError as exc:
            done.failure = f"{shlex.join(command)}: {exc.strerror}"
            return done
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                _take(done, line)
        errors.seek(0)
        last = " | ".join(errors.read().strip().splitlines()[-3:])
    if process.returncode != 0:
        done.failure = f"exit status {process.returncode}: {last}"
    return done


def _take(done: Run, text: str) -> None:
    """A line of the runner's, or of what led there, which may have a greeting of its own."""
    if not text.startswith("{"):
        return
    line = json.loads(text)
    if "facts" in line:
        done.facts = line["facts"]
        return
    name = line.pop("scenario")
    done.results[name] = line
    found = line.get("error") or shown(line["same"])
    booted = ", booted here" if line.get("host", {}).get("booted_here") else ""
    say(f"{done.name:<16} {name:<17} {found} {line['seconds']:6.1f} s{booted}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shown(same: dict[str, str]) -> str:
    """The last digest, which stands for the others."""
    return list(same.values())[-1]


# Comparing


class NotComparable(Exception):
    """The runs are of different programs or seeds."""


def check_comparable(runs: Sequence[Run]) -> None:
    builds = {done.facts["build"]: done.name for done in runs if done.facts}
    if len(builds) > 1:
        told = ", ".join(f"{name} has {build}" for build, name in builds.items())
        raise NotComparable(f"these are different programs: {told}; run all of them from the same sources")


def differences(runs: Sequence[Run]) -> list[str]:
    """A sentence for each scenario of a run that is not what the first run that has it says."""
    found = [f"{done.name}: {done.failure}" for done in runs if done.failure]
    for name in SCENARIOS:
        first = reference(runs, name)
        for done in runs:
            line = done.results.get(name, {})
            if "error" in line:
                found.append(f"{name}: {done.name}: {line['error']}")
            elif first is not None and "same" in line:
                found += _departures(name, first, done)
    return found


def reference(runs: Sequence[Run], name: str) -> Run | None:
    return next((done for done in runs if "same" in done.results.get(name, {})), None)


def _departures(name: str, first: Run, done: Run) -> list[str]:
    """The first value that differs; those after it follow from it."""
    expected, found = first.results[name]["same"], done.results[name]["same"]
    for key in dict.fromkeys([*expected, *found]):
        if expected.get(key) != found.get(key):
            why = "; the guests were built from different packages: copy one build" if key == "guest" else ""
            return [
                f"{name}: {key}: {first.name} has {expected.get(key)}, {done.name} has {found.get(key)}{why}"
            ]
    return []


def mark(runs: Sequence[Run], done: Run, name: str) -> str:
    line = done.results.get(name, {})
    if "same" not in line:
        return FAILED if line or done.failure else MISSING
    first = reference(runs, name)
    assert first is not None
    return DIFFERENT if _departures(name, first, done) else SAME


def table(runs: Sequence[Run]) -> list[str]:
    """A line a scenario, a column a run."""
    places = list(dict.fromkeys(done.place for done in runs))
    columns = [[done for done in runs if done.place == place] for place in places]
    widths = [max(len(place), 2 * len(column)) for place, column in zip(places, columns, strict=True)]
    head = f"{'scenario':<17} {'digest':<{SHOWN}}"
    lines = ["  ".join([head, *(place.ljust(width) for place, width in zip(places, widths, strict=True))])]
    for name in SCENARIOS:
        if (first := reference(runs, name)) is None and not any(name in done.results for done in runs):
            continue
        digest = shown(first.results[name]["same"]) if first else ""
        marks = [" ".join(mark(runs, done, name) for done in column) for column in columns]
        cells = (text.ljust(width) for text, width in zip(marks, widths, strict=True))
        lines.append("  ".join([f"{name:<17} {digest:<{SHOWN}}", *cells]).rstrip())
    conditions = ", ".join(dict.fromkeys(done.condition for done in runs))
    lines.append(
        f"each: {conditions};  {SAME} the same, {DIFFERENT} differs, {FAILED} failed, {MISSING} not run"
    )
    return lines


def about(runs: Sequence[Run]) -> list[str]:
    """What the environments are."""
    lines = []
    for done in {each.place: each for each in runs if each.facts}.values():
        facts = done.facts
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        lines.append(f"{done.place}: Python {facts['python']}, {packages}; {facts['os']}, {facts['libc']}")
        lines.append(f"  {done.words}; kernel {facts['kernel']}, {facts['processor']}")
    return lines


# The command


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="\n\n".join((__doc__ or "").split("\n\n")[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--python",
        metavar="WORDS",
        action="append",
        default=[],
        help="a Python that has the project installed",
    )
    add("--make", metavar="NAME", action="append", default=[], help="a version of Python, bookworm or trixie")
    add("--only", metavar="SCENARIO", action="append", choices=list(SCENARIOS), help="repeat for more")
    add("--seed", type=int, default=0)
    add(
        "--busy",
        metavar="N",
        type=int,
        default=2 * (os.cpu_count() or 1),
        help="processes; 0: quiet runs only",
    )
    add(
        "--work",
        metavar="DIR",
        type=Path,
        default=cache_directory() / "same-digest",
        help="default: %(default)s",
    )
    add("--json", metavar="FILE", type=Path, help="write down what was found")
    add("--compare", metavar="FILE", type=Path, nargs="+", help="compare what was written down; run nothing")
    options = parser.parse_args(words)
    options.only = options.only or list(SCENARIOS)
    return options


def places(options: argparse.Namespace) -> list[Place]:
    """Those that were named; without any, this checkout's environment and those that were made before."""
    found = [Place(f"#{number}", tuple(shlex.split(words))) for number, words in enumerate(options.python, 1)]
    names = options.make
    if not options.python:
        own = ROOT / ".venv/bin/python"
        found.append(Place("here", (str(own if own.exists() else sys.executable),)))
        names = list(dict.fromkeys([*made(options.work), *options.make]))
    return found + [make(name, options.work, say) for name in names]


def run_all(options: argparse.Namespace) -> list[Run]:
    """Quiet everywhere, then busy everywhere; what is known is written down after each."""
    runs = []
    where = places(options)
    for condition, count in ((QUIET, 0), (BUSY, options.busy)):
        if condition == BUSY and not count:
            continue
        with busy(count):
            for place in where:
                runs.append(run(place, condition, options))
                if options.json is not None:
                    options.json.write_text(written(runs, options.seed))
    return runs


def written(runs: Sequence[Run], seed: int) -> str:
    return json.dumps({"seed": seed, "runs": [asdict(done) for done in runs]}, indent=1) + "\n"


def read(paths: Sequence[Path]) -> list[Run]:
    """Runs of several files; a place is named with its file when there is more than one."""
    runs: list[Run] = []
    seeds = {}
    for path in paths:
        try:
            kept = json.loads(path.read_text())
            seeds[kept["seed"]] = path
            runs += [Run(**{**each, "place": f"{path.stem}:{each['place']}"}) for each in kept["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise NotComparable(f"{path}: {exc}; expected what tools/same_digest.py --json wrote") from None
    if len(seeds) > 1:
        told = ", ".join(f"{path} has {seed}" for seed, path in seeds.items())
        raise NotComparable(f"these are runs of different seeds: {told}")
    return runs


def main(words: Sequence[str] | None = None) -> int:
    options = _arguments(words)
    try:
        runs = read(options.compare) if options.compare else run_all(options)
        check_comparable(runs)
    except (NotComparable, PlaceError) as exc:
        print(f"same_digest: {exc}", file=sys.stderr)
        return 2
    found = differences(runs)
    print("\n".join([*about(runs), "", *table(runs), *found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
