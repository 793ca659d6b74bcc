"""A protected guest for a benchmark: ``colo up`` as a process, what it says, and its nodes' traces.

Everything is taken from outside, as a person would have it: the JSON lines of ``colo up``, the traces
that ``--trace`` makes nodes write (times in them are CLOCK_MONOTONIC, as are ours), signals, and /proc.
Pairs are kept in a runtime directory of the run, so that nobody else's pair is met.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from colo.qmp.client import Client
from tools.benchmarks.emulator import Lost, usual_environment
from tools.benchmarks.host import ROOT
from tools.benchmarks.run import Run

WITHIN_S = 120.0
"""For anything that a pair does by itself: a guest that is booted first, on a busy host."""
STOP_S = 30.0
LOOK_S = 0.02
"""How often a trace is looked at."""
STATES = ("protected", "colo-exit", "died")
_numbers = count()


@dataclass(frozen=True)
class Said:
    """A line of ``colo up``, and when it came."""

    at_s: float
    event: str
    facts: dict[str, Any]


@dataclass
class Member:
    """A node: its name is that of its trace, too."""

    name: str
    pid: int


QUICK_SILENCE_MS = "3000"
"""A quick run is a test, on a host that may be busy: what is killed is noticed by its sockets anyway."""


class Protected:
    """Use it in a ``with`` statement; it is entered when ``colo up`` was started, not yet protected."""

    def __init__(
        self,
        run: Run,
        guest: str,
        *words: str,
        ram_mib: int | None = None,
        append: str = "",
        publish: tuple[int, int] | None = None,
    ) -> None:
        """``words`` are more words for ``colo up``; ``publish`` a port here and the guest's."""
        self._guest = guest
        self._directory = Path(tempfile.mkdtemp(prefix="pair-", dir=run.directory))
        self._errors = (self._directory / "stderr").open("w+b")
        name = f"bench-{os.getpid()}-{next(_numbers)}"
        self._home = run.directory / "pairs" / name
        patience = ("--silence", QUICK_SILENCE_MS) if run.quick else ()
        command = ["up", guest, "--name", name, "--trace", str(self._directory), "--json", *patience, *words]
        command += ["--ram", str(ram_mib)] if ram_mib else []
        command += ["--append", append] if append else []
        command += ["--publish", f"{publish[0]}:{publish[1]}"] if publish else []
        self.said: list[Said] = []
        self._news = threading.Condition()
        self._over = False
        self._primary: Member | None = None
        self._secondary: Member | None = None
        self._pids: list[int] = []
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "colo.cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=usual_environment() | {"COLO_RUNTIME": str(self._home.parent)},
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def __enter__(self) -> Protected:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            for node in filter(None, (self._primary, self._secondary)):
                _signal(node.pid, signal.SIGKILL)  # nodes outlive a supervisor that is killed
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    # What it says

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            at_s = time.monotonic()
            facts = json.loads(line)
            said = Said(at_s, facts.pop("event"), facts)
            with self._news:
                self._take(said)
                self.said.append(said)
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def _take(self, said: Said) -> None:
        """Who is who now."""
        if said.event == "node":
            member = Member(said.facts["node"], said.facts["pid"])
            if self._primary is None:
                self._primary = member
            else:
                self._secondary = member
        elif said.event == "colo-exit" and said.facts["running"]:
            nodes = [node for node in (self._primary, self._secondary) if node is not None]
            self._primary = next(node for node in nodes if node.name == said.facts["node"])
            self._secondary = None

    def wait(self, event: str, after: int = 0, within_s: float = WITHIN_S) -> Said:
        """The first such event that is said after the first ``after`` ones, past or future."""
        with self._news:
            self._news.wait_for(lambda: self._found(event, after) is not None or self._failed, within_s)
            found = self._found(event, after)
        if found is None:
            self._errors.seek(0)
            words = self._errors.read()[-1000:].decode(errors="replace").strip()
            last = "; ".join(f"{each.event} {each.facts}" for each in self.said[-3:])
            why = "; ".join(self._reasons())
            raise Lost(f"colo up {self._guest}: no {event!r} within {within_s:g} s: {words or last} ({why})")
        return found

    def _reasons(self) -> Iterator[str]:
        """Why pairings ended, as the nodes themselves saw it."""
        for path in sorted(self._directory.glob("*.jsonl")):
            for each in lines_of(path):
                if each["event"] == "pairing-ended":
                    yield f"{path.stem} at {each['monotonic_s']:.3f} s: {each['reason']}"

    @property
    def _failed(self) -> bool:
        return self._over or any(each.event == "failed" for each in self.said[-2:])

    def _found(self, event: str, after: int) -> Said | None:
        return next((each for each in self.said[after:] if each.event == event), None)

    @property
    def primary(self) -> Member:
        assert self._primary is not None, "wait for 'protected' first"
        return self._primary

    @property
    def secondary(self) -> Member:
        assert self._secondary is not None, "wait for 'protected' first"
        return self._secondary

    @property
    def is_protected(self) -> bool:
        """Since the last failover, if there was one."""
        with self._news:
            last = next((each for each in reversed(self.said) if each.event in STATES), None)
        return last is not None and last.event == "protected"

    def kill(self, node: Member) -> float:
        """``kill -9``, and when."""
        at_s = time.monotonic()
        _signal(node.pid, signal.SIGKILL)
        return at_s

    # Traces

    def trace(self, node: Member) -> list[dict[str, Any]]:
        """What a node has written so far."""
        return lines_of(self._directory / f"{node.name}.jsonl")

    def epochs(self, node: Member, first: int = 0) -> list[dict[str, Any]]:
        return [each for each in self.trace(node) if each["event"] == "epoch" and int(each["epoch"]) >= first]

    def wait_epochs(self, node: Member, wanted: int, first: int, within_s: float) -> list[dict[str, Any]]:
        """``wanted`` epochs, from number ``first`` on."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = self.epochs(node, first)
            return len(found) >= wanted

        until(there, within_s, f"colo up {self._guest}: {wanted} epochs of node {node.name}")
        return found[:wanted]

    def source(self, node: Member) -> str:
        """What its dirty source is, and why, in the node's own words."""
        with Client(self._home / f"{node.name}.qmp") as client:
            facts = client.execute("query-colo-status")["x-node"]
        return f"{facts['dirty-source']}: {facts['dirty-reason']}"


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace that are whole."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def warm_up(run: Run) -> None:
    """One pair that nobody measures: the first one after a change compiles what the next ones find."""
    if run.quick:
        return  # nor the next ones
    with Protected(run, "counter") as pair:
        pair.wait("protected")


def until(happened: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > deadline:
            raise Lost(f"{what}: not within {within_s:g} s")
        time.sleep(LOOK_S)


def resident_mb(pid: int) -> float:
    """VmRSS of proc(5), in units of 1000 kB."""
    return _memory(pid, "status", "VmRSS:")


def proportional_mb(pid: int) -> float:
    """The same, but of pages that several processes have, its share only."""
    return _memory(pid, "smaps_rollup", "Pss:")


def _memory(pid: int, file: str, name: str) -> float:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1000
    raise Lost(f"process {pid} has no memory: it has ended")


def free_port() -> int:
    """A TCP port of this host that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spread(low_s: float, high_s: float, number: int) -> Iterator[float]:
    """``number`` waits that fall on every phase of whatever is periodic: evenly, never at random."""
    golden = 0.618_033_988_749_895
    for index in range(number):
        yield low_s + (high_s - low_s) * (index * golden % 1.0)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise Lost(f"process {pid} had ended before it was to be killed") from None
