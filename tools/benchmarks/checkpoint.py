"""What a checkpoint costs: the guest's pause, and what travels, by how much the guest changed.

Guest `counter` rewrites one word in every page of 0, 1, 8 and 64 MiB every 50 ms; it has touched all of
its RAM before, so that a comparison of all RAM reads memory and not the host's one page of zeroes.  Then
Redis under load, with the period that `colo up` takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tools.benchmarks import qemu_colo
from tools.benchmarks.protected import Protected, free_port
from tools.benchmarks.redis_client import Clients, Dialogue, Incrementing, Storing
from tools.benchmarks.run import Run

ROUNDS = 1
RAM_MIB = 256
FILLED_MIB = RAM_MIB - 8
"""Above the counter's own 4 MiB, and a little less than there is."""
QUICK_MIB = 8
EVERY_MS = 50
DELAY_MS, QUICK_DELAY_MS = 1000, 50
EPOCHS, QUICK_EPOCHS = 15, 3
REDIS_EPOCHS = 200
FIRST = 3
"""Epochs before it are left out: the first after a synchronisation, and room being made for the pages."""
SOURCES = ("kernel", "scan")
PAGE_KIB = 4
METHOD = (
    f"guest of {RAM_MIB} MiB; pause: guest stopped to released, in the guest's thread, so without the "
    "request (wake-up) and the commit that follows while it runs on; KiB: encoded pages and device state; "
    f"counter: a period of {DELAY_MS} ms, {EPOCHS} epochs a round from epoch {FIRST} on; goals: half of QEMU "
    "COLO's pause, fewer bytes than its full pages"
)

Column = tuple[str, str, Callable[[dict[str, Any]], float]]
OTHERS: tuple[Column, ...] = (
    ("pages sent", "", lambda epoch: epoch["pages_sent"]),
    ("wake-up", "ms", lambda epoch: epoch["stop_ms"]),
    ("commit", "ms", lambda epoch: epoch["commit_ms"]),
)


def measure(run: Run) -> None:
    points = [QUICK_MIB] if run.quick else list(qemu_colo.CHECKPOINT)
    counters = {(mib, source): Point(run, mib, source) for mib in points for source in SOURCES}
    redis = [Redis(run, name, dialogues) for name, dialogues in loads().items()]
    for _ in run.rounds():
        for point in counters.values():
            with run.apart(f"{point.mib} MiB, {point.source}"):
                point.measure(run)
        for load in redis[-1:] if run.quick else redis:
            with run.apart(load.name):
                load.measure(run)


class Point:
    """A counter that dirties ``mib`` MiB, with one dirty source."""

    def __init__(self, run: Run, mib: int, source: str) -> None:
        self.mib, self.source = mib, source
        peer = qemu_colo.CHECKPOINT[mib]
        name = f"{mib} MiB dirtied, {source}: "
        limit = peer.pause_ms / 2 if source == "kernel" else None  # comparing all RAM is for hosts without
        self.pause = run.figure(name + "pause", "ms", peer=peer.pause_ms, limit=limit)
        self.kib = run.figure("  a checkpoint", "KiB", peer=peer.kib, limit=peer.kib)
        self.others = [run.figure(f"  {what}", unit) for what, unit, _ in OTHERS]

    def measure(self, run: Run) -> None:
        words = ("--checkpoint-delay", str(QUICK_DELAY_MS if run.quick else DELAY_MS))
        append = f"mib={self.mib} ms={EVERY_MS} fill={FILLED_MIB}"
        source = ("--dirty-source", self.source)
        with Protected(run, "counter", *words, *source, ram_mib=RAM_MIB, append=append) as pair:
            pair.wait("protected")
            count = QUICK_EPOCHS if run.quick else EPOCHS
            epochs = pair.wait_epochs(pair.primary, count, FIRST, 30 + 6 * count * DELAY_MS / 1000)
        for epoch in epochs:
            self.pause.samples.append(epoch["pause_ms"])
            self.kib.samples.append(epoch["bytes_sent"] / 1024)
            for figure, (_, _, of) in zip(self.others, OTHERS, strict=True):
                figure.samples.append(of(epoch))
            run.record(guest="counter", mib=self.mib, source=self.source, **epoch)


def loads() -> dict[str, Callable[[], Sequence[Dialogue]]]:
    return {
        "Redis, INCR, 8 connections": lambda: [Incrementing(b"count:%d" % each) for each in range(8)],
        "Redis, SET 1 KiB, 8 connections of 16": lambda: [
            Storing(b"value:%d:" % each, 4000, 1024, 16) for each in range(8)
        ],
    }


class Redis:
    """Redis with one load, at the period that ``colo up`` takes by itself."""

    def __init__(self, run: Run, name: str, dialogues: Callable[[], Sequence[Dialogue]]) -> None:
        self._dialogues = dialogues
        self.name = name
        self.pause = run.figure(f"{name}: pause", "ms")
        self.kib = run.figure("  a checkpoint", "KiB")
        self.share = run.figure("  of its full pages", "%", limit=100.0, of="max")
        self.others = [run.figure(f"  {what}", unit) for what, unit, _ in OTHERS]
        self.answers = run.figure("  answers", "/s")

    def measure(self, run: Run) -> None:
        port = free_port()
        with Protected(run, "redis", ram_mib=RAM_MIB, publish=(port, 6379)) as pair:
            pair.wait("protected")
            run.say(f"redis: dirty source {pair.source(pair.primary)}")
            dialogues = self._dialogues()
            with Clients(port, dialogues):
                first = max(FIRST, len(pair.epochs(pair.primary)) + FIRST)
                epochs = pair.wait_epochs(pair.primary, run.scaled(REDIS_EPOCHS), first, 120)
        seconds = epochs[-1]["monotonic_s"] - epochs[0]["monotonic_s"]
        begin, end = epochs[0]["monotonic_s"], epochs[-1]["monotonic_s"]
        replies = [at_s for each in dialogues for at_s in each.replies if begin <= at_s <= end]
        self.answers.samples.append(len(replies) / seconds)
        for epoch in epochs:
            self._add(run, epoch)

    def _add(self, run: Run, epoch: dict[str, Any]) -> None:
        self.pause.samples.append(epoch["pause_ms"])
        self.kib.samples.append(epoch["bytes_sent"] / 1024)
        if epoch["pages_sent"]:
            self.share.samples.append(epoch["bytes_sent"] / 1024 / (epoch["pages_sent"] * PAGE_KIB) * 100)
        for figure, (_, _, of) in zip(self.others, OTHERS, strict=True):
            figure.samples.append(of(epoch))
        run.record(guest="redis", load=self.name, **epoch)
