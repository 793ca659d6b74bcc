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
from vmm.cpu.selfcheck_links import exit_of

MAP_32BIT = 0x40
"""mmap(2): below 2 GiB."""
BLOCK, CODE, HOOK, CHECK = 0x1000, 0x2000, 0x3000, 0x3100
"""In our mapping, behind the control block: a block descriptor, its code, two functions that nobody calls."""
OTHER, OTHER_CODE = 0x1800, 0x2800
"""Another block, one of whose exits is linked to ours, which has the other alone."""
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


LINKED, FOREIGN, BEHIND = 0x41, 0x81, 0x21
"""Where jumps end: in the other block, in one that is not as we know it, in ours behind its prologue."""
SEARCH_DATA = b"\x00\x00%b\x05\x7f\x03"
"""Two instructions; how far the first's code goes is filled in."""


def leb128(value: int) -> bytes:
    """Of two bytes, which a number from 64 to 8191 needs."""
    assert 0 <= value < 8192
    return bytes((value & 0x7F | 0x80, value >> 7))


def write_prologue(base: int, memory: mmap.mmap, pc: int) -> tuple[bytes, int]:
    """As the engine would; its bytes, and where the call is.  Behind it, a body with one exit, not linked."""
    code, call = prologue(base + CODE, base + UC, base, pc, base + HOOK, base + CHECK)
    end = len(code)
    code += bytes(BEHIND - 5) + b"\xe9" + bytes(4)
    struct.pack_into("<Q", memory, BLOCK + layout.TB_CODE_SIZE, len(code))
    struct.pack_into("<HH", memory, BLOCK + layout.TB_EXIT_UNLINKED, end + BEHIND, layout.NO_EXIT)
    struct.pack_into("<Q", memory, BLOCK + layout.TB_EXIT_JUMP, end + BEHIND - 4)
    memory[CODE : CODE + len(code)] = code
    data = SEARCH_DATA % leb128(end + 20)
    memory[CODE + len(code) : CODE + len(code) + len(data)] = data
    write_links(base, memory)
    return code[:end], call


def write_links(base: int, memory: mmap.mmap) -> None:
    """Both exits of another block lead to ours, one of them in a way that we do not know."""
    struct.pack_into("<Q", memory, BLOCK + layout.TB_INCOMING, base + OTHER | 1)
    struct.pack_into("<Q", memory, OTHER + layout.TB_CODE, base + OTHER_CODE)
    struct.pack_into("<HH", memory, OTHER + layout.TB_EXIT_UNLINKED, FOREIGN, LINKED)
    struct.pack_into("<QQ", memory, OTHER + layout.TB_EXIT_JUMP, FOREIGN - 4, LINKED - 4)
    struct.pack_into("<QQ", memory, OTHER + layout.TB_NEXT_INCOMING, 0, base + OTHER)
    for opcode, end in ((0xEA, FOREIGN), (0xE9, LINKED)):
        struct.pack_into("<Bi", memory, OTHER_CODE + end - 5, opcode, CODE - OTHER_CODE - end)


@pytest.mark.parametrize("charge", [128, 500])
@pytest.mark.parametrize("pc", [0x1000, 0x7FFF_0000, 0x7F12_3456_7000, -0x7F00_0000])
def test_a_large_charge_fits(words: tuple[int, mmap.mmap], pc: int, charge: int) -> None:
    base, memory = words
    code, call = write_prologue(base, memory, pc)
    descriptor = memory[BLOCK:OTHER]
    assert inline_clock.patch_block(base, base + BLOCK, pc, SIZE, charge, 0) == inline_clock.PATCHED
    patched = memory[CODE : CODE + len(code)]
    assert patched[call:] == code[call:]
    assert memory[BLOCK:OTHER] == descriptor
    take = struct.pack("<BI", 0xBA, charge) + b"\x48\x29\x95"  # mov edx; sub
    budget = struct.pack("<i", control.ENV_TO_BUDGET)
    assert patched.startswith(take + budget)
    jump = len(take + budget)
    assert patched[jump] == 0x7F  # jg
    assert jump + 2 + patched[jump + 1] == len(code)
    rest = patched[jump + 2 : call].rstrip(b"\x90")
    assert struct.pack("<I", layout.EIP) in rest
    assert rest.endswith(b"\x55\x59\x31\xff")  # push rbp, pop rcx; xor edi, edi


