"""A disk with faults: a copy-on-write medium between a disk controller and its image.

Effects, named as in the storage literature (Bairavasundaram and others, *An Analysis of Latent Sector
Errors*, 2007, and *An Analysis of Data Corruption in the Storage Stack*, 2008; Alagappan and others,
*Protocol-Aware Recovery*, 2018):

=========== ========================================================================================
eio         the request fails: a virtio status or an IDE error, as its data sheet says
full        every write fails: a thin volume that has no blocks left
slow        the request takes so much longer, in virtual time
torn        the first part of a write is stored, whole sectors, and the write says that it succeeded
lost        nothing is stored, and the write says that it succeeded; reads find what was there before
misdirected it is stored so many sectors away, over what is there
rot         bits flip in what is stored, where the request reads, before it reads
=========== ========================================================================================

What a fault stores or does not store is a change of the medium like any other: it travels in snapshots and to
a replica.  The faults themselves do not.  Randomness comes from the ``source`` of each, and which requests
come is the guest's doing, so the same start gives the same damage.

A request is answered before it returns (:mod:`vmm.devices.block`), so while one is slow the processor stands
still, as under a hypervisor that does I/O in the processor's thread; alarms that came due are late.

Not modelled: faults of the write cache between a write and its flush (a lost write here is lost for good), a
disk that goes away, latent errors that a rewrite heals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from colo.faults.model import DiskFault
from vmm.backends.disk import CopyOnWrite
from vmm.clock import NEVER_NS
from vmm.device import Pieces
from vmm.errors import BackendError
from vmm.machine import Machine

SECTOR = 512
_READS = ("rot",)
_WRITES = ("torn", "lost", "misdirected", "full")


@dataclass
class _Active:
    fault: DiskFault
    until_ns: int
    left: int
    source: random.Random

    def hits(self, now_ns: int, sector: int, count: int, writing: bool) -> bool:
        """Does it happen to this request?  Counts it if it does."""
        fault = self.fault
        end = fault.first_sector + fault.sectors if fault.sectors else 1 << 62
        if now_ns >= self.until_ns or sector + count <= fault.first_sector or sector >= end:
            return False
        wanted = "write" if writing else "read"
        if fault.effect in (_READS if writing else _WRITES):
            return False
        if fault.requests not in ("both", wanted) or self.source.random() >= fault.probability:
            return False
        self.left -= 1
        return True


class FaultyDisk(CopyOnWrite):
    """``disk`` as it is now, with changes of its own; nothing is written to it any more.

    Who opened ``disk`` closes it.
    """

    __slots__ = ("_active", "_inner", "_now_ns", "_stall", "struck")

    def __init__(self, disk: CopyOnWrite, name: str = "faulty") -> None:
        super().__init__(disk, name)
        self._inner = disk
        self._active: list[_Active] = []
        self._now_ns: Callable[[], int] = lambda: 0
        self._stall: Callable[[int], None] = lambda ns: None
        self.struck: dict[str, int] = {}
        """How many requests each effect has hit."""

    def attach(self, machine: Machine) -> None:
        """Whose time it is, and who waits when a request is slow."""
        self._now_ns = lambda: machine.clock.now_ns
        self._stall = lambda ns: machine.clock.jump(machine.clock.now_ns + ns)

    def sibling(self) -> FaultyDisk:
        return FaultyDisk(self._inner)

    def begin(self, fault: DiskFault, now_ns: int, source: random.Random) -> None:
        """From now on: to the end, for a time, or for a number of requests."""
        permanent = fault.persistence == "permanent"
        until_ns = NEVER_NS if permanent or not fault.for_ns else now_ns + fault.for_ns
        counted = not permanent and not fault.for_ns
        self._active.append(_Active(fault, until_ns, max(fault.times, 1) if counted else NEVER_NS, source))

    # Requests

    def read(self, sector: int, count: int) -> bytes:
        self._before(sector, count, writing=False)
        return super().read(sector, count)

    def read_into(self, sector: int, pieces: Pieces) -> None:
        self._before(sector, pieces.size // SECTOR, writing=False)
        super().read_into(sector, pieces)

    def write(self, sector: int, data: bytes | memoryview) -> None:
        if self._active:
            self._write(sector, bytes(data))
        else:
            super().write(sector, data)

    def write_from(self, sector: int, pieces: Pieces) -> None:
        if self._active:
            self._write(sector, b"".join(bytes(view) for view in pieces.views()))
        else:
            super().write_from(sector, pieces)

    def _before(self, sector: int, count: int, *, writing: bool) -> list[_Active]:
        """What every request may suffer; the rest is returned."""
        hit = [each for each in self._active if each.hits(self._now_ns(), sector, count, writing)]
        now_ns = self._now_ns()
        self._active = [each for each in self._active if each.left > 0 and now_ns < each.until_ns]
        for each in hit:
            effect = each.fault.effect
            self.struck[effect] = self.struck.get(effect, 0) + 1
            if effect == "slow":
                assert each.fault.delay is not None, "checked when the fault was made"
                self._stall(each.fault.delay.draw(each.source))
            elif effect == "rot":
                self._rot(each, sector, count)
            elif effect in ("eio", "full"):
                what = "no space is left" if effect == "full" else "an injected error"
                raise BackendError(f"disk {self._name}: sectors {sector} to {sector + count - 1}: {what}")
        return hit

    def _rot(self, active: _Active, sector: int, count: int) -> None:
        """Bits flip in those sectors of the request that the fault covers."""
        fault = active.fault
        first = max(sector, fault.first_sector)
        end = min(sector + count, fault.first_sector + fault.sectors) if fault.sectors else sector + count
        data = bytearray(super().read(first, end - first))
        for bit in active.source.sample(range(8 * len(data)), min(fault.bits, 8 * len(data))):
            data[bit >> 3] ^= 1 << (bit & 7)
        super().write(first, bytes(data))

    def _write(self, sector: int, data: bytes) -> None:
        for each in self._before(sector, len(data) // SECTOR, writing=True):
            match each.fault.effect:
                case "lost":
                    return
                case "torn":
                    data = data[: each.source.randrange(len(data) // SECTOR) * SECTOR]
                case "misdirected":
                    sector = max(0, min(sector + each.fault.by_sectors, self.sectors - len(data) // SECTOR))
        if data:
            super().write(sector, data)
