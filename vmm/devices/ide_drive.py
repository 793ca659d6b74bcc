"""One ATA disk: its registers, its commands and the block that it is moving.

Source: ATA/ATAPI-6 (T13/1410D): clause 7 (registers), clause 8 (commands), clause 9 (protocols:
PIO data-in and data-out, "Signature and persistence"); CHS translation from ATA-5 (T13/1321D).

A command is carried out at the moment it is written, and each block at the moment it is wanted.
Between two accesses of the host everything about a transfer is in the state: the block being moved,
how much of it was moved, and what is left to do.

    READ:   load block, DRQ, INTRQ ─▶ host reads block ─▶ next block, or done
    WRITE:  DRQ ─▶ host writes block ─▶ store block, INTRQ ─▶ DRQ for the next, or done

What is not modelled is listed in ide.py.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmm.device import all_ones
from vmm.devices.block import SECTOR_BYTES, BlockBackend
from vmm.devices.ide_identify import HEADS, MULTIPLE_MAX, SECTORS_PER_TRACK, identify
from vmm.errors import BackendError
from vmm.state import State, at_most, field, u8, u16, u32, u64

# Command block registers (clause 7) that are read and written
ERROR, COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = 1, 2, 3, 4, 5, 6, 7
FEATURES, COMMAND = 1, 7

ST_BSY, ST_DRDY, ST_DF, ST_DSC, ST_DRQ, ST_ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
ST_READY = ST_DRDY | ST_DSC
ER_UNC, ER_IDNF, ER_ABRT = 0x40, 0x10, 0x04
DEV_LBA, DEV_SELECT, DEV_HEAD = 0x40, 0x10, 0x0F
DIAGNOSTIC_PASSED = 0x01

IDLE, READING, WRITING = range(3)
"""Phases of a PIO command."""

# Commands (clause 8): which have 48-bit addresses, which move several sectors a block
READS = (0x20, 0x21, 0xC4, 0x24, 0x29)
WRITES = (0x30, 0x31, 0xC5, 0x34, 0x39)
VERIFIES = (0x40, 0x41, 0x42)
EXTENDED = (0x24, 0x29, 0x34, 0x39, 0x42)
MULTIPLE = (0xC4, 0xC5, 0x29, 0x39)
RECALIBRATE, SEEK, DIAGNOSTIC, INIT_PARAMETERS = 0x10, 0x70, 0x90, 0x91
SET_MULTIPLE, FLUSH, FLUSH_EXT, IDENTIFY, SET_FEATURES = 0xC6, 0xE7, 0xEA, 0xEC, 0xEF
CHECK_POWER, POWER_COMMANDS = 0xE5, (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)
POWER_ACTIVE = 0xFF

CACHE_ON, CACHE_OFF, TRANSFER_MODE = 0x02, 0x82, 0x03
FEATURES_WITHOUT_EFFECT = (0x55, 0x66, 0xAA, 0xCC)  # look-ahead; what a reset keeps
PIO_MODES = (0x00, 0x01, 0x08, 0x09, 0x0A, 0x0B, 0x0C)

VERIFY_CHUNK = 256
"""Sectors read at a time to verify: a VERIFY EXT of 32 MiB must not be one allocation."""

from_1 = Meta(ge=1, le=0xFF)


class DriveState(State):
    """Power-on: diagnostics passed, the signature of a disk in the registers."""

    # The 16-bit registers are the two-byte queues of 48-bit addressing: the byte written before last
    # is in the upper half.
    features: u16 = 0
    count: u16 = 1
    lba_low: u16 = 1
    lba_mid: u16 = 0
    lba_high: u16 = 0
    device: u8 = 0
    error: u8 = DIAGNOSTIC_PASSED
    status: u8 = ST_READY
    intrq: bool = False
    heads: Annotated[int, from_1] = HEADS
    sectors_per_track: Annotated[int, from_1] = SECTORS_PER_TRACK
    multiple: u8 = 0
    write_cache: bool = True
    phase: Annotated[int, Meta(ge=IDLE, le=WRITING)] = IDLE
    block: Annotated[bytearray, at_most(MULTIPLE_MAX * SECTOR_BYTES)] = field(default_factory=bytearray)
    position: u16 = 0  # bytes of the block already moved
    block_sectors: u8 = 1
    sector: u64 = 0  # of the block when writing, after the block when reading
    left: u32 = 0  # sectors from there to the end of the command


QUEUES = {FEATURES: "features", COUNT: "count", LBA_LOW: "lba_low", LBA_MID: "lba_mid", LBA_HIGH: "lba_high"}


class Drive:
    """``state`` belongs to the channel; INTRQ is ``state.intrq``."""

    __slots__ = ("_backend", "_number", "state")

    def __init__(self, state: DriveState, backend: BlockBackend, number: int) -> None:
        self.state = state
        self._backend = backend
        self._number = number

    # Registers

    def read_register(self, offset: int, previous: bool) -> int:
        """``previous``: HOB is set, show the byte written before last."""
        s = self.state
        if offset == ERROR:
            return s.error
        if offset == DEVICE:
            return s.device | 0xA0
        if offset == STATUS:
            return s.status
        queue: int = getattr(s, QUEUES[offset])
        return queue >> 8 if previous else queue & 0xFF

    def write_register(self, offset: int, value: int) -> None:
        s = self.state
        if offset == DEVICE:
            s.device = value & (DEV_LBA | DEV_SELECT | DEV_HEAD)
        else:
            name = QUEUES[offset]
            setattr(s, name, getattr(s, name) << 8 & 0xFF00 | value)

    def read_data(self, size: int) -> int:
        """The data port: 16 bits a time, or 32; a byte read loses the other half of its word."""
        s = self.state
        if s.phase != READING:
            return all_ones(size)
        value = int.from_bytes(s.block[s.position : s.position + size], "little")
        s.position += max(size, 2)
        if s.position >= len(s.block):
            self._block_read()
        return value

    def write_data(self, size: int, value: int) -> None:
        s = self.state
        if s.phase != WRITING:
            return
        room = len(s.block) - s.position
        data = value.to_bytes(size, "little")[:room]
        s.block[s.position : s.position + len(data)] = data
        s.position += max(size, 2)
        if s.position >= len(s.block):
            self._block_written()

    def signature(self) -> None:
        """After a reset or EXECUTE DEVICE DIAGNOSTIC: a disk that works, doing nothing."""
        s = self.state
        s.features, s.count, s.lba_low, s.lba_mid, s.lba_high, s.device = 0, 1, 1, 0, 0, 0
        self._done()
        s.error, s.intrq = DIAGNOSTIC_PASSED, False

    # Commands

    def execute(self, command: int) -> None:
        s = self.state
        self._done()
        s.error, s.intrq = 0, False
        if command in READS or command in WRITES:
            self._start(command)
        elif command in VERIFIES:
            self._verify(command)
        elif command == IDENTIFY:
            s.left = 0
            self._offer(
                identify(
                    self._backend.sectors,
                    self._number,
                    s.heads,
                    s.sectors_per_track,
                    s.multiple,
                    s.write_cache,
                )
            )
        elif command in (FLUSH, FLUSH_EXT):
            self._flush()
        elif self._setting(command):
            s.intrq = True
        else:
            self._fail(ER_ABRT)

    def _setting(self, command: int) -> bool:
        """Commands that move nothing; False: unknown, or a parameter is wrong."""
        s = self.state
        count = s.count & 0xFF
        if command == SET_FEATURES:
            return self._set_feature(s.features & 0xFF, count)
        if command == SET_MULTIPLE:
            if count > MULTIPLE_MAX or count & (count - 1):
                return False
            s.multiple = count
        elif command == INIT_PARAMETERS:
            if count == 0:
                return False
            s.sectors_per_track, s.heads = count, (s.device & DEV_HEAD) + 1
        elif command == CHECK_POWER:
            s.count = POWER_ACTIVE
        elif command & 0xF0 not in (RECALIBRATE, SEEK):
            return command in POWER_COMMANDS
        return True

    def _set_feature(self, feature: int, count: int) -> bool:
        if feature in (CACHE_ON, CACHE_OFF):
            self.state.write_cache = feature == CACHE_ON
            return True
        return feature in FEATURES_WITHOUT_EFFECT or (feature == TRANSFER_MODE and count in PIO_MODES)

    def _start(self, command: int) -> None:
        s = self.state
        writing = command in WRITES
        if (command in MULTIPLE and not s.multiple) or (writing and self._backend.read_only):
            self._fail(ER_ABRT)
        elif self._address(command in EXTENDED):
            s.block_sectors = s.multiple if command in MULTIPLE else 1
            if writing:
                self._want()
            else:
                self._load()

    def _verify(self, command: int) -> None:
        s = self.state
        if not self._address(command in EXTENDED):
            return
        while s.left:
            count = min(s.left, VERIFY_CHUNK)
            if self._fetch(count) is None:
                return
        s.intrq = True

    def _flush(self) -> None:
        try:
            self._backend.flush()
        except BackendError:
            self._fail(ER_ABRT, ST_DF)
        else:
            self.state.intrq = True

    def _address(self, extended: bool) -> bool:
        """Set ``sector`` and ``left`` from the registers; False: no such sectors (IDNF)."""
        s = self.state
        low, mid, high = s.lba_low & 0xFF, s.lba_mid & 0xFF, s.lba_high & 0xFF
        s.left = s.count or 0x1_0000 if extended else s.count & 0xFF or 0x100
        s.sector = high << 16 | mid << 8 | low
        if extended:
            s.sector |= (s.lba_high >> 8) << 40 | (s.lba_mid >> 8) << 32 | (s.lba_low >> 8) << 24
        elif s.device & DEV_LBA:
            s.sector |= (s.device & DEV_HEAD) << 24
        else:
            head = s.device & DEV_HEAD
            if not 1 <= low <= s.sectors_per_track or head >= s.heads:
                self._fail(ER_IDNF)
                return False
            s.sector = ((high << 8 | mid) * s.heads + head) * s.sectors_per_track + low - 1
        if s.sector + s.left > self._backend.sectors:
            self._fail(ER_IDNF)
            return False
        return True

    # Blocks

    def _fetch(self, count: int) -> bytes | None:
        """Read the next ``count`` sectors; None: the command has ended with an error."""
        s = self.state
        try:
            data = self._backend.read(s.sector, count)
        except BackendError:
            self._fail_at(s.sector, ER_UNC)
            return None
        assert len(data) == count * SECTOR_BYTES
        s.sector += count
        s.left -= count
        return data

    def _load(self) -> None:
        data = self._fetch(min(self.state.left, self.state.block_sectors))
        if data is not None:
            self._offer(bytearray(data))

    def _offer(self, block: bytearray) -> None:
        s = self.state
        s.phase, s.block, s.position = READING, block, 0
        s.status = ST_READY | ST_DRQ
        s.intrq = True

    def _block_read(self) -> None:
        if self.state.left:
            self._load()
        else:
            self._done()

    def _want(self) -> None:
        s = self.state
        s.phase, s.position = WRITING, 0
        s.block = bytearray(min(s.left, s.block_sectors) * SECTOR_BYTES)
        s.status = ST_READY | ST_DRQ

    def _block_written(self) -> None:
        s = self.state
        count = len(s.block) // SECTOR_BYTES
        try:
            self._backend.write(s.sector, bytes(s.block))
            if not s.write_cache:
                self._backend.flush()
        except BackendError:
            self._fail_at(s.sector, ER_ABRT, ST_DF)
            return
        s.sector += count
        s.left -= count
        if s.left:
            self._want()
        else:
            self._done()
        s.intrq = True

    # Endings

    def _done(self) -> None:
        s = self.state
        s.phase, s.block, s.position = IDLE, bytearray(), 0
        s.sector, s.left, s.block_sectors = 0, 0, 1
        s.status = ST_READY

    def _fail(self, error: int, status: int = 0) -> None:
        s = self.state
        self._done()
        s.error = error
        s.status = ST_READY | ST_ERR | status
        s.intrq = True

    def _fail_at(self, sector: int, error: int, status: int = 0) -> None:
        """A medium error: the address registers hold the first sector that failed."""
        s = self.state
        self._fail(error, status)
        s.lba_low = sector & 0xFF | sector >> 24 << 8 & 0xFF00
        s.lba_mid = sector >> 8 & 0xFF | sector >> 32 << 8 & 0xFF00
        s.lba_high = sector >> 16 & 0xFF | sector >> 40 << 8 & 0xFF00
        s.device = s.device & ~DEV_HEAD | sector >> 24 & DEV_HEAD
