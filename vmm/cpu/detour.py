"""Detours: the engine's helpers for a few instructions jump to ours.

A helper is an exported C function that generated code calls.  Its first 16 bytes are replaced by

    mov  <next argument register>, [rsp]      the return address, as one argument more
    mov  rax, <replacement>
    jmp  rax

in our private copy of the library (:mod:`vmm.cpu.library`), so nobody else's Unicorn is touched.
The replaced functions are reached only from generated code and never return into the bytes that
were overwritten.  Where one constant is wrong, that instruction alone is replaced (:data:`PATCHES`).

The engine lets a block's code begin where a line of the host's cache does.  Ours is entered further on
(:mod:`vmm.cpu.block_entry`), so the code begins that much before the next line: then what is never executed
is in a line of its own.

The engine also reads the host's clock in one place: it resizes its TLB by how much time has passed.
A guest could tell (a page's accessed bit is set again when the TLB forgot the page), so the library's
pointer to ``gettimeofday`` leads to a function that gives virtual time: that of the machine which the
calling thread runs, found in :data:`running`.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

from vmm.cpu import layout
from vmm.cpu.elf_image import function_room, jump_slot
from vmm.cpu.library import Library, supported
from vmm.errors import EngineError

_LOAD_RETURN_ADDRESS = {
    1: b"\x48\x8b\x34\x24",  # mov rsi, [rsp]
    2: b"\x48\x8b\x14\x24",  # mov rdx, [rsp]
    3: b"\x48\x8b\x0c\x24",  # mov rcx, [rsp]
}

HELPERS: dict[str, tuple[int, str]] = {
    "helper_inb": (2, "in_byte"),
    "helper_inw": (2, "in_word"),
    "helper_inl": (2, "in_long"),
    "helper_outb": (3, "out_byte"),
    "helper_outw": (3, "out_word"),
    "helper_outl": (3, "out_long"),
    "helper_rdtsc": (1, "rdtsc"),
    "helper_rdtscp": (1, "rdtscp"),
    "helper_pause": (2, "pause"),
    "helper_cpuid": (1, "cpuid"),
    "helper_read_crN": (2, "read_control_register"),
    "helper_write_crN": (3, "write_control_register"),
    "helper_rdmsr": (1, "rdmsr"),
    "helper_wrmsr": (1, "wrmsr"),
    "helper_syscall": (2, "syscall"),
    "helper_sysenter": (2, "sysenter"),
    "helper_raise_interrupt": (3, "software_interrupt"),
}
"""Helper -> (its number of C arguments, the callback that replaces it)."""

FUNCTIONS: dict[str, str] = {
    "tlb_protect_code": "protect_code",
    "tlb_unprotect_code": "unprotect_code",
    "tlb_reset_dirty_by_vaddr": "reset_dirty_by_address",
    "tlb_set_dirty": "set_dirty",
    "tlb_flush_by_mmuidx": "flush_tlbs",
    "tb_flush_jmp_cache": "flush_page",
    "helper_lookup_tb_ptr": "lookup_block",
}
"""Functions of the engine that are replaced whole (vmm.cpu.code_pages, tlb_flush, jump_cache)."""

WRAPPED = "tb_invalidate_phys_page_fast"
WRAPPER = "written_page"
WRAPPED_PROLOGUE = bytes.fromhex("4157 4156 4d89c6 4155 4989f5 4889d6 4154")
"""Its first instructions, whole and free of addresses: they run from a copy that jumps back."""

PRECEDED: dict[str, bytes] = {
    "helper_cmpxchg8b_unlocked": bytes.fromhex("4157 4156 4989f6 4155 4154 55"),
    "helper_cmpxchg16b_unlocked": bytes.fromhex("4157 4156 4155 4154 55 4889fd 53"),
}
"""Helpers before which ``settle_flags`` is called, and their first instructions, as for WRAPPED."""

FLUSH = "tb_flush"
FLUSH_PROLOGUE = bytes.fromhex("4157 ba00800000 31f6 4156 4989fe")
"""The function before which ``before_flush`` is called, and its first instructions."""

ENDED: dict[str, tuple[int, bytes, bytes, str]] = {
    # The end of do_tb_phys_invalidate, a function of its own behind this one, with its arguments in r12 and
    # r13: the block has no incoming jumps any more, and is counted.  mov qword [r13+0x70], 0;
    # add qword [r12+0xd8], 1; then the registers that it saved.
    "tcg_exec_init": (
        0x36B,
        bytes.fromhex("49c7457000000000 49838424d800000001"),
        bytes.fromhex("4c89e7 4c89ee 5b 5d 415c 415d 415e"),
        "invalidated",
    ),
}
"""Function -> (offset, the instructions there, those that make the callback's arguments of registers and
restore these, the callback, which returns in place of the function)."""

PATCHES: dict[str, tuple[int, bytes, bytes]] = {
    # and ebp, mask: what PUSHF takes from eflags.  VM and RF read as clear (SDM vol. 2 PUSHF).
    "helper_read_eflags": (0x1A, bytes.fromhex("81e5 2af3ffff"), bytes.fromhex("81e5 2af3fcff")),
    # ja, now jmp, in the translation of BT, BTS, BTR and BTC, which lies behind this function.  The flags
    # that they leave undefined came from how the block computed its last ones, so from where it began; now
    # they and ZF, which is defined, are kept.
    "do_vmexit": (0x13114, bytes.fromhex("0f87 b86e0000"), bytes.fromhex("90e9 b86e0000")),
}
"""Function -> (offset, the bytes that must be there, the bytes that replace them)."""

ALLOCATE, STORE_AT = "tcg_tb_alloc", 0x45
STORE_KNOWN = bytes.fromhex("48c787c8000000 00000000")
"""Where room for a block is taken: an instruction that clears data_gen_ptr, which nothing reads."""

_CLOCK_FUNCTION = "gettimeofday"


_LINE = 64
_ON_HEAP = 4096
"""A size that the C library, where the engine's structures are from, allocates on the heap."""
_STORE_PC, _NUMBER, _CALL, _CLEAR, _MOVED = 11, 5, 5, 2, 10
"""Bytes of a prologue's instructions; an address takes 5 or 10."""

