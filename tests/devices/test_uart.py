"""16550A: the data sheet's words (PC16550D section 8), one test each."""

from __future__ import annotations

import pytest

from tests.devices.promises import Rig
from vmm.devices.uart import FIFO_SIZE, Uart

THR = RBR = 0
IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 1, 2, 2, 3, 4, 5, 6, 7


@pytest.fixture
def uart(bench: Rig) -> Uart:
    return Uart(irq=bench.line("irq4"), transmit=bench.sink("out"))


def asks(bench: Rig) -> bool:
    return bench.lines["irq4"].level


def test_transmits_at_once(bench: Rig, uart: Uart) -> None:
    for byte in b"ok":
        uart.write(THR, 1, byte)
        assert uart.read(LSR, 1) == 0x60, "8.3: THRE and TEMT"
    assert bench.log == [("out", 0x6F), ("out", 0x6B)]


def test_divisor_latch(bench: Rig, uart: Uart) -> None:
    """8.2: DLAB gives offsets 0 and 1 to the divisor."""
    uart.write(IER, 1, 0x05)
    uart.write(LCR, 1, 0x83)
    uart.write(0, 2, 0x0180)
    assert uart.read(0, 2) == 0x0180
    uart.write(LCR, 1, 0x03)
    assert uart.read(IER, 1) == 0x05
    assert bench.log == []


def test_received_data_below_and_at_the_trigger(bench: Rig, uart: Uart) -> None:
    """8.4.1: RDA at the trigger level; below it the time-out interrupt, here at once."""
    uart.write(FCR, 1, 0x81)
    uart.write(IER, 1, 0x01)
    assert uart.receive(b"1234567") == 7
    assert asks(bench)
    assert uart.read(IIR, 1) == 0xCC
    uart.receive(b"8")
    assert uart.read(IIR, 1) == 0xC4
    assert bytes(uart.read(RBR, 1) for _ in range(8)) == b"12345678"
    assert not asks(bench)
    assert uart.read(IIR, 1) == 0xC1


def test_room_and_limit(uart: Uart) -> None:
    assert uart.room == 1
    assert uart.receive(b"ab") == 1, "16450 mode: one holding register"
    uart.write(FCR, 1, 0x01)
    assert uart.room == FIFO_SIZE, "8.4: changing FIFO mode clears"
    assert uart.receive(bytes(20)) == FIFO_SIZE
    assert uart.room == 0
    uart.write(FCR, 1, 0x03)
    assert uart.room == FIFO_SIZE
    assert uart.read(LSR, 1) & 1 == 0


def test_thr_empty_interrupt(bench: Rig, uart: Uart) -> None:
    """Table IV: enabled while empty it comes at once; reading IIR or writing THR resets it."""
    uart.write(IER, 1, 0x02)
    assert asks(bench)
    assert uart.read(IIR, 1) == 0x02
    assert not asks(bench)
    assert uart.read(IIR, 1) == 0x01
    bench.log.clear()
    uart.write(THR, 1, 0x41)
    assert bench.log == [("out", 0x41), ("irq4", True)]
    uart.write(THR, 1, 0x42)
    assert bench.log[2:] == [("out", 0x42), ("irq4", False), ("irq4", True)], "a new edge for each"


def test_thr_empty_stays_pending_behind_received_data(uart: Uart) -> None:
    """Table IV: reading IIR resets THRE only if THRE is what it shows."""
    uart.write(IER, 1, 0x03)
    uart.receive(b"x")
    assert uart.read(IIR, 1) == 0x04
    uart.read(RBR, 1)
    assert uart.read(IIR, 1) == 0x02
    assert uart.read(IIR, 1) == 0x01


def test_enabling_again_asks_again(bench: Rig, uart: Uart) -> None:
    """Linux probes for this (UART_BUG_THRE): IER bit 1 off and on with an empty THR."""
    uart.write(IER, 1, 0x02)
    uart.read(IIR, 1)
    uart.write(IER, 1, 0x00)
    uart.write(IER, 1, 0x02)
    assert uart.read(IIR, 1) == 0x02


@pytest.mark.parametrize("mcr", [0x00, 0x08, 0x10], ids=["none", "OUT2", "loopback"])
def test_interrupt_needs_ier_only(bench: Rig, uart: Uart, mcr: int) -> None:
    """No gate behind OUT2; 8.6: "the receiver and transmitter interrupts are fully operational"."""
    uart.write(MCR, 1, mcr)
    assert not asks(bench)
    uart.write(IER, 1, 0x02)
    assert asks(bench)


def test_loopback_modem_lines(uart: Uart) -> None:
    """8.6: RTS, DTR, OUT1, OUT2 appear as CTS, DSR, RI, DCD; this is how Linux finds a UART."""
    uart.read(MSR, 1)
    uart.write(MCR, 1, 0x1A)
    assert uart.read(MSR, 1) & 0xF0 == 0x90
    uart.write(MCR, 1, 0x10 | 0x04)
    uart.read(MSR, 1)
    uart.write(MCR, 1, 0x10)
    assert uart.read(MSR, 1) == 0x04, "TERI: the ring indicator fell"
    assert uart.read(MSR, 1) == 0x00, "8.8: reading clears the deltas"


def test_loopback_data_and_overrun(bench: Rig, uart: Uart) -> None:
    uart.write(FCR, 1, 0x01)
    uart.write(MCR, 1, 0x18)
    assert uart.receive(b"from outside") == 0, "8.6: SIN is disconnected"
    for byte in range(FIFO_SIZE + 1):
        uart.write(THR, 1, byte)
    assert [entry for entry in bench.log if entry[0] == "out"] == []
    assert uart.read(LSR, 1) == 0x63, "8.3: overrun, data ready"
    assert uart.read(LSR, 1) == 0x61, "reading clears overrun"
    assert [uart.read(RBR, 1) for _ in range(FIFO_SIZE)] == list(range(FIFO_SIZE)), "the FIFO is intact"


def test_line_status_has_the_highest_priority(uart: Uart) -> None:
    uart.write(IER, 1, 0x0F)
    uart.write(MCR, 1, 0x10)
    uart.write(THR, 1, 1)
    uart.write(THR, 1, 2)
    order = [uart.read(IIR, 1)]
    uart.read(LSR, 1)
    order.append(uart.read(IIR, 1))
    assert uart.read(RBR, 1) == 2, "8.3: without FIFOs the old character is destroyed"
    order += [uart.read(IIR, 1), uart.read(IIR, 1)]
    uart.read(MSR, 1)
    order.append(uart.read(IIR, 1))
    assert order == [0x06, 0x04, 0x02, 0x00, 0x01]


def test_registers_that_hold_what_they_are_given(uart: Uart) -> None:
    for offset, mask in ((SCR, 0xFF), (LCR, 0xFF), (MCR, 0x1F)):
        uart.write(offset, 1, 0xFF)
        assert uart.read(offset, 1) == mask
    uart.write(LCR, 1, 0x03)
    uart.write(IER, 1, 0xFF)
    assert uart.read(IER, 1) == 0x0F, "8.5: the upper half is always 0"
    assert uart.read(8, 1) == 0xFF
