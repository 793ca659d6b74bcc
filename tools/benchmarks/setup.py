"""From nothing to a protected Redis, and what its two processes have in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tools.benchmarks import qemu_colo
from tools.benchmarks.emulator import Emulator
from tools.benchmarks.figures import Figure
from tools.benchmarks.protected import (
    WITHIN_S,
    Member,
    Protected,
    free_port,
    proportional_mb,
    resident_mb,
    until,
)
from tools.benchmarks.redis_client import Clients, Dialogue, Incrementing, Storing
from tools.benchmarks.run import Run

ROUNDS = 5
GUEST, PORT, READY = "redis", 6379, "GUEST-READY redis"
RAM_MIB = 256
DIRTIED_MIB = 64
VALUE_KIB = 64
LOAD_S = 3.0
METHOD = (
    f"guest `{GUEST}` with {RAM_MIB} MiB; seconds from starting `colo up`, whose guest has a snapshot of its "
    "boot (QEMU COLO's: a cold boot), to the commit of epoch 0 in its trace; memory: VmRSS in units of "
    f"1000 kB, at first, after {LOAD_S:g} s of INCR by 8 connections, and when {DIRTIED_MIB} MiB were stored"
)
MOMENTS = ("idle", "after load", f"{DIRTIED_MIB} MiB dirtied")
PRIMARY = (qemu_colo.PRIMARY_IDLE_MB, qemu_colo.PRIMARY_MB, qemu_colo.PRIMARY_DIRTIED_MB)
SECONDARY = (qemu_colo.SECONDARY_IDLE_MB, qemu_colo.SECONDARY_MB, qemu_colo.SECONDARY_DIRTIED_MB)


def measure(run: Run) -> None:
    Setup(run).measure(run)


class Setup:
    """What is measured at every start."""

    def __init__(self, run: Run) -> None:
        self.whole = run.figure(
            "colo up to the first checkpoint", "s", peer=qemu_colo.SETUP_S, limit=qemu_colo.SETUP_S
        )
        self.parts = {
            "guest-ready": run.figure("  to the guest's snapshot", "s"),
            "network": run.figure("  to the network", "s"),
            "n0": run.figure("  to a running primary", "s"),
            "n1": run.figure("  to a waiting secondary", "s"),
        }
        self.synchronised = run.figure("  synchronisation", "s")
        self.boot = run.figure("the snapshot: boot and save, once a build", "s")
        self.plain = run.figure("memory of plain `colo run`", "MB", peer=qemu_colo.PLAIN_MB)
        self.primary = [
            memory(run, f"primary, {name}", peer) for name, peer in zip(MOMENTS, PRIMARY, strict=True)
        ]
        self.secondary = [
            memory(run, f"secondary, {name}", peer) for name, peer in zip(MOMENTS, SECONDARY, strict=True)
        ]

    def measure(self, run: Run) -> None:
        with Protected(run, GUEST, ram_mib=RAM_MIB) as pair:
            pair.wait("protected")  # now there is a snapshot
        for number in run.rounds():
            self._boot(run)
            self._plain()
            port = free_port()
            with Protected(run, GUEST, ram_mib=RAM_MIB, publish=(port, PORT)) as pair:
                row = self._times(pair)
                row |= self._memory(pair, 0)
                with Clients(port, [Incrementing(b"count:%d" % each) for each in range(8)]):
                    time.sleep(LOAD_S / 10 if run.quick else LOAD_S)
                row |= self._memory(pair, 1)
                store(port, run.scaled(DIRTIED_MIB))
                row |= self._memory(pair, 2)
            run.record(round=number, **row)

    def _boot(self, run: Run) -> None:
        command = [sys.executable, "-m", "colo.cli", "run", GUEST, "--ram", str(RAM_MIB), "--free-running"]
        command += ["--net", "none,offloads", "--exit-on", READY, "--save", str(run.directory / "booted")]
        began = time.monotonic()
        run.finish(command)
        self.boot.samples.append(time.monotonic() - began)
        (run.directory / "booted").unlink()

    def _plain(self) -> None:
        with Emulator([sys.executable, "-m", "colo.cli", "run", GUEST, "--ram", str(RAM_MIB)]) as plain:
            plain.expect(READY)
            self.plain.samples.append(resident_mb(plain.pid))

    def _times(self, pair: Protected) -> dict[str, float]:
        pair.wait("protected")
        until(lambda: len(pair.epochs(pair.primary)) > 0, WITHIN_S, "the commit of epoch 0")
        committed_s = float(pair.epochs(pair.primary)[0]["monotonic_s"])
        when = {str(said.facts.get("node", said.event)): said.at_s for said in pair.said}
        row = {name: when[name] - pair.started_s for name in self.parts}
        for name, figure in self.parts.items():
            figure.samples.append(row[name])
        self.synchronised.samples.append(committed_s - when["n1"])
        self.whole.samples.append(committed_s - pair.started_s)
        return {**row, "first_checkpoint": committed_s - pair.started_s}

    def _memory(self, pair: Protected, moment: int) -> dict[str, float]:
        row = {}
        for role, node, figures in self._sides(pair):
            found = resident_mb(node.pid)
            figures[moment].samples.append(found)
            row[f"{role} {MOMENTS[moment]}, MB"] = found
            row[f"{role} {MOMENTS[moment]}, proportional MB"] = proportional_mb(node.pid)
        return row

    def _sides(self, pair: Protected) -> Sequence[tuple[str, Member, list[Figure]]]:
        return (("primary", pair.primary, self.primary), ("secondary", pair.secondary, self.secondary))


def memory(run: Run, what: str, peer: float) -> Figure:
    return run.figure(f"memory of the {what}", "MB", peer=peer, limit=peer)


def store(port: int, mib: int) -> None:
    """Put so many MiB into Redis, and wait until it has them."""
    count = mib * 1024 // VALUE_KIB
    storing = Storing(b"value:", count, VALUE_KIB << 10)
    dialogues: list[Dialogue] = [storing]
    with Clients(port, dialogues):
        until(lambda: len(storing.replies) >= count, WITHIN_S, f"{mib} MiB stored")
