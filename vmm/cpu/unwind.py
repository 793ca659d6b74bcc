"""What the engine keeps behind a block's code to find the guest instruction of a host address.

Source: QEMU 5.0, accel/tcg/translate-all.c (encode_search, cpu_restore_state_from_tb).

For each guest instruction there are three numbers, the differences of its address, of the state of the
flags, and of the end of its code to those of the instruction before.  The first instruction's are
differences to the block's address, to 0, and to where the block's code begins.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.native import i64, load8, load16, load64, native, store8


@native
def _signed_leb128(at: int) -> tuple[int, int]:
    """A number of any length, and the address after it."""
    value, shift = i64(0), i64(0)
    while True:
        byte = load8(at)
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80 == 0:
            break
    if byte & 0x40 and shift < 64:
        value |= i64(-1) << shift
    return value, at


@native
def find_instruction(block: int, index: int, address: int) -> tuple[int, int]:
    """The instruction number ``index``, or that at ``address``: its number and address; (-1, 0) if none."""
    at = load64(block + layout.TB_CODE) + load64(block + layout.TB_CODE_SIZE)
    pc = load64(block + layout.TB_PC)
    for number in range(load16(block + layout.TB_ICOUNT)):
        step, at = _signed_leb128(at)
        _, at = _signed_leb128(at)
        _, at = _signed_leb128(at)
        pc += step
        if number == index or (index < 0 and pc == address):
            return i64(number), pc
    return i64(-1), i64(0)


@native
def end_of_first(block: int) -> tuple[int, int, int]:
    """How far into a block's code that of its first instruction ends; from where to where that is written."""
    at = load64(block + layout.TB_CODE) + load64(block + layout.TB_CODE_SIZE)
    _, at = _signed_leb128(at)
    _, begin = _signed_leb128(at)
    value, end = _signed_leb128(begin)
    return value, begin, end


@native
def write_leb128(begin: int, end: int, value: int) -> None:
    """Write a number in place of one that was no smaller, with as many bytes; neither is negative."""
    for at in range(begin, end - 1):
        store8(at, value & 0x7F | 0x80)
        value >>= 7
    store8(end - 1, value & 0x7F)
