"""The processor's registers as state, and how they lie in the engine.

What is saved is the architecture's, not the engine's: flags are RFLAGS (the engine keeps them lazily
in five fields), and what the engine uses only while it delivers an exception is left out.
``tests/cpu/test_registers.py`` checks that every byte of the engine's machine state is either read
here or named in :data:`SCRATCH` with the reason.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Annotated

from vmm.cpu import layout
from vmm.state import State, field, length, u16, u32, u64

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")

SCRATCH: dict[tuple[int, int], str] = {
    (144, 172): "lazy flags: read as rflags",
    (172, 176): "direction flag: read as rflags",
    (496, 500): "A20 mask: saved as a flag",
    (500, 504): "padding",
    (504, 592): "MPX bounds: not announced",
    (600, 604): "marker",
    (620, 624): "padding",
    (758, 760): "padding",
    (784, 800): "ft0: scratch of x87 helpers",
    (820, 824): "padding",
    (2872, 2944): "xmm_t0, mmx_t0: scratch of SSE helpers",
    (2944, 4800): "AVX and later: the engine does not implement them",
    (4804, 4808): "padding",
    (4832, 4840): "SVM host save area: not announced",
    (4872, 4896): "tsc, tsc_adjust, tsc_deadline: the clock and the local APIC have them",
    (4904, 4920): "XCR0 and machine check: not announced",
    (4928, 5280): "feature control and performance counters: not announced",
    (5288, 5304): "SMM: not modelled",
    (5304, 5328): "protection keys, TSX, speculation control: not announced",
    (5328, 5384): "marker; paravirtual clocks: not announced",
    (5384, 5400): "error code of the exception being delivered: written before each use",
    (5464, 5496): "host pointers of hardware breakpoints: made again from DR7",
    (5496, 5504): "exception being delivered: none at a block boundary",
    (5504, 5512): "SVM: not announced",
    (5520, 5560): "SVM: not announced",
    (5560, 5568): "host return address",
}


class SegmentState(State):
    """A segment or table register with its hidden part (SDM vol. 3 3.4.3)."""

    selector: u32 = 0
    base: u64 = 0
    limit: u32 = 0
    flags: u32 = 0


class FpuState(State):
    """x87, MMX and SSE (SDM vol. 1 ch. 8 to 10)."""

    top: u32 = 0
    status: u16 = 0
    control: u16 = 0x37F
    tags: Annotated[bytes, length(8)] = b"\x01" * 8
    registers: Annotated[bytes, length(128)] = bytes(128)
    opcode: u16 = 0
    code_segment: u16 = 0
    data_segment: u16 = 0
    instruction: u64 = 0
    operand: u64 = 0
    x87_status: Annotated[bytes, length(8)] = bytes(8)
    mmx_status: Annotated[bytes, length(8)] = bytes(8)
    sse_status: Annotated[bytes, length(8)] = bytes(8)
    mxcsr: u32 = 0x1F80


def _six_segments() -> list[SegmentState]:
    return [SegmentState() for _ in range(6)]


class CpuState(State):
    """Everything the guest can notice of its processor, and the virtual clock that it drives."""

    now_ns: u64 = 0
    halted: bool = False
    nmi_pending: bool = False
    general: Annotated[list[u64], length(16)] = field(default_factory=lambda: [0] * 16)
    rip: u64 = 0
    rflags: u64 = 2
    hflags: u32 = 0
    hflags2: u32 = 0
    segments: Annotated[list[SegmentState], length(6)] = field(default_factory=_six_segments)
    ldt: SegmentState = field(default_factory=SegmentState)
    tr: SegmentState = field(default_factory=SegmentState)
    gdt: SegmentState = field(default_factory=SegmentState)
    idt: SegmentState = field(default_factory=SegmentState)
    control: Annotated[list[u64], length(9)] = field(default_factory=lambda: [0] * 9)
    a20: bool = True
    efer: u64 = 0
    fpu: FpuState = field(default_factory=FpuState)
    xmm: Annotated[list[Annotated[bytes, length(16)]], length(16)] = field(
        default_factory=lambda: [bytes(16)] * 16
    )
    sysenter_cs: u32 = 0
    sysenter_esp: u64 = 0
    sysenter_eip: u64 = 0
    star: u64 = 0
    lstar: u64 = 0
    cstar: u64 = 0
    fmask: u64 = 0
    kernel_gs_base: u64 = 0
    tsc_aux: u64 = 0
    misc_enable: u64 = 1
    pat: u64 = 0x0007040600070406
    debug: Annotated[list[u64], length(8)] = field(
        default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
    )
    tsc_offset: u64 = 0


_SCALARS: tuple[tuple[str, int, str], ...] = (
    ("rip", layout.EIP, "Q"),
    ("hflags", layout.HFLAGS, "I"),
    ("hflags2", layout.HFLAGS2, "I"),
    ("efer", layout.EFER, "Q"),
    ("sysenter_cs", layout.SYSENTER_CS, "I"),
    ("sysenter_esp", layout.SYSENTER_ESP, "Q"),
    ("sysenter_eip", layout.SYSENTER_EIP, "Q"),
    ("star", layout.STAR, "Q"),
    ("lstar", layout.LSTAR, "Q"),
    ("cstar", layout.CSTAR, "Q"),
    ("fmask", layout.FMASK, "Q"),
    ("kernel_gs_base", layout.KERNEL_GS_BASE, "Q"),
    ("tsc_aux", layout.TSC_AUX, "Q"),
    ("misc_enable", layout.MISC_ENABLE, "Q"),
    ("pat", layout.PAT, "Q"),
    ("tsc_offset", layout.TSC_OFFSET, "Q"),
)
_FPU_SCALARS: tuple[tuple[str, int, str], ...] = (
    ("top", 604, "I"),
    ("status", 608, "H"),
    ("control", 610, "H"),
    ("tags", 612, "8s"),
    ("registers", 624, "128s"),
    ("opcode", 752, "H"),
    ("code_segment", 754, "H"),
    ("data_segment", 756, "H"),
    ("instruction", 760, "Q"),
    ("operand", 768, "Q"),
    ("x87_status", 776, "8s"),
    ("mmx_status", 800, "8s"),
    ("sse_status", 808, "8s"),
    ("mxcsr", layout.MXCSR, "I"),
)
_SEGMENT = struct.Struct("<I4xQII")
_XMM_STRIDE = 64

EFLAGS_COMPUTED = 0xCD5
"""CF PF AF ZF SF OF and DF: kept apart from env's eflags by the engine."""
EFLAGS_RF_VM = 0x30000
_CC_DST, _CC_SRC, _CC_OP, _DF = 144, 152, 168, 172
_CC_OP_EFLAGS = 1
_DIRECTION = 0x400


