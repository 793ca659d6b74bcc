"""Faults of one machine: what a model fault (:mod:`colo.faults.model`) does to it, and when.

    armed = arm(machine, fault)
    machine.run(...)            the fault happens on its way; nobody need stop for it
    armed.happened              when, where the guest was, and what changed

A fault of the processor, RAM, the clock or an interrupt becomes an :class:`vmm.inject.Injection`, so it is an
input of the machine: a recording has it.  With ``private`` it is not: that is a fault of one of two machines
that are given the same inputs.  A disk fault begins at the machine's :class:`colo.faults.disk.FaultyDisk`.

Triggers are exact: the instruction with that number, the first one that begins at that time, that execution
of an address (:mod:`vmm.stops`).  Text is seen when its last byte is sent, and the fault comes at the next
boundary of blocks.  A step of the protocol is nothing that a machine knows: whoever knows calls ``fire``.

A permanent fault of a register or of RAM is a stuck-at, forced again before every block; a permanent one of
an instruction is the same in the RAM that holds it.  An instruction that has an address is changed when it is
executed next.  ``target`` is not looked at: who arms chose the machine.

Not here: faults of links, nodes and arbiters, which are of the world around a machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from colo.faults.disk import FaultyDisk
from colo.faults.model import (
    AtAddress,
    AtInstruction,
    AtText,
    AtTime,
    ClockDrift,
    ClockJump,
    DataFault,
    DiskFault,
    Fault,
    FaultError,
    InstructionFault,
    Intermittent,
    LostInterrupt,
    RegisterFault,
)
from vmm import inject
from vmm.errors import ConfigError
from vmm.inject import Done, Injection, What
from vmm.machine import Machine
from vmm.stops import Place

TEXT_KEPT = 256
"""Bytes of a console in which a text is looked for."""


class Start(NamedTuple):
    """What a trigger counts from."""

    ns: int
    instructions: int


class Happened(NamedTuple):
    """What a fault did; ``changed`` is empty when there was nothing to change, and ``failed`` says why."""

    ns: int
    instructions: int
    address: int
    changed: str
    failed: str


def arm(
    machine: Machine,
    fault: Fault,
    *,
    start: Start | None = None,
    private: bool = False,
    source: random.Random | None = None,
) -> ArmedFault:
    """Let ``fault`` happen to ``machine`` while it runs.  Not while it runs; a console's watcher comes first.

    ``start``: what its trigger counts from; by default the machine as it is.  ``source``: the randomness of a
    disk fault (which requests, which bits).
    """
    began = start or Start(machine.clock.now_ns, machine.stops.instructions)
    if isinstance(fault, DiskFault):
        return _ArmedDisk(machine, fault, began, _disk_of(machine), source or random.Random("disk"))
    return _ArmedGuest(machine, fault, began, private)


class ArmedFault:
    """A fault that waits for its trigger, or for its next time."""

    def __init__(self, machine: Machine, fault: Fault, start: Start) -> None:
        self.machine = machine
        self.fault = fault
        self.happened: list[Happened] = []
        self.told: Callable[[Happened], None] | None = None
        """Whom to tell of each."""
        repeated = isinstance(fault.persistence, Intermittent)
        self._left = fault.persistence.times if isinstance(fault.persistence, Intermittent) else 1
        self._period_ns = fault.persistence.period_ns if repeated else 0  # type: ignore[union-attr]
        self._place: Place | None = None
        self._began = False
        self._wait(start)

    @property
    def finished(self) -> bool:
        """It has happened as often as it will."""
        return self._left == 0

    @property
    def wanted(self) -> str:
        """What it waits for, in words; empty when finished."""
        if self.finished:
            return ""
        if self._began:
            return f"its next time: {self._left} of them"
        return repr(self.fault.when)

    def disarm(self) -> None:
        """It will not happen any more; what it did stays."""
        self._left = 0
        if self._place is not None:
            self.machine.stops.cancel(self._place)
            self._place = None

    def fire(self, ahead: int = 0) -> None:
        """Happen, ``ahead`` instructions from here; between two runs, or from what :mod:`vmm.stops` calls."""
        if self.finished:
            return
        if self._place is not None:
            self.machine.stops.cancel(self._place)
            self._place = None
        self._began = True
        self._strike(ahead)

    def _wait(self, start: Start) -> None:
        stops = self.machine.stops
        match self.fault.when:
            case AtTime(ns=ns):
                self._place = stops.at_time(start.ns + ns, self.fire)
            case AtInstruction(count=count):
                self._place = stops.at_instruction(start.instructions + count, self.fire)
            case AtAddress(address=address, hits=hits):
                self._place = stops.at_address(address, hits, self.fire)
            case AtText(text=text, count=count):
                _Reader(self.machine, text.encode(), count, lambda: stops.soon(self.fire))

    def _strike(self, ahead: int) -> None:
        raise NotImplementedError

    def _note(self, happened: Happened) -> None:
        """It happened once more; the next time is a period after this one."""
        self.happened.append(happened)
        self._left -= 1
        if self._left:
            self._place = self.machine.stops.at_time(happened.ns + self._period_ns, self.fire)
        if self.told is not None:
            self.told(happened)


class _ArmedGuest(ArmedFault):
    """A fault of the processor, of RAM, of the clock or of an interrupt."""

    def __init__(self, machine: Machine, fault: Fault, start: Start, private: bool) -> None:
        what, self._at = _what(fault)
        try:
            machine.injector.check(what)
        except ConfigError as exc:
            raise FaultError((), repr(fault), "a fault of a machine", str(exc)) from None
        self._private = private
        self._sent: Injection | None = None
        self._what = what
        super().__init__(machine, fault, start)

    def _strike(self, ahead: int) -> None:
        if self._at is not None and self._sent is None and not self._is_its_address(ahead):
            self._place = self.machine.stops.at_address(self._at, 1, self._inject)
        else:
            self._inject(ahead)

    def _is_its_address(self, ahead: int) -> bool:
        return isinstance(self.fault.when, AtAddress) and self.fault.when.address == self._at and not ahead

    def _inject(self, ahead: int) -> None:
        machine = self.machine
        if machine.stops.inside and machine.door.recorder is not None and not self._private:
            # A log knows boundaries only, and this place was found inside a block.
            self._place = machine.stops.at_time(machine.clock.now_ns, self._inject)
            return
        sent = Injection(self._what, ahead, self._address())
        self._sent = sent
        machine.injector.told.append(self._carried_out)
        if self._private or machine.stops.inside:
            machine.injector.take(sent)
        else:
            machine.injector.enter(sent)

    def _address(self) -> int | None:
        """The address without which it does not happen."""
        if self._at is not None:
            return self._at
        first = not self.happened and isinstance(self.fault.when, AtAddress)
        return self.fault.when.address if first and isinstance(self.fault.when, AtAddress) else None

    def _carried_out(self, done: Done) -> bool:
        """Is it ours?"""
        if done.injection != self._sent:
            return False
        self.machine.injector.told.remove(self._carried_out)
        self._sent = None
        if done.injection.at is not None and done.address != done.injection.at:
            self._place = self.machine.stops.at_address(done.injection.at, 1, self._inject)
        else:
            self._note(Happened(done.ns, done.instructions, done.address, done.changed, done.failed))
        return True


class _ArmedDisk(ArmedFault):
    """A fault of a machine's disk."""

    def __init__(
        self, machine: Machine, fault: DiskFault, start: Start, disk: FaultyDisk, source: random.Random
    ) -> None:
        self._disk, self._source, self._disk_fault = disk, source, fault
        super().__init__(machine, fault, start)

    def _strike(self, ahead: int) -> None:
        """A disk is asked by whole instructions, so the ``ahead`` ones need not be waited for."""
        stops, now_ns = self.machine.stops, self.machine.clock.now_ns
        self._disk.begin(self._disk_fault, now_ns, self._source)
        self._note(
            Happened(now_ns, stops.instructions, stops.address, f"disk: {self._disk_fault.effect}", "")
        )


