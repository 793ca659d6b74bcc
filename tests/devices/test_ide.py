"""The IDE channel against ATA/ATAPI-6 (T13/1410D), driven as drivers drive it."""

from __future__ import annotations

import struct

import pytest

from tests.devices.promises import Rig
from tests.devices.rigs.ide import MemoryDisk
from vmm.clock import ManualClock
from vmm.devices.ide import IdeChannel

BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
SECTORS = 5000


class Bench:
    """One channel; ``disk`` is device 0."""

    def __init__(self, disk: MemoryDisk | None, other: MemoryDisk | None = None) -> None:
        self.irq = Rig(ManualClock()).line("irq")
        self.channel = IdeChannel(self.irq, (disk, other))
        self.channel.reset()

    def inb(self, register: int) -> int:
        return self.channel.command.read(register, 1)

    def outb(self, register: int, value: int) -> None:
        self.channel.command.write(register, 1, value)

    def control(self, value: int) -> None:
        self.channel.control.write(0, 1, value)

    def intrq(self) -> bool:
        return self.irq.level

    @property
    def alternate(self) -> int:
        return self.channel.control.read(0, 1)

    def command(self, command: int, sector: int = 0, count: int = 1, device: int = 0xE0) -> None:
        for register, value in ((2, count), (3, sector), (4, sector >> 8), (5, sector >> 16)):
            self.outb(register, value & 0xFF)
        self.outb(6, device | sector >> 24 & 0xF)
        self.outb(7, command)

    def command_ext(self, command: int, sector: int, count: int) -> None:
        """Registers are written twice, the upper bytes first."""
        for register, value in ((2, count >> 8), (3, sector >> 24), (4, sector >> 32), (5, sector >> 40)):
            self.outb(register, value & 0xFF)
        self.command(command, sector & 0xFF_FFFF, count & 0xFF)

    def insl(self, bytes_: int, size: int = 4) -> bytes:
        words = (self.channel.command.read(0, size) for _ in range(bytes_ // size))
        return b"".join(word.to_bytes(size, "little") for word in words)

    def outsl(self, data: bytes, size: int = 4) -> None:
        for at in range(0, len(data), size):
            self.channel.command.write(0, size, int.from_bytes(data[at : at + size], "little"))


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(SECTORS, bad=(99,))


@pytest.fixture
def b(disk: MemoryDisk) -> Bench:
    return Bench(disk)


def contents(first: int, count: int = 1) -> bytes:
    return b"".join(n.to_bytes(2, "little") * 256 for n in range(first, first + count))


def pattern(count: int) -> bytes:
    return bytes((7 * n + n // 256) & 0xFF for n in range(512 * count))


# "PIO data-in command protocol", "PIO data-out command protocol"


def test_boot_loader_reads_a_sector(b: Bench) -> None:
    """xv6 bootmain.c: wait for DRDY without BSY, READ SECTORS, 128 dwords."""
    assert b.inb(7) & (BSY | DRDY) == DRDY
    b.command(0x20, sector=300)
    assert b.inb(7) == DRDY | DSC | DRQ
    assert b.insl(512) == contents(300)
    assert b.inb(7) == DRDY | DSC


@pytest.mark.parametrize("size", [2, 4])
def test_each_sector_of_a_read_interrupts(b: Bench, size: int) -> None:
    b.command(0x20, sector=10, count=3)
    seen = b""
    for _ in range(3):
        assert b.intrq()
        assert b.inb(7) & DRQ
        assert not b.intrq(), "reading Status acknowledges"
        seen += b.insl(512, size)
    assert seen == contents(10, 3)
    assert not b.intrq(), "no interrupt after the last sector is read"
    assert b.channel.command.read(0, 2) == 0xFFFF


def test_write_interrupts_after_each_sector(b: Bench, disk: MemoryDisk) -> None:
    """xv6 ide.c writes the first sector at once, without waiting for an interrupt."""
    data = pattern(2)
    b.control(0)
    b.command(0x30, sector=20, count=2)
    assert not b.intrq()
    assert b.inb(7) & DRQ
    b.outsl(data[:512])
    assert b.intrq()
    assert b.inb(7) & DRQ
    b.outsl(data[512:])
    assert b.intrq()
    assert b.inb(7) == DRDY | DSC
    assert disk.read(20, 2) == data


def test_multiple_moves_blocks(b: Bench, disk: MemoryDisk) -> None:
    b.command(0xC4, sector=0, count=5)
    assert (b.inb(7) & ERR, b.inb(1)) == (ERR, ABRT), "SET MULTIPLE MODE comes first"
    b.command(0xC6, count=4)
    b.command(0xC4, sector=0, count=5)
    interrupts, seen = 0, b""
    for length in (2048, 512):
        interrupts += b.intrq()
        b.inb(7)
        seen += b.insl(length)
    assert (interrupts, seen) == (2, contents(0, 5))
    b.command(0xC5, sector=8, count=5)
    b.outsl(pattern(5))
    assert b.inb(7) == DRDY | DSC
    assert disk.read(8, 5) == pattern(5)
    for wrong in (3, 32):
        b.command(0xC6, count=wrong)
        assert b.inb(1) == ABRT


def test_extended_commands_have_48_bit_addresses() -> None:
    class HugeDisk(MemoryDisk):
        """Sectors are where they say, and only the one read exists."""

        @property
        def sectors(self) -> int:
            return 1 << 48

        def read(self, sector: int, count: int) -> bytes:
            return sector.to_bytes(8, "little") * 64 * count

    b = Bench(HugeDisk(1))
    b.command_ext(0x24, 0x8765_4321_0FED, 1)
    assert b.insl(512)[:8] == (0x8765_4321_0FED).to_bytes(8, "little")
    b.command_ext(0x24, 0, 0)
    assert b.channel.state.drives[0].left == 0xFFFF, "a count of 0 is 65,536"
    b.control(0x80)
    b.command_ext(0x24, 0x8765_4321_0FED, 0x0102)
    b.control(0x80)
    assert [b.inb(n) for n in (2, 3, 4, 5)] == [0x01, 0x43, 0x65, 0x87], "HOB shows the bytes before"


def test_count_of_zero_is_256(b: Bench) -> None:
    b.command(0x20, sector=1000, count=0)
    assert b.insl(512 * 256) == contents(1000, 256)
    assert not b.inb(7) & DRQ


def test_chs(b: Bench) -> None:
    """LBA = (cylinder * heads + head) * sectors + sector - 1, after INITIALIZE PARAMETERS."""
    b.command(0x91, count=10, device=0xA3)  # 4 heads, 10 sectors
    b.command(0x20, sector=5 | 2 << 8, device=0xA1)
    assert b.insl(512) == contents((2 * 4 + 1) * 10 + 4)
    for sector, device in ((0, 0xA1), (11, 0xA1), (5, 0xA4)):
        b.command(0x20, sector=sector, device=device)
        assert b.inb(1) == IDNF


# Errors


@pytest.mark.parametrize(("sector", "count"), [(SECTORS, 1), (SECTORS - 1, 2), (0x0FFF_FFFF, 1)])
@pytest.mark.parametrize("command", [0x20, 0x30, 0x40])
def test_past_the_end_is_idnf(b: Bench, command: int, sector: int, count: int) -> None:
    b.command(command, sector=sector, count=count)
    assert b.intrq()
    assert (b.inb(7) & (ERR | DRQ), b.inb(1)) == (ERR, IDNF)


def test_unreadable_sector(b: Bench) -> None:
    b.command(0x20, sector=98, count=4)
    b.insl(512)
    assert (b.inb(7) & (ERR | DRQ), b.inb(1)) == (ERR, UNC)
    assert (b.inb(3), b.inb(4)) == (99, 0), "the address of the first sector that failed"
    b.command(0x40, sector=90, count=20)
    assert b.inb(1) == UNC, "VERIFY finds it too"


def test_unwritable_sector_is_a_device_fault(b: Bench) -> None:
    b.command(0x30, sector=99)
    b.outsl(bytes(512))
    assert b.intrq()
    assert b.inb(7) & (ERR | DF | DRQ) == ERR | DF


def test_read_only_disk_refuses_writes() -> None:
    b = Bench(MemoryDisk(10, read_only=True))
    b.command(0x30, sector=1)
    assert (b.inb(7) & (ERR | DRQ), b.inb(1)) == (ERR, ABRT)


@pytest.mark.parametrize("command", [0xA1, 0xA0, 0xC8, 0x00, 0xFF])
def test_what_is_not_there_is_aborted(b: Bench, command: int) -> None:
    """0xA1, IDENTIFY PACKET DEVICE, is how a driver learns that this is no ATAPI device."""
    b.command(command)
    assert (b.inb(7) & ERR, b.inb(1)) == (ERR, ABRT)


# Information and settings


def test_identify(b: Bench) -> None:
    b.command(0xEC)
    data = b.insl(512)
    words = struct.unpack("<256H", data)
    assert b"".join(bytes((data[at + 1], data[at])) for at in range(54, 94, 2)).strip() == b"VMM HARDDISK"
    assert (words[1], words[3], words[6]) == (SECTORS // (16 * 63), 16, 63)
    assert words[49] & 0x0200, "LBA"
    assert words[49] & 0x0100 == 0, "no DMA"
    assert words[60] | words[61] << 16 == SECTORS
    assert words[83] & 0x0400, "48-bit addresses"
    assert struct.unpack_from("<Q", data, 200) == (SECTORS,)
    assert data[510] == 0xA5
    assert sum(data) & 0xFF == 0


def test_flush_and_write_cache(b: Bench, disk: MemoryDisk) -> None:
    b.command(0xE7)
    assert (b.intrq(), b.inb(7), disk.flushes) == (True, DRDY | DSC, 1)
    b.outb(1, 0x82)  # SET FEATURES: write cache off
    b.command(0xEF)
    b.command(0x30, sector=1)
    b.outsl(bytes(512))
    assert disk.flushes == 2, "without a cache a write is on the medium"


def test_set_features_knows_pio_only(b: Bench) -> None:
    b.outb(1, 0x03)
    b.command(0xEF, count=0x0C)  # PIO mode 4
    assert not b.inb(7) & ERR
    b.command(0xEF, count=0x22)  # multiword DMA mode 2
    assert b.inb(1) == ABRT


def test_diagnostic_and_signature(b: Bench) -> None:
    """Signature and persistence: 01H in Error, and count 1, LBA low 1, mid and high 0 say "ATA disk"."""
    b.command(0x90, sector=0xABCDEF, count=77)
    assert b.intrq()
    assert [b.inb(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 1, 0, 0]


def test_software_reset(b: Bench) -> None:
    b.command(0x20, count=2)
    b.control(0x04)
    assert b.alternate == b.inb(7) == BSY
    b.outb(7, 0xEC)
    b.control(0x00)
    assert b.inb(7) == DRDY | DSC, "the transfer is gone, the command during reset ignored"
    assert [b.inb(n) for n in (1, 2, 3, 4, 5)] == [1, 1, 1, 0, 0]
    assert not b.intrq()


def test_nien_holds_intrq_back(b: Bench) -> None:
    b.control(0x02)
    b.command(0x20)
    assert not b.intrq()
    assert b.alternate & DRQ
    b.control(0x00)
    assert b.intrq()
    assert b.alternate & DRQ
    assert b.intrq(), "alternate status does not acknowledge"


# Two drives


def test_absent_device_1_reads_status_zero(b: Bench) -> None:
    """xv6 looks for a second disk by reading Status until it is not 0."""
    b.outb(6, 0xF0)
    assert b.inb(7) == 0
    b.outb(7, 0xEC)
    assert not b.intrq()
    b.outb(6, 0xE0)
    assert b.inb(7) == DRDY | DSC


def test_device_1(disk: MemoryDisk) -> None:
    b = Bench(disk, MemoryDisk(50))
    b.command(0x20, sector=3, device=0xF0)
    assert b.insl(512) == contents(3)
    b.command(0x20, sector=60, device=0xF0)
    assert b.inb(1) == IDNF
    b.outb(6, 0xE0)
    assert b.inb(7) == DRDY | DSC, "each drive has its own status"
    assert not b.intrq(), "only the selected drive drives INTRQ"


def test_empty_cable_is_not_busy() -> None:
    """DD7 is pulled down: software that waits for BSY to clear does not hang."""
    b = Bench(None)
    assert b.inb(7) == 0x7F
    b.outb(2, 0x55)
    assert b.inb(2) != 0x55
    b.command(0xEC)
    assert not b.intrq()
