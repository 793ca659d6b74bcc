"""The machine that a campaign is about, on its way through its scenario.

It runs alone and free, from the guest's booted snapshot, in this process; nothing of the host reaches it.
:meth:`Subject.advance` moves it on and lets inputs enter at their times.  Where it is stopped in between
makes no difference to the guest, so that a walker may stop wherever a child has to be forked.

A guest that waits for nothing but inputs (no alarm is armed) is moved to the next one.  A guest that resets
itself has ended: what it would do after a boot is another scenario.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from colo.campaign.scenario import Scenario
from colo.errors import ColoError
from colo.faults.disk import FaultyDisk
from colo.pair import warm
from vmm import hashing
from vmm.backends.disk import CopyOnWrite
from vmm.clock import NEVER_NS
from vmm.launch import LaunchOptions, launch
from vmm.machine import Ended, Machine
from vmm.ram import PAGE_SIZE

if TYPE_CHECKING:
    from vmm.machine import BlockBackend

PAGE_DIGEST_SIZE = 8
"""Enough to find a difference; that there is none is decided by :meth:`Subject.state`."""

Say = Callable[[str], None]


class Said(msgspec.Struct, frozen=True, array_like=True):
    """An output: a line of the console (or a long piece of one), or a frame."""

    ns: int
    port: str
    data: bytes


class Subject:
    """One guest from its start state on.  Use it in a ``with`` statement."""

    def __init__(self, scenario: Scenario, say: Say = lambda text: None) -> None:
        scenario.check()
        self.scenario = scenario
        self._opened = ExitStack()
        self._disks: list[FaultyDisk] = []
        self.machine = self._launched(say)
        self.start_ns = self.machine.clock.now_ns
        self.start_instructions = self.machine.stops.instructions
        self.ended: Ended | None = None
        self.said: list[Said] = []
        self._entered = 0
        self._lines_bytes = 0
        self._require_ports()
        self.machine.door.recorder = self

    def _launched(self, say: Say) -> Machine:
        wanted = self.scenario
        path = warm.snapshot(wanted.guest, net="none", ram_mib=wanted.ram_mib, append=wanted.append, say=say)
        options = LaunchOptions(guest=wanted.guest, load=str(path), append=wanted.append, paced=False)
        launched = self._opened.enter_context(launch(options, say=say, wrap_disk=self._wrap_disk))
        for disk in self._disks:
            disk.attach(launched.machine)
        launched.machine.restart_on_reset = False
        return launched.machine

    def _wrap_disk(self, number: int, disk: BlockBackend) -> BlockBackend:
        """What keeps its changes in memory may have faults; a file is nobody's to damage."""
        if not isinstance(disk, CopyOnWrite):
            return disk
        self._disks.append(FaultyDisk(disk))
        return self._disks[-1]

    def _require_ports(self) -> None:
        ports = self.machine.door.ports
        for name in (*self.scenario.observe, *(each.port for each in self.scenario.inputs)):
            if name not in ports:
                self.close()
                raise ColoError(
                    f"scenario: guest {self.scenario.guest} has no port {name!r}: expected one of"
                    f" {', '.join(ports)}"
                )

    # The recorder of the machine's door

    def input(self, ns: int, port: str, payload: bytes) -> None:
        """Known from the scenario."""

    def output(self, ns: int, port: str, payload: bytes) -> None:
        self.said.append(Said(ns - self.start_ns, port, payload))
        if port == self.machine.serial.port:
            self._lines_bytes += len(payload)

    def mark(self, ns: int, state_hash: bytes) -> None:
        """Nobody asked for one."""

    # Running

    @property
    def now_ns(self) -> int:
        """Virtual time since the start state."""
        return self.machine.clock.now_ns - self.start_ns

    def advance(self, until_ns: int) -> None:
        """To the first block boundary at or after ``until_ns``, or to the guest's end."""
        while self.ended is None and self.now_ns < until_ns:
            self._run(min(until_ns, self._next_input_ns()))
            self._enter_due()

    def _next_input_ns(self) -> int:
        inputs = self.scenario.inputs
        return inputs[self._entered].at_ns if self._entered < len(inputs) else NEVER_NS

    def _enter_due(self) -> None:
        while self.ended is None and self._next_input_ns() <= self.now_ns:
            each = self.scenario.inputs[self._entered]
            self._entered += 1
            self.machine.door.enter(each.port, each.data)

    def _run(self, until_ns: int) -> None:
        ended = self.machine.run(self.start_ns + until_ns)
        if ended is Ended.IDLE:
            self.machine.clock.jump(self.start_ns + until_ns)
        elif ended not in (Ended.TIME, Ended.PAUSED, Ended.EXACT):
            self.ended = ended

    # Looking

    @property
    def instructions(self) -> int:
        """Executed since the start state."""
        return self.machine.stops.instructions - self.start_instructions

    def state(self) -> bytes:
        """Digest of all that the guest can notice, its disks included."""
        return hashing.state_digest(self.machine.everything(), hashing.ram_digest(self.machine.ram.array))

    def parts(self) -> bytes:
        """The same without RAM: what is cheap to compare."""
        return hashing.state_digest(self.machine.everything(), b"")

    def page_digest(self, page: int) -> bytes:
        """Of one page of the mapping."""
        at = page * PAGE_SIZE
        data = self.machine.ram.array[at : at + PAGE_SIZE]
        return hashlib.blake2b(data.data, digest_size=PAGE_DIGEST_SIZE).digest()

    @property
    def tail(self) -> bytes:
        """What the guest has said of a line that it has not ended yet."""
        console = self.machine.console
        self.machine.serial.show()
        unended = console.total - self._lines_bytes
        return console.data[-unended:] if unended else b""

    @property
    def exit_code(self) -> int | None:
        return self.machine.exit_code

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
