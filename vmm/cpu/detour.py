"""Detours: the engine's helpers for a few instructions jump to ours.

A helper is an exported C function that generated code calls.  Its first 16 bytes are replaced by

    mov  <next argument register>, [rsp]      the return address, as one argument more
    mov  rax, <replacement>
    jmp  rax

in our private copy of the library (:mod:`vmm.cpu.library`), so nobody else's Unicorn is touched.
The replaced functions are reached only from generated code and never return into the bytes that
were overwritten.

The engine also reads the host's clock in one place: it resizes its TLB by how much time has passed.
A guest could tell (a page's accessed bit is set again when the TLB forgot the page), so the library's
pointer to ``gettimeofday`` is replaced by a function that leaves the caller's zeroed result alone.
"""

from __future__ import annotations

import ctypes
import mmap

from vmm.cpu.elf_image import function_size, jump_slot
from vmm.cpu.library import Library, supported
from vmm.errors import EngineError

_LOAD_RETURN_ADDRESS = {
    1: b"\x48\x8b\x34\x24",  # mov rsi, [rsp]
    2: b"\x48\x8b\x14\x24",  # mov rdx, [rsp]
    3: b"\x48\x8b\x0c\x24",  # mov rcx, [rsp]
}
_STUB_SIZE = 16

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
}
"""Helper -> (its number of C arguments, the callback that replaces it)."""

_CLOCK_FUNCTION = "gettimeofday"


def install(library: Library, callbacks: dict[str, int]) -> None:
    """Replace every helper in :data:`HELPERS` and stop the engine's clock.  Once per process."""
    for helper, (arguments, callback) in HELPERS.items():
        symbol = f"{helper}_x86_64"
        address = library.address(symbol)
        size = function_size(library.path, symbol)
        if size < _STUB_SIZE:
            raise EngineError(f"{symbol} has {size} bytes, a detour needs {_STUB_SIZE}; {supported()}")
        _overwrite(address, _stub(arguments, callbacks[callback]))
    _replace_pointer(library, callbacks["no_time"])


def _stub(arguments: int, target: int) -> bytes:
    return _LOAD_RETURN_ADDRESS[arguments] + b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"


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
