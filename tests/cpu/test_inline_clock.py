"""Prologues as the engine writes them, rewritten where they are: the patch fits wherever its arguments lie.

The engine, which makes these bytes, decides the length of each load by the value that is loaded.  Where
this process has its heap is up to Python, so both places are made here.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator

import pytest

from vmm.cpu import control, inline_clock, layout, repeat

MAP_32BIT = 0x40
"""mmap(2): below 2 GiB."""
BLOCK, CODE, HOOK, CHECK = 0x1000, 0x2000, 0x3000, 0x3100
"""In our mapping, behind the control block: a block descriptor, its code, two functions that nobody calls."""
SCRATCH, UC = 0x800, 0x3F00
EDI, ESI, EBX, EDX, ECX = 7, 6, 3, 2, 1
SIZE = 40


def load(register: int, value: int) -> bytes:
    """``mov``, as short as the code generator makes it."""
    if 0 <= value < 1 << 32:
        return struct.pack("<BI", 0xB8 + register, value)
    if -(1 << 31) <= value < 0:
        return struct.pack("<BBBi", 0x48, 0xC7, 0xC0 + register, value)
    return struct.pack("<BBQ", 0x48, 0xB8 + register, value & (1 << 64) - 1)


def prologue(at: int, uc: int, control_block: int, pc: int, hook: int, check: int) -> tuple[bytes, int]:
    """The bytes, and where the call of the hook is in them."""
    if -(1 << 31) <= pc < 1 << 31:
        code = struct.pack("<BBBIi", 0x48, 0xC7, 0x85, layout.EIP, pc)
    else:
        code = load(EBX, pc) + struct.pack("<BBBI", 0x48, 0x89, 0x9D, layout.EIP)
    code += load(EDI, uc) + load(ESI, pc) + load(EDX, SIZE) + load(ECX, control_block)
    call = len(code)
    code += struct.pack("<Bi", 0xE8, hook - (at + call + 5))
    code += load(EDI, uc) + b"\x33\xf6"  # xor esi, esi
    return code + struct.pack("<Bi", 0xE8, check - (at + len(code) + 5)), call


@pytest.fixture(params=["low", "high"])
def mapping(request: pytest.FixtureRequest) -> Iterator[tuple[int, mmap.mmap]]:
    """Memory, and its address: below 2 GiB, as the heap of a Python at a fixed place, or far above."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    made = mmap.mmap(-1, 0x4000, flags | (MAP_32BIT if request.param == "low" else 0))
    pinned = ctypes.c_char.from_buffer(made)
    address = ctypes.addressof(pinned)
    assert (address < 1 << 31) == (request.param == "low")
    yield address, made
    del pinned
    made.close()


@pytest.fixture
def words(mapping: tuple[int, mmap.mmap]) -> tuple[int, mmap.mmap]:
    """A control block, and a block descriptor whose code will be at CODE."""
    base, memory = mapping
    words = {
        control.UC: base + UC,
        control.SCRATCH: base + SCRATCH,
        control.HOOK_ADDRESS: base + HOOK,
        control.FN_CHECK_EXIT: base + CHECK,
        BLOCK + layout.TB_CODE: base + CODE,
    }
    for at, value in words.items():
        struct.pack_into("<Q", memory, at, value)
    return mapping


def write_prologue(base: int, memory: mmap.mmap, pc: int) -> tuple[bytes, int]:
    """As the engine would; its bytes, and where the call is."""
    code, call = prologue(base + CODE, base + UC, base, pc, base + HOOK, base + CHECK)
    struct.pack_into("<I", memory, BLOCK + layout.TB_CODE_SIZE, len(code))
    memory[CODE : CODE + len(code)] = code
    return code, call


@pytest.mark.parametrize("charge", [1, 127, 128, 500])
@pytest.mark.parametrize("pc", [0x1000, 0x7FFF_0000, 0x7F12_3456_7000, -0x7F00_0000])
def test_it_fits(words: tuple[int, mmap.mmap], pc: int, charge: int) -> None:
    base, memory = words
    code, call = write_prologue(base, memory, pc)
    assert inline_clock.patch_block(base, base + BLOCK, pc, SIZE, charge, 0) == inline_clock.PATCHED
    patched = memory[CODE : CODE + len(code)]
    assert patched[call:] == code[call:]
    small = charge <= 127
    take = b"\x48\x83\xad" if small else struct.pack("<BI", 0xBA, charge) + b"\x48\x29\x95"  # (mov edx,) sub
    budget = struct.pack("<i", control.ENV_TO_BUDGET) + (bytes((charge,)) if small else b"")
    assert patched.startswith(take + budget)
    jump = len(take + budget)
    assert patched[jump] == 0x7F  # jg
    assert jump + 2 + patched[jump + 1] == len(code)
    rest = patched[jump + 2 : call].rstrip(b"\x90")
    assert struct.pack("<I", layout.EIP) in rest
    edx = bytes((0x6A, charge, 0x5A)) if small else b""  # push, pop
    assert rest.endswith(edx + b"\x55\x59\x31\xff")  # push rbp, pop rcx; xor edi, edi


@pytest.mark.parametrize("pc", [0x1000, 0x7F12_3456_7000, -0x7F00_0000])
def test_a_repetition_is_told_apart_where_there_is_room(words: tuple[int, mmap.mmap], pc: int) -> None:
    """Few elements left, or the budget used up: RCX is compared only while there is budget."""
    base, memory = words
    code, call = write_prologue(base, memory, pc)
    kind = repeat.KIND | 3
    assert inline_clock.patch_block(base, base + BLOCK, pc, SIZE, 1, kind) == inline_clock.PATCHED
    patched = memory[CODE : CODE + len(code)]
    assert patched[call:] == code[call:]
    take = b"\x48\x83\xad" + struct.pack("<iB", control.ENV_TO_BUDGET, 1)
    look = b"\x7e\x07" + bytes((0x48, 0x83, 0x7D, layout.RCX, repeat.FEW)) + b"\x76"  # jle, cmp, jbe
    told = patched[:call].rstrip(b"\x90").endswith(bytes((0x6A, kind, 0x5F)))  # push, pop rdi
    assert told == patched.startswith(take + look)
    if base >> 32 or pc < 0:
        assert told, "long loads leave room, and in a kernel the address is one"
    if told:
        end = len(take + look) + 1
        assert end + patched[end - 1] == len(code)
    else:
        assert patched.startswith(take + b"\x7f"), "the ordinary patch"