@pytest.mark.parametrize("charge", [1, 127])
@pytest.mark.parametrize("pc", [0x1000, 0x7FFF_0000, 0x7F12_3456_7000, -0x7F00_0000])
def test_the_entry_moves(words: tuple[int, mmap.mmap], pc: int, charge: int) -> None:
    """There is room for it wherever the heap is."""
    base, memory = words
    code, call = write_prologue(base, memory, pc)
    end, entry = len(code), len(code) - 10
    assert inline_clock.patch_block(base, base + BLOCK, pc, SIZE, charge, 0) == inline_clock.PATCHED
    patched = memory[CODE : CODE + end]
    assert patched[:2] == bytes((0xEB, entry - 2))  # jmp ENTRY
    rest = patched[2:call].rstrip(b"\x90")
    assert rest.endswith(bytes((0x6A, charge, 0x5A)) + b"\x55\x59\x31\xff")  # push, pop; as above
    stored = rest[: len(rest) - 7]
    if -(1 << 31) <= pc < 1 << 31:
        assert stored == struct.pack("<BBBIi", 0x48, 0xC7, 0x85, layout.EIP, pc)
    else:
        assert stored == struct.pack("<BBqBBBI", 0x48, 0xBE, pc, 0x48, 0x89, 0xB5, layout.EIP)
    resume = call + 5
    assert patched[call:resume] == code[call:resume]
    assert patched[resume : resume + 2] == bytes((0xEB, end - resume - 2))  # jmp END
    assert patched[resume + 2 : entry] == code[resume + 2 : entry]
    take = b"\x48\x83\xad" + struct.pack("<iB", control.ENV_TO_BUDGET, charge)
    assert patched[entry:] == take + bytes((0x7E, 2 - end & 0xFF))  # sub; jle SLOW
    assert memory[CODE + end : CODE + end + BEHIND] == bytes(BEHIND - 5) + b"\xe9" + bytes(4)


@pytest.mark.parametrize("pc", [0x1000, 0x7F12_3456_7000])
def test_all_that_is_reckoned_from_the_entry_moves(words: tuple[int, mmap.mmap], pc: int) -> None:
    base, memory = words
    code, _ = write_prologue(base, memory, pc)
    end, by = len(code), len(code) - 10
    exit_before = exit_of(base + BLOCK, 0)
    inline_clock.patch_block(base, base + BLOCK, pc, SIZE, 1, 0)
    entry = base + CODE + by
    assert struct.unpack_from("<QQ", memory, BLOCK + layout.TB_CODE) == (entry, 10 + BEHIND)
    assert exit_before is not None
    assert exit_of(base + BLOCK, 0) == exit_before
    assert exit_of(base + BLOCK, 1) is None
    data = SEARCH_DATA % leb128(30)
    assert memory[CODE + end + BEHIND : CODE + end + BEHIND + len(data)] == data
    linked = exit_of(base + OTHER, 1)
    assert linked is not None
    assert linked.leads_to == entry
    foreign = struct.pack("<Bi", 0xEA, CODE - OTHER_CODE - FOREIGN)
    assert memory[OTHER_CODE + FOREIGN - 5 : OTHER_CODE + FOREIGN] == foreign


@pytest.mark.parametrize("unknown", ["exit", "jump", "first instruction"])
def test_the_entry_stays_where_something_is_not_as_known(words: tuple[int, mmap.mmap], unknown: str) -> None:
    base, memory = words
    code, _ = write_prologue(base, memory, 0x1000)
    if unknown == "exit":
        struct.pack_into("<H", memory, BLOCK + layout.TB_EXIT_UNLINKED, len(code) + BEHIND + 1)
    elif unknown == "jump":
        memory[CODE + len(code) + BEHIND - 5] = 0xEA
    else:
        at = CODE + len(code) + BEHIND + 2
        memory[at : at + 2] = leb128(len(code) - 1)
    descriptor = memory[BLOCK:OTHER]
    assert inline_clock.patch_block(base, base + BLOCK, 0x1000, SIZE, 1, 0) == inline_clock.PATCHED
    assert memory[BLOCK:OTHER] == descriptor
    assert memory[CODE : CODE + 3] == b"\x48\x83\xad", "the prologue is patched in place"


@pytest.mark.parametrize("pc", [0x1000, 0x7F12_3456_7000, -0x7F00_0000])
def test_a_repetition_is_told_apart_where_there_is_room(words: tuple[int, mmap.mmap], pc: int) -> None:
    """Few elements left, or the budget used up: RCX is compared only while there is budget."""
    base, memory = words
    code, call = write_prologue(base, memory, pc)
    kind = repeat.KIND | 3
    assert inline_clock.patch_block(base, base + BLOCK, pc, SIZE, 1, kind) == inline_clock.PATCHED
    patched = memory[CODE : CODE + len(code)]
    take = b"\x48\x83\xad" + struct.pack("<iB", control.ENV_TO_BUDGET, 1)
    look = b"\x7e\x07" + bytes((0x48, 0x83, 0x7D, layout.RCX, repeat.FEW)) + b"\x76"  # jle, cmp, jbe
    told = patched[:call].rstrip(b"\x90").endswith(bytes((0x6A, kind, 0x5F)))  # push, pop rdi
    assert told == patched.startswith(take + look)
    if base >> 32 or pc < 0:
        assert told, "long loads leave room, and in a kernel the address is one"
    if told:
        assert patched[call:] == code[call:]
        end = len(take + look) + 1
        assert end + patched[end - 1] == len(code)
    else:
        assert patched[len(code) - 10 :].startswith(take + b"\x7e"), "the ordinary patch"