THREADS_MAX = 256


class Running:
    """Which machine each thread runs, where native code can see it.

    Word 0 is the address of pthread_self, word 1 a count, then pairs of thread and control block.
    """

    def __init__(self) -> None:
        words = (ctypes.c_int64 * (2 + 2 * THREADS_MAX))()
        self._address = ctypes.addressof(words)
        self._words = memoryview(words).cast("B").cast("q")
        self._words[0] = ctypes.cast(ctypes.CDLL(None).pthread_self, ctypes.c_void_p).value or 0
        self._slots: dict[int, int] = {}

    def enter(self, control: int, thread: int) -> None:
        """The calling thread, which is ``thread``, runs the machine with this control block from now on."""
        slot = self._slots.get(thread)
        if slot is None:
            slot = self._slots[thread] = self._vacant()
            self._words[1] = len(self._slots)
        self._words[slot + 1] = control
        self._words[slot] = thread

    def leave(self, control: int) -> None:
        """The machine with this control block is gone: nobody may look there any more."""
        for slot in self._slots.values():
            if self._words[slot + 1] == control:
                self._words[slot] = 0

    def _vacant(self) -> int:
        """A slot for one more thread; those of ended threads are used again."""
        alive = {thread.ident for thread in threading.enumerate()}
        for thread, slot in self._slots.items():
            if thread not in alive:
                del self._slots[thread]
                return slot
        if len(self._slots) == THREADS_MAX:
            raise EngineError(f"more than {THREADS_MAX} threads run machines in this process")
        return 2 + 2 * len(self._slots)

    def stub(self, target: int) -> bytes:
        """Code that calls ``target`` with this table as its third argument."""
        table = self._address
        return b"\x48\xba" + table.to_bytes(8, "little") + _jump(target)  # mov rdx, table; jump


