"""TCP through virtio-net and a TAP interface; the client, ``colo.experiment.loadgen``, in the host's kernel.

Everything is in a network namespace of its own, made and removed here: the TAP interface with the
address that the guest expects of its gateway, the emulators, the client.  Needs root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from colo.experiment import loadgen
from colo.experiment.outcome import Unusable
from tools.benchmarks.emulator import MAC, Emulator
from tools.benchmarks.host import Unavailable, program
from tools.benchmarks.measure import SIDES, Measure
from tools.benchmarks.run import Run

METHOD = (
    "guest `kv` behind a TAP interface with virtio headers in a network namespace, vhost off; loadgen "
    "keeps one request in flight on each connection for some seconds, after a second that is not counted; "
    "ours is paced (virtual time does not run ahead of the wall)"
)
TAP, HOST, GUEST = "tap0", "10.77.0.1/24", "10.77.0.2"
SECONDS, WARM_UP_S = 3.0, 1.0
CPU = "cpu"
REPORT = re.compile(r"(\w+)=([\d.]+)")


@dataclass(frozen=True)
class Load:
    """Arguments of loadgen; ``value`` and ``unit`` say what of its report is the throughput."""

    name: str
    port: int
    mode: str
    connections: int
    argument: int = 64
    value: str = "rate"
    unit: str = "/s"


LOADS = (
    Load("echo, 1 connection", 7, "echo", 1),
    Load("INC, 8 connections", 7000, "inc", 8),
    Load("HTTP 1 KiB, new connections", 80, "http", 1),
    Load("bulk 100 kB, 1 connection", 7000, "bulk", 1, 100_000, "MBps", "MB/s"),
)


def measure(run: Run) -> None:
    if os.geteuid() != 0:
        raise Unavailable("a TAP interface and a network namespace need root: sudo tools/bench --only net")
    try:
        client_program = loadgen.program()
    except Unusable as exc:
        raise Unavailable(str(exc)) from exc
    board = run.linux("kv")
    shown = {load: columns(run, load) for load in LOADS}
    with namespace(run) as name:
        board = replace(board, tap=TAP, namespace=name, paced=True)
        client = [program("ip"), "netns", "exec", name, str(client_program), GUEST]
        for _ in run.rounds():
            for side in SIDES:
                with Emulator.start(side, board) as emulator:
                    emulator.expect("GUEST-READY kv")
                    for load in LOADS:
                        found = ask(run, client, load, emulator)
                        for what, measure in shown[load].items():
                            measure.add(side, found[what])


def columns(run: Run, load: Load) -> dict[str, Measure]:
    """What is shown of a load, by its name in the client's report."""
    return {
        load.value: run.measure(load.name, load.unit, more_is_better=True, goal=1.0),
        "p50": run.measure("  latency, median", "us"),
        "p99": run.measure("  latency, 99th percentile", "us"),
        CPU: run.measure("  CPU time an answer", "us", goal=1.0),
    }


def ask(run: Run, client: list[str], load: Load, emulator: Emulator) -> dict[str, float]:
    """The client's report, and the CPU time that the emulator used for each answer."""
    words = [*client, str(load.port), load.mode, str(load.connections)]
    shorter = 10 if run.quick else 1
    run.finish([*words, str(WARM_UP_S / shorter), str(load.argument)])
    before = emulator.cpu_seconds()
    said = run.finish([*words, str(SECONDS / shorter), str(load.argument)])
    used = emulator.cpu_seconds() - before
    found = {name: float(value) for name, value in REPORT.findall(said)}
    return {**found, CPU: used / found["n"] * 1e6}


@contextmanager
def namespace(run: Run) -> Iterator[str]:
    """A network namespace with a TAP interface in it; its end takes everything along."""
    ip, name = program("ip"), f"colo-bench-{os.getpid()}"
    run.finish([ip, "netns", "add", name])
    try:
        run.finish([ip, "-n", name, "link", "set", "lo", "up"])
        run.finish([ip, "-n", name, "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])
        run.finish([ip, "-n", name, "addr", "add", HOST, "dev", TAP])
        run.finish([ip, "-n", name, "link", "set", TAP, "up"])
        neighbour = [GUEST, "lladdr", MAC, "dev", TAP, "nud", "permanent"]  # restarts leave no failed entry
        run.finish([ip, "-n", name, "neigh", "replace", *neighbour])
        yield name
    finally:
        run.finish([ip, "netns", "del", name])