class _Reader:
    """Looks for a text on the console, in front of whoever watched it before."""

    def __init__(self, machine: Machine, wanted: bytes, count: int, found: Callable[[], None]) -> None:
        self._wanted, self._left, self._found = wanted, count, found
        self._heard = bytearray()
        self._next = machine.serial.watch
        machine.serial.watch = self._hear

    def _hear(self, byte: int) -> None:
        if self._left:
            self._heard.append(byte)
            if self._heard.endswith(self._wanted):
                self._heard.clear()
                self._left -= 1
                if not self._left:
                    self._found()
            del self._heard[: -max(TEXT_KEPT, len(self._wanted))]
        if self._next is not None:
            self._next(byte)


def _what(fault: Fault) -> tuple[What, int | None]:
    """What is injected, and the address at which it has to be."""
    stuck = fault.persistence == "permanent"
    match fault:
        case RegisterFault():
            return inject.Register(fault.register, *_change(fault), stuck), None
        case DataFault():
            virtual = fault.space == "virtual"
            return inject.Memory(fault.address, virtual, fault.width, *_change(fault), stuck), None
        case InstructionFault():
            if not stuck:
                return inject.Code(*_change(fault)), fault.address
            if fault.address is None:
                return inject.Code(*_change(fault), stuck=True), None
            return inject.Memory(fault.address, True, inject.CODE_BYTES, *_change(fault), True), None
        case ClockJump():
            return inject.ClockJump(fault.by_ns), None
        case ClockDrift():
            return inject.ClockDrift(fault.ppm, fault.for_ns), None
        case LostInterrupt():
            return inject.Lost(fault.vector, fault.line, 0 if stuck else fault.times), None
    kind = str(type(fault).__struct_config__.tag)
    raise FaultError(("kind",), repr(kind), "a fault of one machine", "arm it in a world")


def _change(fault: RegisterFault | DataFault | InstructionFault) -> tuple[int, int]:
    """The bits to clear, and then those to toggle."""
    match fault.operation:
        case "set0":
            return fault.mask, 0
        case "set1":
            return fault.mask, fault.mask
        case "toggle":
            return 0, fault.mask
    return fault.mask, fault.value


def _disk_of(machine: Machine) -> FaultyDisk:
    found: Sequence[FaultyDisk] = [disk for disk in machine.disks if isinstance(disk, FaultyDisk)]
    if len(found) != 1:
        raise FaultError(
            ("kind",),
            f"'disk', on a machine with {len(machine.disks)} disks of which {len(found)} can have faults",
            "one that can",
            "give the machine a colo.faults.disk.FaultyDisk",
        )
    return found[0]
