"""Registers changed from outside, with all that the engine has derived from them.

Source: Intel SDM vol. 1 3.4 and vol. 3 2.2 to 2.5.  A change is of the register alone and no instruction: a
write that an instruction could not make (reserved bits, an address that is not canonical) is made, and what
comes of it is the guest's.  For a segment, ``fs`` is the selector and ``fs.base`` the hidden base; nothing is
loaded from a descriptor table.  An XMM register is two halves, ``xmm3.low`` and ``xmm3.high``.

Not here: x87 and MMX registers, debug registers, model-specific ones.
"""

from __future__ import annotations

import ctypes

from vmm.cpu import layout
from vmm.cpu.cpu import Cpu
from vmm.cpu.registers import GENERAL, SEGMENT_NAMES

_U64 = (1 << 64) - 1
_VM = 1 << 17
_XMM_STRIDE = 64


def _cells() -> dict[str, int]:
    """Registers that lie in env as they are: name -> offset."""
    found = {name: 8 * number for number, name in enumerate(GENERAL)}
    for number in range(16):
        found[f"xmm{number}.low"] = layout.XMM + _XMM_STRIDE * number
        found[f"xmm{number}.high"] = layout.XMM + _XMM_STRIDE * number + 8
    return found


CELLS = _cells()
"""What may have stuck bits: the engine reads these words anew in every block."""
_CONTROL = {f"cr{number}": layout.CR0 + 8 * number for number in (0, 2, 3, 4)}
_SEGMENTS = {name: layout.SEGMENTS + layout.SEGMENT_SIZE * n for n, name in enumerate(SEGMENT_NAMES)}
_BASES = {f"{name}.base": at + layout.SEGMENT_BASE for name, at in _SEGMENTS.items()}
NAMES = (*CELLS, "rip", "rflags", *_CONTROL, "efer", *_SEGMENTS, *_BASES)


def _cell(cpu: Cpu, name: str) -> ctypes.c_uint64:
    offset = {**CELLS, **_CONTROL, **_BASES, "rip": layout.EIP, "efer": layout.EFER}[name]
    return ctypes.c_uint64.from_address(cpu.env + offset)


def read(cpu: Cpu, name: str) -> int:
    """The register's value."""
    if name == "rflags":
        return cpu.rflags
    if name in _SEGMENTS:
        return ctypes.c_uint32.from_address(cpu.env + _SEGMENTS[name]).value
    return _cell(cpu, name).value


def write(cpu: Cpu, name: str, value: int) -> None:
    """Replace the register's value; not while the processor runs."""
    value &= _U64
    library, env = cpu.library, cpu.env
    if name == "rflags":
        mode = cpu.rflags ^ value
        cpu.write_rflags(value)
        if mode & _VM:
            library.x86_update_hflags_x86_64(env)
    elif name in _SEGMENTS:
        ctypes.c_uint32.from_address(env + _SEGMENTS[name]).value = value & 0xFFFF
    elif name in ("cr0", "cr4"):
        update = library.cpu_x86_update_cr0_x86_64 if name == "cr0" else library.cpu_x86_update_cr4_x86_64
        update(env, value & 0xFFFFFFFF)
    else:
        _cell(cpu, name).value = value
        if name in ("cr3", "efer"):
            cpu.flush_tlb()
        if name == "efer" or name in _BASES:
            library.x86_update_hflags_x86_64(env)
    if name not in CELLS and name not in ("rflags", "cr2"):
        cpu.parts.leave_block()
