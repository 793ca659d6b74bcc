"""The command behind ``tools/bench``: which sections, how often, and what is said of it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.benchmarks import blk, boot, costs, cpu, host, net, snapshot
from tools.benchmarks.emulator import Lost
from tools.benchmarks.host import Unavailable
from tools.benchmarks.measure import table
from tools.benchmarks.run import Run

SECTIONS = {"boot": boot, "cpu": cpu, "net": net, "blk": blk, "costs": costs, "snapshot": snapshot}
ROUNDS = 5
HOW = (
    "ours and QEMU TCG in turn (ours, QEMU, ours, QEMU, ...), same kernel and initramfs, 256 MiB, one CPU; "
    "columns: medians over the rounds, the median of the rounds' ratios (above 1: ours is better), the "
    "smallest and largest of them"
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description="Measure this machine beside QEMU TCG.")
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, metavar="NAME", help=f"one of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="a fraction of the work: only whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds: at least one")
    return given


def measured(names: Sequence[str], rounds: int, quick: bool) -> tuple[Run, dict[str, str]]:
    """Run the sections, print each table as it is ready; what could not run, and why."""
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as directory:
        run = Run(rounds, quick, Path(directory))
        for name in names:
            run.section = name
            try:
                SECTIONS[name].measure(run)
            except (Unavailable, Lost) as exc:
                missing[name] = str(exc)
            show(run, name, missing.get(name))
    return run, missing


def show(run: Run, name: str, missing: str | None) -> None:
    print(f"\n{name}: {SECTIONS[name].METHOD}\n")
    if missing:
        print(f"not complete: {missing}")
    for line in table([one for one in run.measures if one.section == name]):
        print(line, flush=True)


def main() -> int:
    given = options()
    try:
        about = host.describe()
    except Unavailable as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 3
    for name, value in about.items():
        print(f"{name:<7} {value}")
    print(f"method  {HOW}; {given.rounds} rounds{', QUICK: not a measurement' if given.quick else ''}")
    started = time.time()
    run, missing = measured(given.only or list(SECTIONS), given.rounds, given.quick)
    if given.json:
        document = {
            "host": about,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(time.time() - started, 1),
            "rounds": given.rounds,
            "quick": given.quick,
            "method": {"all": HOW, **{name: module.METHOD for name, module in SECTIONS.items()}},
            "missing": missing,
            "results": [one.document() for one in run.measures],
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if missing else 0


def ended(_number: int, _frame: object) -> None:
    """SIGTERM: leave in order, so that emulators, files and the network namespace go too."""
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ended)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
