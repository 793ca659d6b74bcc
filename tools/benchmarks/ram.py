"""How the pause grows with RAM while the guest changes always the same: by the kernel, and by comparing.

Guest `counter` has touched all of its RAM and rewrites one word in every page of 8 MiB.  Tracking by the
kernel walks page tables (half a millisecond a GiB), comparing reads all RAM twice, so the second is a
line through the origin and the first nearly flat.
"""

from __future__ import annotations

from pathlib import Path

from tools.benchmarks.figures import Figure
from tools.benchmarks.protected import Protected
from tools.benchmarks.run import Run

ROUNDS = 1
SIZES_MIB = (128, 256, 512, 1024, 2048)
QUICK_SIZES_MIB = (128, 256)
DIRTY_MIB, EVERY_MS, DELAY_MS = 8, 50, 200
EPOCHS, QUICK_EPOCHS = 15, 3
FIRST = 3
SOURCES, QUICK_SOURCES = ("kernel", "scan"), ("scan",)
COPIES = 3
"""RAM of both nodes, and the primary's shadow."""
METHOD = (
    f"guest `counter`, all RAM touched, one word in every page of {DIRTY_MIB} MiB rewritten every "
    f"{EVERY_MS} ms, a period of {DELAY_MS} ms, {EPOCHS} epochs a round; the last lines: the slope between "
    "the smallest and the largest size"
)


def measure(run: Run) -> None:
    sizes = [size for size in (QUICK_SIZES_MIB if run.quick else SIZES_MIB) if fits(run, size)]
    sources = QUICK_SOURCES if run.quick else SOURCES
    figures = {(s, size): run.figure(f"{s}, {size} MiB: pause", "ms") for s in sources for size in sizes}
    for _ in run.rounds():
        for (source, size), figure in figures.items():
            with run.apart(f"{source}, {size} MiB"):
                one(run, source, size, figure)
    for source in sources:
        slope = run.figure(f"{source}: more pause a GiB of RAM", "ms")
        low, high = (figures[source, size].value("median") for size in (sizes[0], sizes[-1]))
        if low is None or high is None:
            continue
        slope.samples.append(max(0.0, high - low) / (sizes[-1] - sizes[0]) * 1024)


def one(run: Run, source: str, size: int, figure: Figure) -> None:
    append = f"mib={DIRTY_MIB} ms={EVERY_MS} fill={size - 8}"
    words = ("--checkpoint-delay", str(DELAY_MS), "--dirty-source", source)
    with Protected(run, "counter", *words, ram_mib=size, append=append) as pair:
        pair.wait("protected")
        epochs = pair.wait_epochs(pair.primary, QUICK_EPOCHS if run.quick else EPOCHS, FIRST, 120)
    for epoch in epochs:
        figure.samples.append(epoch["pause_ms"])
        run.record(source=source, ram_mib=size, **epoch)


def fits(run: Run, size_mib: int) -> bool:
    """Whether this host has memory for a pair of that size."""
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free_mib = int(facts["MemAvailable"].split()[0]) >> 10
    if size_mib * COPIES < free_mib:
        return True
    run.say(
        f"ram: {size_mib} MiB left out: {COPIES} times that is more than the {free_mib} MiB that are free"
    )
    return False
