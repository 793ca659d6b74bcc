"""The block device on a small medium in memory, whose contents travel apart from its state."""

from __future__ import annotations

import struct
from random import Random

from tests.devices.promises import Rig, register
from tests.devices.virtio_bench import SIZE, bench, offer
from vmm.clock import ManualClock
from vmm.devices.virtio_blk import VirtioBlk
from vmm.errors import BackendError
from vmm.ram import Ram

SECTORS = 8


class Medium:
    """Eight sectors; the last one cannot be read."""

    def __init__(self, read_only: bool = False) -> None:
        self.sectors = SECTORS
        self.read_only = read_only
        self.data = bytes(512 * SECTORS)
        self.flushes = 0

    def read(self, sector: int, count: int) -> bytes:
        if sector + count == SECTORS:
            raise BackendError("the last sector is bad")
        return self.data[512 * sector : 512 * (sector + count)]

    def write(self, sector: int, data: bytes | memoryview) -> None:
        at = 512 * sector
        self.data = self.data[:at] + bytes(data) + self.data[at + len(data) :]

    def flush(self) -> None:
        self.flushes += 1


def _blk(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    ram, medium = Ram(1), Medium()
    blk = VirtioBlk(medium, ram, rig.line("intx"), rig.sink("msi"), serial="rig")
    bench(rig, blk, ram, 1 << 32 | 1 << 29 | 0x246)
    rig.world["medium"] = (lambda: medium.data, lambda data: setattr(medium, "data", data))

    def request(rng: Random) -> None:
        kind, sector, place = rng.choice((0, 1, 4, 8, 99)), rng.randrange(SECTORS + 1), rng.randrange(SIZE)
        data = rng.randbytes(512) if kind == 1 else b""
        offer(ram, 0, struct.pack("<IIQ", kind, 0, sector) + data, 513 if kind == 0 else 21, place)
        blk.notify(0, 2, 0)

    rig.actions["request"] = rig.actions["another request"] = request
    rig.observe = lambda: (medium.data, ram.read(0x1000, 0x1000))
    return rig


register("virtio_blk", _blk)
