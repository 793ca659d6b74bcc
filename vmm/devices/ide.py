"""One IDE channel: two drives on one cable, in PIO.

Source: ATA/ATAPI-6 (T13/1410D): the signals INTRQ and DD7, the register definitions, "Software
reset", "Single device configurations" (device 0 answers for an absent device 1); port distances of
the PC from ATA-1 (X3.221-1994).  The drive is in ide_drive.py, IDENTIFY's answer in ide_identify.py.

The host writes the registers of both drives at once; the selected one carries out commands, answers
reads and drives INTRQ.  BSY is seen only while SRST is held, because nothing takes time.

Not modelled, and why:
* DMA and bus mastering: no PCI function is fitted, and drivers for the legacy ports use PIO;
* ATAPI: IDENTIFY PACKET DEVICE and PACKET are aborted, as a disk does;
* HPA, security, SMART: optional and not announced; power commands are accepted and nothing sleeps;
* a command that reaches past the end of the disk in its middle: it is refused as a whole with IDNF,
  where a drive would first move the sectors that it has;
* registers of a drive while it moves data: writing a command ends the transfer.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmm.device import IoDevice, Line, all_ones
from vmm.devices.block import BlockBackend
from vmm.devices.ide_drive import (
    COMMAND,
    DEV_SELECT,
    DEVICE,
    DIAGNOSTIC,
    ST_BSY,
    STATUS,
    Drive,
    DriveState,
)
from vmm.devices.isa import View, read_bytes, write_bytes
from vmm.state import State, field, length, u8

DATA, COMMAND_BLOCK = 0, 8
CONTROL = 0x3F6 - 0x1F0
"""Device control and alternate status, as far from the command block as on the primary channel."""
CTL_HOB, CTL_SRST, CTL_NIEN = 0x80, 0x04, 0x02
NO_DRIVE = 0x7F
"""A cable without drives: DD7 is pulled down, so that BSY does not seem set."""


def _two_drives() -> list[DriveState]:
    return [DriveState(), DriveState()]


class IdeState(State):
    selected: Annotated[int, Meta(ge=0, le=1)] = 0
    control: u8 = 0
    drives: Annotated[list[DriveState], length(2)] = field(default_factory=_two_drives)


class IdeChannel:
    """Offsets 0-7 are the command block, CONTROL is the control block; ``number`` counts drives."""

    __slots__ = ("_drives", "_irq", "command", "control", "state")

    def __init__(
        self, irq: Line, drives: tuple[BlockBackend | None, BlockBackend | None], number: int = 0
    ) -> None:
        self.state = IdeState()
        self._irq = irq
        self._drives = tuple(
            None if backend is None else Drive(state, backend, number + index)
            for index, (backend, state) in enumerate(zip(drives, self.state.drives, strict=True))
        )
        self.command: IoDevice = self
        self.control: IoDevice = View(self, CONTROL, 1)

    # Guest side

    def read(self, offset: int, size: int) -> int:
        drive = self._drives[self.state.selected]
        if offset == DATA:
            if drive is None:
                return all_ones(size)
            value = drive.read_data(size)
            self._update()
            return value
        if size != 1:
            return read_bytes(self, offset, size)
        return self._read_register(drive, offset)

    def write(self, offset: int, size: int, value: int) -> None:
        drive = self._drives[self.state.selected]
        if offset == DATA:
            if drive is not None:
                drive.write_data(size, value)
        elif size != 1:
            write_bytes(self, offset, size, value)
            return
        elif offset == CONTROL:
            self._write_control(value)
        elif 0 < offset < COMMAND_BLOCK and not self.state.control & CTL_SRST:
            self._write_register(drive, offset, value)
        self._update()

    # Life cycle

    def reset(self) -> None:
        self.state = IdeState()
        self.restored()

    def restored(self) -> None:
        for drive, state in zip(self._drives, self.state.drives, strict=True):
            if drive is not None:
                drive.state = state
        self._update()

    # Private

    def _read_register(self, drive: Drive | None, offset: int) -> int:
        if not (0 < offset < COMMAND_BLOCK or offset == CONTROL):
            return 0xFF
        if drive is None:  # device 0 answers for an absent device 1 (single device configurations)
            return NO_DRIVE if self._drives == (None, None) else 0
        if self.state.control & CTL_SRST:
            return ST_BSY
        if offset == CONTROL:  # alternate status leaves INTRQ alone
            return drive.state.status
        value = drive.read_register(offset, bool(self.state.control & CTL_HOB))
        if offset == STATUS:
            drive.state.intrq = False
            self._update()
        return value

    def _write_register(self, drive: Drive | None, offset: int, value: int) -> None:
        s = self.state
        s.control &= ~CTL_HOB  # any write to the command block clears it
        if offset == COMMAND:
            if value == DIAGNOSTIC:
                self._diagnose()
            elif drive is not None:
                drive.execute(value)
            return
        for each in self._drives:
            if each is not None:
                each.write_register(offset, value)
        if offset == DEVICE:
            s.selected = value // DEV_SELECT & 1

    def _diagnose(self) -> None:
        """Both drives carry it out, device 0 reports (EXECUTE DEVICE DIAGNOSTIC)."""
        self._all_signatures()
        if self._drives[0] is not None:
            self._drives[0].state.intrq = True

    def _write_control(self, value: int) -> None:
        s = self.state
        released = s.control & CTL_SRST and not value & CTL_SRST
        s.control = value & (CTL_HOB | CTL_SRST | CTL_NIEN)
        if released:
            self._all_signatures()

    def _all_signatures(self) -> None:
        self.state.selected = 0
        for drive in self._drives:
            if drive is not None:
                drive.signature()

    def _update(self) -> None:
        s = self.state
        drive = self._drives[s.selected]
        self._irq.set(drive is not None and drive.state.intrq and not s.control & CTL_NIEN)