def covered() -> list[tuple[int, int]]:
    """Byte ranges of env that :func:`read` reads, for the completeness test."""
    sizes = [(at, at + struct.calcsize("<" + code)) for _, at, code in (*_SCALARS, *_FPU_SCALARS)]
    sizes += [(0, 128), (layout.EFLAGS, layout.EFLAGS + 8), (layout.CR0, layout.CR0 + 72)]
    sizes += [(layout.DR, layout.DR + 64), (layout.SEGMENTS, layout.IDT + layout.SEGMENT_SIZE)]
    sizes += [(layout.XMM, layout.XMM + 2048)]
    return sizes


def _segment(raw: bytes, at: int) -> SegmentState:
    return SegmentState(*_SEGMENT.unpack_from(raw, at))


def read(env: int, rflags: int) -> CpuState:
    """The registers at ``env``; clock and pending events are the caller's to fill in."""
    raw = ctypes.string_at(env, layout.ENV_STATE_SIZE)
    state = CpuState(
        general=list(struct.unpack_from("<16Q", raw, 0)),
        rflags=rflags,
        segments=[_segment(raw, layout.SEGMENTS + layout.SEGMENT_SIZE * n) for n in range(6)],
        ldt=_segment(raw, layout.LDT),
        tr=_segment(raw, layout.TR),
        gdt=_segment(raw, layout.GDT),
        idt=_segment(raw, layout.IDT),
        control=list(struct.unpack_from("<9Q", raw, layout.CR0)),
        a20=struct.unpack_from("<i", raw, layout.A20_MASK)[0] == -1,
        xmm=[raw[at : at + 16] for at in range(layout.XMM, layout.XMM + 16 * _XMM_STRIDE, _XMM_STRIDE)],
        debug=list(struct.unpack_from("<8Q", raw, layout.DR)),
    )
    for name, at, code in _SCALARS:
        setattr(state, name, struct.unpack_from("<" + code, raw, at)[0])
    for name, at, code in _FPU_SCALARS:
        setattr(state.fpu, name, struct.unpack_from("<" + code, raw, at)[0])
    return state


def write(env: int, state: CpuState) -> None:
    """Put ``state`` at ``env``; what is not saved becomes zero.

    DR7 is left at its reset value: enabling breakpoints is the engine's job (Cpu does it).
    """
    raw = bytearray(layout.ENV_STATE_SIZE)
    struct.pack_into("<16Q", raw, 0, *state.general)
    for name, at, code in _SCALARS:
        struct.pack_into("<" + code, raw, at, getattr(state, name))
    for name, at, code in _FPU_SCALARS:
        struct.pack_into("<" + code, raw, at, getattr(state.fpu, name))
    _write_flags(raw, state.rflags)
    for index, segment in enumerate([*state.segments, state.ldt, state.tr, state.gdt, state.idt]):
        fields = (segment.selector, segment.base, segment.limit, segment.flags)
        _SEGMENT.pack_into(raw, layout.SEGMENTS + layout.SEGMENT_SIZE * index, *fields)
    struct.pack_into("<9Q", raw, layout.CR0, *state.control)
    struct.pack_into("<i", raw, layout.A20_MASK, -1 if state.a20 else ~(1 << 20))
    for index, value in enumerate(state.xmm):
        raw[layout.XMM + _XMM_STRIDE * index : layout.XMM + _XMM_STRIDE * index + 16] = value
    struct.pack_into("<8Q", raw, layout.DR, *state.debug[:7], 0x400)
    struct.pack_into("<i", raw, layout.OLD_EXCEPTION, -1)
    ctypes.memmove(env, bytes(raw), len(raw))


def _write_flags(raw: bytearray, rflags: int) -> None:
    # Between runs the engine keeps all flags in env's eflags, and takes them from there when it starts.
    struct.pack_into("<Q", raw, layout.EFLAGS, rflags | 2)
    struct.pack_into("<Q", raw, _CC_SRC, rflags & EFLAGS_COMPUTED & ~_DIRECTION)
    struct.pack_into("<I", raw, _CC_OP, _CC_OP_EFLAGS)
    struct.pack_into("<i", raw, _DF, -1 if rflags & _DIRECTION else 1)


def write_flags(env: int, rflags: int) -> None:
    """Replace the flags at ``env`` alone."""
    raw = bytearray(layout.ENV_STATE_SIZE)
    _write_flags(raw, rflags)
    for at, size in ((layout.EFLAGS, 8), (_CC_SRC, 8), (_CC_OP, 4), (_DF, 4)):
        ctypes.memmove(env + at, bytes(raw[at : at + size]), size)
