"""Why two Linux guests say different things, and what each rule of a comparison removes.

Two machines run side by side (:mod:`tools.benchmarks.twins`) under loads that clients really make; what both
said is compared afterwards under one set of rules after the other (:mod:`tools.benchmarks.causes_rules`).
Needs root, for a TAP interface in a network namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from colo.errors import ColoError
from colo.experiment import loadgen
from colo.experiment.outcome import Unusable
from colo.network.host import Network
from colo.pair import warm
from tools.benchmarks.causes_rules import (
    CHECKPOINT_MS,
    RULES,
    SETTINGS,
    STREAMS,
    Outcome,
    Pair,
    judged,
    paired,
    placed,
    replayed,
    without,
)
from tools.benchmarks.emulator import usual_environment
from tools.benchmarks.host import ROOT, Unavailable, program
from tools.benchmarks.measure import aligned
from tools.benchmarks.net import GUEST, TAP, namespace
from tools.benchmarks.run import Run
from tools.benchmarks.twins import PRIMARY, SECONDARY, Epoch
from vmm.errors import GuestBuildError

ROUNDS = 2
SECONDS, QUICK_SECONDS = 4.0, 1.0
SETTLE_S = 0.4
"""After the load: the secondary says what it still has to say."""
WARM_UP_S, WARM_UPS = 3.0, 5
END_S = 90.0


@dataclass(frozen=True)
class Load:
    """Words for loadgen, and when the checkpoint is made that the two begin from."""

    name: str
    guest: str
    port: int
    mode: str
    connections: int
    argument: int = 64
    opened_before: bool = False
    """The connections are part of the checkpoint; else they begin after it."""


LOADS = (
    Load("echo, 1 connection", "kv", 7, "echo", 1),
    Load("echo, 1 connection, from before", "kv", 7, "echo", 1, opened_before=True),
    Load("INC, 8 connections", "kv", 7000, "inc", 8),
    Load("HTTP 1 KiB, new connections", "kv", 80, "http", 1),
    Load("bulk 100 kB, 1 connection", "kv", 7000, "bulk", 1, 100_000),
    Load("the time, 1 connection", "kv", 7000, "time", 1),
    Load("Redis INCR, 8 connections", "redis", 6379, "incr", 8),
)
QUICK_LOADS = LOADS[3:4]
METHOD = (
    "two paced machines in two processes, made the same by a checkpoint after a load that warms both up, and "
    "again whenever the strict rules find a difference; one serves the client, the other gets the same "
    "frames through the rewriter and is mute; what both say between two checkpoints is compared afterwards, "
    f"under rules that grow (late: {SETTINGS.wait_ms:g} ms, {SETTINGS.ack_wait_ms:g} ms for a mere "
    "acknowledgement); removed: of the frames that differ, by this rule; without it: how many differ under "
    "rule 4 if this one alone is missing; conversations: summed over epochs; checkpoints/s: how many would "
    f"end these differences if each took {CHECKPOINT_MS:g} ms, the time in checkpoints left out; first "
    "difference: the first field in which a frame and its counterpart differ; the last two count frames that "
    "waited for a checkpoint, and the comparison's own causes"
)
FIELDS = "fields that differ at all"
HEAD = (
    "load",
    "rules",
    "frames",
    "differ",
    "%",
    "removed",
    "without it",
    "conversations",
    "checkpoints/s",
    "first difference",
)
_decoder = msgspec.msgpack.Decoder(list[Epoch])


def measure(run: Run) -> None:
    if os.geteuid() != 0:
        raise Unavailable("a TAP interface and a network namespace need root: sudo tools/bench --only causes")
    try:
        client = loadgen.program()
        loads = QUICK_LOADS if run.quick else LOADS
        booted = {
            guest: warm.snapshot(guest, net=Network.unplugged, say=run.say)
            for guest in dict.fromkeys(load.guest for load in loads)
        }
    except (Unusable, ColoError, GuestBuildError) as exc:
        raise Unavailable(str(exc)) from exc
    with namespace(run) as name:
        inside = [program("ip"), "netns", "exec", name]
        for number in run.rounds():
            for load in loads:
                out = run.directory / f"{number}-{load.name}"
                out.mkdir()
                try:
                    ask(run, load, booted[load.guest], out, [*inside, str(client), GUEST], inside)
                except Unavailable as exc:  # the others can still be measured
                    run.failures.append(f"{load.name}: {exc}")
                    continue
                ours, theirs = (epochs(out / half) for half in (PRIMARY, SECONDARY))
                shutil.rmtree(out)
                record(run, load.name, number, ours, theirs)


def ask(run: Run, load: Load, snapshot: Path, out: Path, client: list[str], inside: list[str]) -> None:
    """Run both machines under ``load``."""
    seconds = QUICK_SECONDS if run.quick else SECONDS
    about = [*client, str(load.port), load.mode, str(load.connections)]
    with twins(inside, snapshot, out) as both:
        warm_up(run, [*about, str(WARM_UP_S), str(load.argument)])
        if not load.opened_before:
            both.checkpoint()
            run.finish([*about, str(seconds), str(load.argument)])
            return
        asking = subprocess.Popen(
            [*about, str(WARM_UP_S + seconds), str(load.argument)], stdout=subprocess.DEVNULL
        )
        try:
            asking.wait(WARM_UP_S)
        except subprocess.TimeoutExpired:
            both.checkpoint()
            asking.wait(END_S)
            return
        finally:
            asking.kill()
            asking.wait()
    raise Unavailable(f"{load.name}: the client ended with status {asking.returncode}")


def warm_up(run: Run, command: list[str]) -> None:
    """On a busy host the first answer of a guest that was just resumed may take longer than a load lasts."""
    for attempt in range(WARM_UPS, 0, -1):
        try:
            run.finish(command)
            return
        except Unavailable:
            if attempt == 1:
                raise


class Twins:
    """:mod:`tools.benchmarks.twins` in a process, whose words it is told."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self._process, self._out = process, out
        self.expect(b"ready\n")

    def expect(self, line: bytes) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != line:
            raise Unavailable(f"two machines: {last_words(self._out)}")

    def checkpoint(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self.expect(b"cut\n")


@contextmanager
def twins(inside: list[str], snapshot: Path, out: Path) -> Iterator[Twins]:
    """Both machines, running; their frames are in ``out`` afterwards."""
    command = [*inside, sys.executable, "-m", "tools.benchmarks.twins"]
    command += ["--load", str(snapshot), "--tap", TAP, "--out", str(out)]
    with (out / "errors").open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=usual_environment(),
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Twins(process, out)
        _settled(process, SETTLE_S)
        process.stdin.close()
        status = process.wait(END_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"two machines did not end within {END_S:g} s: {last_words(out)}") from None
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    if status:
        raise Unavailable(f"two machines ended with status {status}: {last_words(out)}")


def _settled(process: subprocess.Popen[bytes], settle_s: float) -> None:
    try:
        process.wait(settle_s)  # it should not
    except subprocess.TimeoutExpired:
        return
    raise Unavailable(f"two machines ended by themselves, with status {process.returncode}")


def last_words(out: Path) -> str:
    return (out / "errors").read_text(errors="replace").strip()[-1500:] or "no word of why"


def epochs(path: Path) -> list[Epoch]:
    return _decoder.decode(path.read_bytes())


def record(run: Run, load: str, number: int, ours: list[Epoch], theirs: list[Epoch]) -> None:
    """One row for each set of rules, and one with all fields that ever differ."""
    outcomes: list[list[Outcome]] = []
    differing: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for mine, its in zip(ours, theirs, strict=True):
        left, right = (
            placed((one.at_ns / 1e6, one.frame, one.shown) for one in each.heard) for each in (mine, its)
        )
        end_ms = mine.end_ns / 1e6
        pairs = paired(left, right, end_ms)
        differing += fields(pairs)
        outcomes.append([judged(pairs, rules) for rules in RULES])
        missed.update({RULES[n].name: judged(pairs, without(n)).differ for n in range(1, len(RULES))})
        outcomes[-1] += [replayed(mode, left, right, end_ms) for mode in STREAMS]
    seconds = sum(epoch.end_ns - epoch.begin_ns for epoch in ours) / 1e9
    about = {"load": load, "round": number, "epochs": len(ours), "seconds": round(seconds, 3)}
    for same in zip(*outcomes, strict=True):
        found = row(total(same))
        alone = {"differ_without": missed[found["rules"]]} if found["rules"] in missed else {}
        run.record(**about, **found, **alone)
    run.record(**about, rules=FIELDS, frames=sum(len(epoch.heard) for epoch in ours), first=told(differing))


def total(outcomes: Sequence[Outcome]) -> Outcome:
    """Of all epochs."""
    whole = Outcome(outcomes[0].rules, 0, 0, 0, 0, 0)
    for one in outcomes:
        for name in ("frames", "differ", "conversations", "conversations_differ", "checkpoints"):
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
        whole.first += one.first
    return whole


def row(outcome: Outcome) -> dict[str, Any]:
    return {
        "rules": outcome.rules,
        "frames": outcome.frames,
        "differ": outcome.differ,
        "conversations": outcome.conversations,
        "conversations_differ": outcome.conversations_differ,
        "checkpoints": outcome.checkpoints,
        "first": told(outcome.first),
    }


def fields(pairs: Sequence[Pair]) -> Counter[str]:
    """In how many frames each field differs, whatever else does; before the rewriter."""
    found: Counter[str] = Counter()
    for pair in pairs:
        if pair.ours is None or pair.theirs is None:
            found["extra" if pair.ours is None else "missing"] += 1
        found.update(pair.fields)
        found["order"] += pair.order
        found["order between"] += pair.order_between and not pair.order
    return +found


def told(counts: Counter[str]) -> str:
    """``ip.id 12, tcp.seq 3``: the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def counted(text: str) -> Counter[str]:
    """:func:`told`, read back."""
    parts = (part.rpartition(" ") for part in text.split(", ") if part)
    return Counter({name: int(count) for name, _, count in parts})


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """A block for each load, the sums over its rounds."""
    lines: list[tuple[str, ...]] = [HEAD]
    for load in dict.fromkeys(record["load"] for record in records):
        of_load = [record for record in records if record["load"] == load]
        before: int | None = None
        for number, rules in enumerate(dict.fromkeys(record["rules"] for record in of_load)):
            these = [record for record in of_load if record["rules"] == rules]
            name = load if number == 0 else ""
            if rules == FIELDS:
                lines.append((name, rules, *[""] * (len(HEAD) - 3), summed(these)))
                continue
            sums = {key: sum(one[key] for one in these) for key, value in these[0].items()
                    if isinstance(value, int | float)}  # fmt: skip
            removes = before is not None and rules != STREAMS["qemu"]
            removed = f"{before - sums['differ']:,}" if before is not None and removes else ""
            before = sums["differ"]
            lines.append((name, rules, *cells(sums, removed), summed(these)))
    return aligned(lines)


def cells(sums: dict[str, float], removed: str) -> Iterator[str]:
    yield f"{sums['frames']:,}"
    yield f"{sums['differ']:,}"
    yield f"{100 * sums['differ'] / max(sums['frames'], 1):.1f}"
    yield removed
    yield f"{sums['differ_without']:,}" if "differ_without" in sums else ""
    yield f"{sums['conversations_differ']:,} of {sums['conversations']:,}"
    yield f"{sums['checkpoints'] / sums['seconds']:.1f}"


def summed(records: Sequence[dict[str, Any]]) -> str:
    total: Counter[str] = Counter()
    for one in records:
        total.update(counted(one["first"]))
    return told(total)
