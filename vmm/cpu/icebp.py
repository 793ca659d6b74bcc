"""ICEBP (F1H), which this engine's decoder does not know.

Newer editions of SDM vol. 2 call it INT1: a software interrupt to vector 1 that looks at no
descriptor's privilege level and leaves DR6 alone.  It is a trap, so the saved rip is after it
(SDM vol. 3 6.4.4).  The decoder makes an invalid opcode of it; before :mod:`vmm.cpu.hooks` delivers one,
it asks here.
"""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import FN_LOAD_CODE
from vmm.cpu.native import call2, load32, load64, native

_ICEBP = 0xF1
_LENGTH_MAX = 15
_FS, _ADDRESS_SIZE = 0x64, 0x67  # with GS and operand size between them
_REPNE, _REP = 0xF2, 0xF3
_SEGMENTS, _SEGMENTS_MASK = 0x26, 0xE7  # ES, CS, SS, DS: 26H, 2EH, 36H, 3EH
_REX, _REX_MASK = 0x40, 0xF0


@native
def _is_prefix(byte: int, long: bool) -> bool:
    """LOCK is none here: before ICEBP it is invalid."""
    if byte & _SEGMENTS_MASK == _SEGMENTS or _FS <= byte <= _ADDRESS_SIZE:
        return True
    if byte == _REPNE or byte == _REP:
        return True
    return long and byte & _REX_MASK == _REX


@native
def icebp_length(control: int, env: int) -> int:
    """The length of the ICEBP at rip, prefixes included; 0 if it is another instruction."""
    long = load32(env + layout.HFLAGS) & layout.HF_CS64 != 0
    base = 0 if long else load64(env + layout.CS + layout.SEGMENT_BASE)
    at = base + load64(env + layout.EIP)
    for length in range(_LENGTH_MAX):
        byte = call2(load64(control + FN_LOAD_CODE), env, at + length) & 0xFF
        if byte == _ICEBP:
            return length + 1
        if not _is_prefix(byte, long):
            break
    return 0
