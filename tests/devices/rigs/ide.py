"""One channel with a disk and a smaller read-only disk, one sector of the first unreadable."""

from __future__ import annotations

import random
import zlib

from tests.devices.promises import Rig, register
from vmm.clock import ManualClock
from vmm.devices.ide import CONTROL, IdeChannel
from vmm.errors import BackendError

COMMANDS = (0x20, 0x24, 0xC4, 0x30, 0x34, 0xC5, 0x40, 0x91, 0xC6, 0xE7, 0xEC, 0xEF, 0x90, 0xA1, 0xE5, 0x10)


class MemoryDisk:
    """A disk in memory; reading or writing a sector in ``bad``, or flushing it, fails."""

    def __init__(self, sectors: int, read_only: bool = False, bad: tuple[int, ...] = ()) -> None:
        self.data = bytearray(b"".join(n.to_bytes(2, "little") * 256 for n in range(sectors)))
        self.read_only = read_only
        self.bad = bad
        self.flushes = 0

    @property
    def sectors(self) -> int:
        return len(self.data) // 512

    def read(self, sector: int, count: int) -> bytes:
        self._check(sector, count)
        return bytes(self.data[512 * sector : 512 * (sector + count)])

    def write(self, sector: int, data: bytes | memoryview) -> None:
        self._check(sector, len(data) // 512)
        self.data[512 * sector : 512 * sector + len(data)] = data

    def flush(self) -> None:
        self.flushes += 1

    def _check(self, sector: int, count: int) -> None:
        assert 0 <= sector <= self.sectors - count, "the controller lets nothing past the end"
        if any(sector <= bad < sector + count for bad in self.bad):
            raise BackendError(f"test disk: sector {sector} is bad")


def _rig(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    first, second = MemoryDisk(300, bad=(7,)), MemoryDisk(40, read_only=True)
    channel = IdeChannel(rig.line("irq"), (first, second))

    def command(rng: random.Random) -> None:
        for offset, limit in ((2, 20), (3, 64), (4, 1), (5, 1)):
            channel.write(offset, 1, rng.randrange(limit))
        channel.write(6, 1, rng.choice((0xE0, 0xE0, 0xA0, 0xF0)))
        channel.write(7, 1, rng.choice(COMMANDS))

    def move(rng: random.Random) -> list[int]:
        size = rng.choice((2, 4))
        seen = []
        for _ in range(rng.randrange(600)):
            channel.write(0, size, rng.getrandbits(8 * size))
            seen.append(channel.read(0, size))
        return seen

    rig.device = channel
    rig.views = {"command": (channel.command, 8), "control": (channel.control, 1)}
    rig.actions = {
        "command": command,
        "move": move,
        "srst": lambda rng: channel.write(CONTROL, 1, rng.choice((0, 0, 2, 4, 0x80))),
    }
    rig.world = {"disk": (lambda: bytes(first.data), lambda data: first.data.__setitem__(slice(None), data))}
    rig.observe = lambda: zlib.crc32(first.data)
    return rig


register("ide", _rig)