class _Code:
    """One executable page for small pieces of our own."""

    def __init__(self) -> None:
        self._page: mmap.mmap | None = None

    def add(self, code: bytes) -> int:
        """Put ``code`` there; its address."""
        if self._page is None:
            protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=protection)
        at = self._page.tell()
        self._page.write(code.ljust(-(-len(code) // 16) * 16, b"\xcc"))
        return ctypes.addressof(ctypes.c_char.from_buffer(self._page)) + at


_code = _Code()
running = Running()


def install(library: Library, callbacks: dict[str, int]) -> int:
    """Put every detour in place, once per process; the address of the original WRAPPED function."""
    for helper, (arguments, callback) in HELPERS.items():
        stub = _LOAD_RETURN_ADDRESS[arguments] + _jump(callbacks[callback])
        _overwrite(_function(library, helper, len(stub)), stub)
    for function, callback in FUNCTIONS.items():
        stub = _jump(callbacks[callback])
        _overwrite(_function(library, function, len(stub)), stub)
    _patch(library, ALLOCATE, STORE_AT, STORE_KNOWN, _skip(block_lead()).ljust(len(STORE_KNOWN), b"\x90"))
    for function, (offset, known, better) in PATCHES.items():
        _patch(library, function, offset, known, better)
    for function, prologue in PRECEDED.items():
        _precede(library, function, prologue, callbacks["settle_flags"])
    _precede(library, FLUSH, FLUSH_PROLOGUE, callbacks["before_flush"])
    for function, (offset, known, leave, callback) in ENDED.items():
        _end(library, function, offset, known, leave + _jump(callbacks[callback]))
    _replace_pointer(library, _code.add(running.stub(callbacks["guest_time"])))
    return _wrap(library, callbacks[WRAPPER])


def block_lead() -> int:
    """Bytes to skip before the code of a block, so that the entry of most is the begin of a line.

    In front of it are the arguments of the hook and of the stop check, two calls, and ten bytes less.
    """
    address = 5 if ctypes.addressof(ctypes.create_string_buffer(_ON_HEAP)) < 1 << 32 else 10
    before = _STORE_PC + _NUMBER + _NUMBER + 3 * address + _CALL + _CLEAR + _CALL - _MOVED
    return -before % _LINE


def _skip(count: int) -> bytes:
    """add qword [rdi + code_gen_ptr], count"""
    return b"\x48\x83\x87" + layout.TCG_CODE_END.to_bytes(4, "little") + bytes((count,))


def _function(library: Library, name: str, size: int) -> int:
    """Address of a function in whose room ``size`` bytes can be written."""
    symbol = f"{name}_x86_64"
    room = function_room(library.path, symbol)
    if room < size:
        raise EngineError(f"{symbol} has room for {room} bytes, a detour needs {size}; {supported()}")
    return library.address(symbol)


def _patch(library: Library, name: str, offset: int, known: bytes, better: bytes) -> None:
    """Replace an instruction of a function by another of its size."""
    assert len(known) == len(better), name
    address = _function(library, name, offset + len(known)) + offset
    found = ctypes.string_at(address, len(known))
    if found != known:
        raise EngineError(f"{name}+{offset:#x} reads {found.hex()}, expected {known.hex()}; {supported()}")
    _overwrite(address, better)


def _end(library: Library, name: str, offset: int, known: bytes, ending: bytes) -> None:
    """Go on with ``ending`` after the instructions at an offset, which are moved."""
    way = _jump(_code.add(known + ending))
    _patch(library, name, offset, known, way.ljust(len(known), b"\x90"))


def _wrap(library: Library, target: int) -> int:
    """Detour WRAPPED to ``target``; the address at which the original can still be called."""
    address = _prologue(library, WRAPPED, WRAPPED_PROLOGUE)
    original = _code.add(WRAPPED_PROLOGUE + _jump(address + len(WRAPPED_PROLOGUE)))
    _overwrite(address, _jump(target))
    return original


def _prologue(library: Library, name: str, known: bytes) -> int:
    """Address of a function that begins with ``known``."""
    address = _function(library, name, len(known))
    found = ctypes.string_at(address, len(known))
    if found != known:
        raise EngineError(f"{name} begins with {found.hex()}, not as known; {supported()}")
    return address


def _precede(library: Library, name: str, prologue: bytes, target: int) -> None:
    """Call ``target`` with env and the return address, then the function as it was."""
    address = _prologue(library, name, prologue)
    stub = b"\x57\x56\x48\x83\xec\x08"  # push rdi; push rsi; sub rsp, 8
    stub += b"\x48\x8b\x74\x24\x18"  # mov rsi, [rsp + 24]
    stub += b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xd0"  # mov rax, target; call rax
    stub += b"\x48\x83\xc4\x08\x5e\x5f"  # add rsp, 8; pop rsi; pop rdi
    _overwrite(address, _jump(_code.add(stub + prologue + _jump(address + len(prologue)))))


def _jump(target: int) -> bytes:
    """mov rax, target; jmp rax"""
    return b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"


def _overwrite(address: int, code: bytes) -> None:
    first = address & -mmap.PAGESIZE
    length = -(-(address + len(code) - first) // mmap.PAGESIZE) * mmap.PAGESIZE
    _protect(first, length, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    ctypes.memmove(address, code, len(code))
    _protect(first, length, mmap.PROT_READ | mmap.PROT_EXEC)


def _replace_pointer(library: Library, target: int) -> None:
    anchor = "uc_open"
    slot = jump_slot(library.path, _CLOCK_FUNCTION, library.address(anchor), anchor)
    if slot == 0:
        raise EngineError(f"{library.path} does not import {_CLOCK_FUNCTION}; {supported()}")
    page = slot & -mmap.PAGESIZE
    _protect(page, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.c_uint64.from_address(slot).value = target


_libc = ctypes.CDLL(None, use_errno=True)


def _protect(address: int, length: int, protection: int) -> None:
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection):
        reason = ctypes.get_errno()
        raise EngineError(
            f"mprotect of the engine's code failed (errno {reason}): this host forbids code that changes"
            " itself, which translation needs as well. Allow it for Python (SELinux: execmod, execmem)"
        )
