"""The command behind ``tools/bench``: which sections, how often, and what is said of it."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks import (
    blk,
    boot,
    causes,
    checkpoint,
    costs,
    cpu,
    failover,
    faults,
    figures,
    host,
    measure,
    net,
    protected,
    qemu_colo,
    ram,
    setup,
    snapshot,
)
from tools.benchmarks.emulator import Lost
from tools.benchmarks.host import Unavailable
from tools.benchmarks.run import Run

BESIDE_QEMU = {"boot": boot, "cpu": cpu, "net": net, "blk": blk, "costs": costs, "snapshot": snapshot}
PROTECTED = {"checkpoint": checkpoint, "ram": ram, "failover": failover, "setup": setup}
OWN_TABLES = {"causes": causes, "faults": faults}
SECTIONS = BESIDE_QEMU | PROTECTED | OWN_TABLES
OWN_ROUNDS = [name for name, section in SECTIONS.items() if hasattr(section, "ROUNDS")]
ROUNDS = 5
HOW = (
    "ours and QEMU TCG in turn (ours, QEMU, ours, QEMU, ...), same kernel and initramfs, 256 MiB, one CPU; "
    "columns: medians over the rounds, the median of the rounds' ratios (above 1: ours is better), the "
    "smallest and largest of them"
)
HOW_PROTECTED = (
    "one `colo up` on this host, which supervisor, primary, secondary and client share; "
    f"{qemu_colo.PROVENANCE}"
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/bench", description="Measure this machine beside QEMU TCG, and what protecting it costs."
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, metavar="NAME", help=f"one of {', '.join(SECTIONS)}"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help=f"default {', '.join(f'{rounds(name)} of {name}' for name in OWN_ROUNDS)}, else {ROUNDS}",
    )
    parser.add_argument("--quick", action="store_true", help="a fraction of the work: only whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--csv", type=Path, metavar="DIR", help="write a table a section there, to be plotted"
    )
    given = parser.parse_args()
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds: at least one")
    return given


def rounds(name: str) -> int:
    return int(getattr(SECTIONS[name], "ROUNDS", ROUNDS))


def measured(names: Sequence[str], given: argparse.Namespace) -> tuple[Run, dict[str, str]]:
    """Run the sections, print each table as it is ready; what could not run, and why."""
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as directory:
        run = Run(0, given.quick, Path(directory))
        if any(name in PROTECTED for name in names):
            protected.warm_up(run)
        for name in names:
            run.section, run.count, run.failures = name, given.rounds or rounds(name), []
            load = os.getloadavg()[0]
            try:
                SECTIONS[name].measure(run)
            except (Unavailable, Lost) as exc:
                run.failures.append(str(exc))
            if run.failures:
                missing[name] = "; ".join(run.failures)
            say = f"{run.count} rounds; load {load:.2f} before, {os.getloadavg()[0]:.2f} after"
            show(run, name, say, missing.get(name))
    return run, missing


def show(run: Run, name: str, how: str, missing: str | None) -> None:
    print(f"\n{name}: {SECTIONS[name].METHOD}; {how}\n")
    if missing:
        print(f"not complete: {missing}")
    if name in OWN_TABLES:
        lines = OWN_TABLES[name].table(run.records.get(name, []))
    elif name in PROTECTED:
        lines = figures.table([one for one in run.figures if one.section == name])
    else:
        lines = measure.table([one for one in run.measures if one.section == name])
    for line in lines:
        print(line, flush=True)


def methods(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if any(name in BESIDE_QEMU for name in names):
        yield "method", HOW
    if any(name in PROTECTED for name in names):
        yield "pairs", HOW_PROTECTED


def write_csv(directory: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    """A file a section; a cell is empty where a row has no such thing."""
    directory.mkdir(parents=True, exist_ok=True)
    for section, found in records.items():
        columns = list(dict.fromkeys(name for row in found for name in row))
        with (directory / f"{section}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(found)


def document(run: Run, missing: dict[str, str], started: float, given: argparse.Namespace) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "rounds": given.rounds or {name: rounds(name) for name in SECTIONS},
        "quick": given.quick,
        "missing": missing,
        "results": [one.document() for one in run.measures] + [one.document() for one in run.figures],
        "records": run.records,
    }


def main() -> int:
    given = options()
    names = given.only or list(SECTIONS)
    try:
        about = host.describe(qemu=any(name in BESIDE_QEMU or name == "faults" for name in names))
    except Unavailable as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 3
    for name, value in (*about.items(), *methods(names)):
        print(f"{name:<7} {value}", flush=True)
    if given.quick:
        print("QUICK: not a measurement", flush=True)
    started = time.time()
    run, missing = measured(names, given)
    if given.json:
        how = {**dict(methods(names)), **{name: SECTIONS[name].METHOD for name in names}}
        whole = {"host": about, "method": how, **document(run, missing, started, given)}
        given.json.write_text(json.dumps(whole, indent=1) + "\n")
    if given.csv:
        write_csv(given.csv, run.records)
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
