"""16550A UART: one COM port.

Source: National Semiconductor PC16550D data sheet (RRD-B30M75), section 8 "Registers" and the
interrupt control functions of table IV.

Bits take no time: what the guest transmits is with the host in the same instant, so the
transmitter is always empty, and the character time-out interrupt (8.4.1: four characters without a
read) comes at once when the receive FIFO holds something below its trigger level.  The host may
give as many bytes as there is room for, so an overrun happens in loopback only.

Not modelled: baud rate, word length, parity, framing and break (stored, without effect), the DMA
mode pins, the interrupt of a stopped line (the modem inputs CTS, DSR and DCD are always on).
The interrupt is wired to the bus.  The PC's first adapter had a gate there that OUT2 opened; virtual
machines leave it out, and kernels exist that clear OUT2 and wait for interrupts all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from vmm.device import Line
from vmm.devices.isa import read_bytes, write_bytes
from vmm.state import State, at_most, field, u8


class Register:
    """Offsets."""

    RBR_THR = 0  # DLL while LCR_DLAB
    IER = 1  # DLM while LCR_DLAB
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


IER_RECEIVED = 0x01
IER_THR_EMPTY = 0x02
IER_LINE_STATUS = 0x04
IER_MODEM_STATUS = 0x08
IER_WRITABLE = 0x0F

IIR_NONE = 0x01  # table IV, from the lowest priority to the highest
IIR_MODEM_STATUS = 0x00
IIR_THR_EMPTY = 0x02
IIR_RECEIVED = 0x04
IIR_TIMEOUT = 0x0C
IIR_LINE_STATUS = 0x06
IIR_FIFOS_ENABLED = 0xC0

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
TRIGGER_LEVELS = (1, 4, 8, 14)
FIFO_SIZE = 16

LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_WRITABLE = 0x1F
LSR_DATA_READY, LSR_OVERRUN, LSR_THR_EMPTY, LSR_TX_EMPTY = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TERI = 0x04
MODEM_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD


class UartState(State):
    """Registers by their data sheet names."""

    ier: u8 = 0
    lcr: u8 = 0
    mcr: u8 = 0
    scr: u8 = 0
    dll: u8 = 0
    dlm: u8 = 0
    fcr: u8 = 0
    overrun: bool = False
    thr_empty_pending: bool = False  # the THRE interrupt was not yet seen in IIR
    modem_deltas: u8 = 0  # MSR bits 0 to 3
    rx: Annotated[bytearray, at_most(FIFO_SIZE)] = field(default_factory=bytearray)


class Uart:
    """One COM port.  ``transmit`` gets every byte that the guest sends."""

    __slots__ = ("_irq", "_transmit", "state")

    def __init__(self, irq: Line, transmit: Callable[[int], None]) -> None:
        self.state = UartState()
        self._irq = irq
        self._transmit = transmit

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        s = self.state
        match offset:  # the registers that a busy guest reads come first
            case Register.LSR:
                value = LSR_THR_EMPTY | LSR_TX_EMPTY
                if s.rx:
                    value |= LSR_DATA_READY
                if s.overrun:
                    value |= LSR_OVERRUN
                    s.overrun = False
                    self.restored()
                return value
            case Register.IIR_FCR:
                return self._read_iir()
            case Register.RBR_THR:
                return s.dll if s.lcr & LCR_DLAB else self._read_rbr()
            case Register.IER:
                return s.dlm if s.lcr & LCR_DLAB else s.ier
            case Register.LCR:
                return s.lcr
            case Register.MCR:
                return s.mcr
            case Register.MSR:
                value = _modem_inputs(s.mcr) | s.modem_deltas
                s.modem_deltas = 0
                self.restored()
                return value
            case Register.SCR:
                return s.scr
            case _:
                return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
            return
        s = self.state
        match offset:
            case Register.RBR_THR if s.lcr & LCR_DLAB:
                s.dll = value
            case Register.RBR_THR:
                self._write_thr(value)
            case Register.IER if s.lcr & LCR_DLAB:
                s.dlm = value
            case Register.IER:
                if value & ~s.ier & IER_THR_EMPTY:
                    s.thr_empty_pending = True
                s.ier = value & IER_WRITABLE
                self.restored()
            case Register.IIR_FCR:
                self._write_fcr(value)
            case Register.LCR:
                s.lcr = value
            case Register.MCR:
                self._write_mcr(value & MCR_WRITABLE)
            case Register.SCR:
                s.scr = value

    # Host side

    @property
    def room(self) -> int:
        """Bytes that :meth:`receive` would take now.  In loopback SIN is disconnected (8.6)."""
        s = self.state
        if s.mcr & MCR_LOOP:
            return 0
        return max(0, _capacity(s) - len(s.rx))

    def receive(self, data: bytes) -> int:
        """Bytes arrive on SIN; the answer is how many were accepted, the first ones."""
        accepted = min(self.room, len(data))
        if accepted:
            self.state.rx += data[:accepted]
            self.restored()
        return accepted

    # Life cycle

    def reset(self) -> None:
        self.state = UartState()
        self.restored()

    def restored(self) -> None:
        """Drive the interrupt from the registers."""
        self._irq.set(_cause(self.state) != IIR_NONE)

    # Private

    def _read_rbr(self) -> int:
        s = self.state
        if not s.rx:
            return 0
        value = s.rx.pop(0)
        self.restored()
        return value

    def _read_iir(self) -> int:
        s = self.state
        cause = _cause(s)
        if cause == IIR_THR_EMPTY:
            # Table IV: reading IIR resets the THRE interrupt, if it is what IIR shows.
            s.thr_empty_pending = False
            self.restored()
        return cause | IIR_FIFOS_ENABLED if s.fcr & FCR_ENABLE else cause

    def _write_thr(self, value: int) -> None:
        s = self.state
        if s.mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            self._transmit(value)
        # Writing THR takes the interrupt back, and THR being empty again asks anew.
        if s.ier & IER_THR_EMPTY:
            s.thr_empty_pending = False
            self.restored()
            s.thr_empty_pending = True
        self.restored()

    def _loop_back(self, value: int) -> None:
        s = self.state
        if len(s.rx) < _capacity(s):
            s.rx.append(value)
            return
        s.overrun = True
        if not s.fcr & FCR_ENABLE:
            s.rx[-1] = value  # 8.3 OE: without FIFOs the old character is destroyed

    def _write_fcr(self, value: int) -> None:
        s = self.state
        if (value ^ s.fcr) & FCR_ENABLE:
            s.rx.clear()
        if value & FCR_ENABLE:
            if value & FCR_CLEAR_RX:
                s.rx.clear()
            s.fcr = value & (0xC0 | FCR_ENABLE)
        else:
            s.fcr = 0  # 8.4: the other bits are not programmed while bit 0 is 0
        self.restored()

    def _write_mcr(self, value: int) -> None:
        s = self.state
        before, after = _modem_inputs(s.mcr), _modem_inputs(value)
        changed = before ^ after
        deltas = changed >> 4 & ~MSR_TERI
        if changed & before & MSR_RI:
            deltas |= MSR_TERI  # trailing edge of the ring indicator
        s.modem_deltas |= deltas
        s.mcr = value
        self.restored()


def _capacity(s: UartState) -> int:
    return FIFO_SIZE if s.fcr & FCR_ENABLE else 1


def _modem_inputs(mcr: int) -> int:
    """MSR bits 4 to 7: the host's lines, or in loopback our own outputs (8.6)."""
    if not mcr & MCR_LOOP:
        return MODEM_CONNECTED
    return (
        (MSR_CTS if mcr & MCR_RTS else 0)
        | (MSR_DSR if mcr & MCR_DTR else 0)
        | (MSR_RI if mcr & MCR_OUT1 else 0)
        | (MSR_DCD if mcr & MCR_OUT2 else 0)
    )


def _cause(s: UartState) -> int:
    """The interrupt of the highest priority (table IV)."""
    ier = s.ier
    if not ier:
        return IIR_NONE
    if ier & IER_LINE_STATUS and s.overrun:
        return IIR_LINE_STATUS
    if ier & IER_RECEIVED and s.rx:
        if len(s.rx) >= TRIGGER_LEVELS[s.fcr >> 6] or not s.fcr & FCR_ENABLE:
            return IIR_RECEIVED
        return IIR_TIMEOUT
    if ier & IER_THR_EMPTY and s.thr_empty_pending:
        return IIR_THR_EMPTY
    if ier & IER_MODEM_STATUS and s.modem_deltas:
        return IIR_MODEM_STATUS
    return IIR_NONE
