"""Is this the engine that we know?  Asked once a process, before the first guest runs.

:mod:`vmm.cpu.layout` is a table of offsets into somebody else's structures, :mod:`vmm.cpu.detour`
replaces functions and :mod:`vmm.cpu.inline_clock` rewrites generated code.  The build id says that all
of it should fit; this module looks.

*Layout*: registers go in through Unicorn's public API and come out of :func:`registers.read`, and the
other way round for selectors, which the API would load from a descriptor table.  The engine's fields
of model-specific registers have no public name once RDMSR and WRMSR are ours;
``tests/cpu/test_layout.py`` compares them on an engine without detours.

*Behaviour*: a program of a few blocks runs with plain and with patched prologues, in slices.  Its
registers, port accesses and clock are known beforehand.  If the plain run is wrong the engine is
refused; if only the patched one is, the machine can do without patching, which the verdict says.

*Finding blocks*: :mod:`vmm.cpu.selfcheck_jumps`.  *Address translation*: :mod:`vmm.cpu.selfcheck_tlb`.
*Links between blocks*: :mod:`vmm.cpu.selfcheck_links`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.clock import NEVER_NS
from vmm.cpu import cpuid, layout, library, registers, selfcheck_jumps, selfcheck_links, selfcheck_tlb
from vmm.cpu.control import SCRATCH_USED
from vmm.cpu.registers import CpuState, SegmentState
from vmm.errors import EngineError

if TYPE_CHECKING:
    from vmm.cpu.engine import Engine


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found."""

    engine: str
    build_id: str
    patching: bool
    """Block prologues may be rewritten; False: use the plain block hook."""
    reason: str
    """Why not, or an empty string."""


def verify(engine: Engine) -> Verdict:
    """Check ``engine``, one made for this purpose over at least 1 MiB of RAM; it is spent afterwards.

    Takes some milliseconds.  The caller keeps the RAM alive and closes the engine.

    Raises EngineError when the engine is not what the tables say.
    """
    _check_fields(engine)
    _check_layout(engine)
    expected = _expected(engine)
    plain = _run(engine, patching=False)
    if plain != expected:
        raise _refusal(engine, f"the self-check program gave {plain}, expected {expected}")
    reason = selfcheck_links.check(engine, _LOOP) or _patched(engine, expected)
    _check_fields(engine)
    if wrong := selfcheck_jumps.check(engine, _CODE, _HANDLER):
        raise _refusal(engine, wrong)
    if different := selfcheck_tlb.check(engine):
        raise _refusal(engine, different)
    build_id = engine.library.build_id
    return Verdict(layout.BUILD_IDS.get(build_id, "unknown"), build_id, not reason, reason)


def _patched(engine: Engine, expected: _Outcome) -> str:
    """Why prologues may not be rewritten, or an empty string."""
    patched = _run(engine, patching=True)
    seen, done = engine.block["N_BLOCKS_SEEN"], engine.block["N_PATCHED"]
    if patched != expected:
        return f"with patched prologues the self-check program gave {patched}, expected {expected}"
    if seen != done or not done:
        return f"only {done} of {seen} prologues were understood"
    return selfcheck_links.check(engine, _LOOP)


def _refusal(engine: Engine, found: str) -> EngineError:
    return EngineError(
        f"{engine.library.path} (build id {engine.library.build_id}): {found}; {library.supported()}"
    )


# Fields of uc_struct and CPUState


def _check_fields(engine: Engine) -> None:
    flags = ctypes.string_at(engine.uc + layout.UC_NO_EXIT_REQUEST, 2)
    if flags != b"\x01\x01":
        raise _refusal(engine, f"no_exit_request, init_done read {flags.hex()}, expected 0101")
    unused = ctypes.string_at(
        engine.cpu + layout.CPU_SCRATCH + SCRATCH_USED, layout.CPU_SCRATCH_SIZE - SCRATCH_USED
    )
    if any(unused):
        raise _refusal(engine, "CPUState.jmp_env is in use")


# Layout of env

_GENERAL = (35, 38, 40, 37, 44, 36, 43, 39, *range(106, 114))
_RIP, _RFLAGS = 41, 253
_CONTROL = {0: 50, 2: 52, 3: 53, 4: 54}
_DEBUG = range(66, 74)
_XMM = range(122, 138)
_SELECTORS = (28, 11, 49, 17, 32, 33)
_FS_BASE, _GS_BASE = 250, 251
_IDTR, _GDTR, _LDTR, _TR = 242, 243, 244, 245
_FPSW, _FPCW, _FPTAG, _MXCSR, _FIP, _FCS, _FDP, _FDS, _FOP = 31, 246, 247, 249, 254, 255, 256, 257, 258
_FP = range(82, 90)

REGISTER_IDS: dict[str, int] = {
    **{f"UC_X86_REG_{name.upper()}": _GENERAL[n] for n, name in enumerate(registers.GENERAL)},
    **{f"UC_X86_REG_{name.upper()}": _SELECTORS[n] for n, name in enumerate(registers.SEGMENT_NAMES)},
    **{f"UC_X86_REG_CR{n}": number for n, number in _CONTROL.items()},
    **{f"UC_X86_REG_DR{n}": number for n, number in enumerate(_DEBUG)},
    **{f"UC_X86_REG_XMM{n}": number for n, number in enumerate(_XMM)},
    **{f"UC_X86_REG_FP{n}": number for n, number in enumerate(_FP)},
    "UC_X86_REG_RIP": _RIP, "UC_X86_REG_RFLAGS": _RFLAGS,
    "UC_X86_REG_FS_BASE": _FS_BASE, "UC_X86_REG_GS_BASE": _GS_BASE,
    "UC_X86_REG_IDTR": _IDTR, "UC_X86_REG_GDTR": _GDTR, "UC_X86_REG_LDTR": _LDTR, "UC_X86_REG_TR": _TR,
    "UC_X86_REG_FPSW": _FPSW, "UC_X86_REG_FPCW": _FPCW, "UC_X86_REG_FPTAG": _FPTAG,
    "UC_X86_REG_MXCSR": _MXCSR, "UC_X86_REG_FIP": _FIP, "UC_X86_REG_FCS": _FCS,
    "UC_X86_REG_FDP": _FDP, "UC_X86_REG_FDS": _FDS, "UC_X86_REG_FOP": _FOP,
}  # fmt: skip
"""Unicorn's numbers for the registers used here, by its names: the package itself is not imported."""

_MMR = struct.Struct("<H6xQII")
"""uc_x86_mmr: selector, base, limit, flags."""


class _Probe(NamedTuple):
    """Write ``raw`` to a register by its public number: ``get`` of the state must give ``value``."""

    name: str
    register: int
    raw: bytes
    get: Callable[[CpuState], object]
    value: object


def _pattern(seed: int) -> int:
    """64 bits that no other seed has, with every byte different from zero."""
    return (0x0101_0101_0101_0101 * (seed & 0x7F)) ^ 0x1122_3344_5566_7788


def _word(name: str, register: int, code: str, value: int, get: Callable[[CpuState], object]) -> _Probe:
    return _Probe(name, register, struct.pack("<" + code, value), get, value)


def _probes() -> list[_Probe]:
    probes = [
        _word(f"general {n}", number, "Q", _pattern(n + 1), lambda s, n=n: s.general[n])  # type: ignore[misc]
        for n, number in enumerate(_GENERAL)
    ]
    probes.append(_word("rip", _RIP, "Q", _pattern(17), lambda s: s.rip))
    probes.append(_word("rflags", _RFLAGS, "Q", 0x43E43, lambda s: s.rflags))
    for n, value in ((0, 0x6000_0011), (2, _pattern(18)), (3, 0x0123_4000), (4, 0x0620)):
        probes.append(_word(f"cr{n}", _CONTROL[n], "Q", value, lambda s, n=n: s.control[n]))  # type: ignore[misc]
    for n in (0, 1, 2, 3, 6):
        probes.append(_word(f"dr{n}", _DEBUG[n], "Q", _pattern(20 + n), lambda s, n=n: s.debug[n]))  # type: ignore[misc]
    for n, number in enumerate(_XMM):
        raw = struct.pack("<QQ", _pattern(30 + n), _pattern(50 + n))
        probes.append(_Probe(f"xmm{n}", number, raw, lambda s, n=n: s.xmm[n], raw))  # type: ignore[misc]
    return [*probes, *_segment_probes(), *_fpu_probes()]


def _segment_probes() -> list[_Probe]:
    fs, gs = registers.SEGMENT_NAMES.index("fs"), registers.SEGMENT_NAMES.index("gs")
    probes = [
        _word("fs base", _FS_BASE, "Q", _pattern(70), lambda s: s.segments[fs].base),
        _word("gs base", _GS_BASE, "Q", _pattern(71), lambda s: s.segments[gs].base),
    ]
    tables: tuple[tuple[str, int, SegmentState], ...] = (
        ("gdt", _GDTR, SegmentState(0, 0x7123_4560, 0x0FFF, 0)),
        ("idt", _IDTR, SegmentState(0, 0x6123_4560, 0x0EFF, 0)),
        ("ldt", _LDTR, SegmentState(0x58, 0x5123_4560, 0x0DFF, 0x8200)),
        ("tr", _TR, SegmentState(0x60, 0x4123_4560, 0x0CFF, 0x8B00)),
    )
    for name, number, table in tables:
        raw = _MMR.pack(table.selector, table.base, table.limit, table.flags)
        probes.append(_Probe(name, number, raw, lambda s, name=name: getattr(s, name), table))  # type: ignore[misc]
    return probes


def _fpu_probes() -> list[_Probe]:
    status, top = 0x4700, 5
    tags = 0b11_00_11_00_00_11_11_00
    probes = [
        _word("fpu status", _FPSW, "H", status | top << 11, lambda s: s.fpu.status | s.fpu.top << 11),
        _word("fpu control", _FPCW, "H", 0x0B7F, lambda s: s.fpu.control),
        _Probe("fpu tags", _FPTAG, struct.pack("<H", tags), lambda s: s.fpu.tags,
               bytes(tags >> 2 * n & 3 == 3 for n in range(8))),
        _word("mxcsr", _MXCSR, "I", 0x7F80, lambda s: s.fpu.mxcsr),
        _word("fip", _FIP, "Q", _pattern(80), lambda s: s.fpu.instruction),
        _word("fdp", _FDP, "Q", _pattern(81), lambda s: s.fpu.operand),
        _word("fcs", _FCS, "H", 0x1357, lambda s: s.fpu.code_segment),
        _word("fds", _FDS, "H", 0x2468, lambda s: s.fpu.data_segment),
        _word("fop", _FOP, "H", 0x0579, lambda s: s.fpu.opcode),
    ]  # fmt: skip
    for n, number in enumerate(_FP):
        raw = struct.pack("<QH", _pattern(90 + n) | 1 << 63, 0x4000 + n)
        probes.append(_Probe(f"fpu register {n}", number, raw, _fpu_register(n), raw))
    return probes


def _fpu_register(number: int) -> Callable[[CpuState], object]:
    """Ten of the sixteen bytes are the register."""
    return lambda state: state.fpu.registers[16 * number : 16 * number + 10]


def _check_layout(engine: Engine) -> None:
    bound = engine.library
    probes = _probes()
    for probe in probes:
        written = bound.uc_reg_write(engine.uc, probe.register, probe.raw)
        bound.check(f"uc_reg_write of {probe.name}", written)
    state = registers.read(engine.env, bound.helper_read_eflags_x86_64(engine.env))
    for probe in probes:
        if (found := probe.get(state)) != probe.value:
            raise _refusal(engine, f"{probe.name} reads {found!r}, expected {probe.value!r}")
    selectors = [0x1111 * (n + 1) for n in range(6)]
    for segment, selector in zip(state.segments, selectors, strict=True):
        segment.selector = selector
    registers.write(engine.env, state)
    for name, number, selector in zip(registers.SEGMENT_NAMES, _SELECTORS, selectors, strict=True):
        value = ctypes.c_uint16()
        bound.check(f"uc_reg_read of {name}", bound.uc_reg_read(engine.uc, number, ctypes.byref(value)))
        if value.value != selector:
            raise _refusal(engine, f"{name} reads {value.value:#x}, expected {selector:#x}")


# Behaviour

_CODE, _HANDLER, _STACK = 0x7C00, 0x7D00, 0x7C00
_INVALID_OPCODE = 6
_ROUNDS = 50
_PORT_BYTE = 5
_PROGRAM = bytes.fromhex(
    "b93200"  #     mov  cx, 50
    "e460"  #    l: in   al, 0x60
    "00c3"  #       add  bl, al
    "88d8"  #       mov  al, bl
    "e661"  #       out  0x61, al
    "e2f6"  #       loop l
    "b93200"  #     mov  cx, 50
    "01cf"  #    m: add  di, cx
    "49"  #         dec  cx
    "75fb"  #       jnz  m
    "0f31"  #       rdtsc
    "6689c6"  #     mov  esi, eax
    "6631c0"  #     xor  eax, eax
    "0fa2"  #       cpuid
    "0f0b"  #       ud2
    "f4"  #         hlt
)
_LOOP = selfcheck_links.Loop(_CODE + 13, _CODE + 16, _CODE + 21)
"""The second one, whose blocks are linked to each other."""
_HANDLER_PROGRAM = bytes.fromhex(
    "89e5"  #       mov  bp, sp
    "83460002"  #   add  word [bp], 2      past the ud2
    "47"  #         inc  di
    "cf"  #         iret
)
_DEADLINES_NS = (30_000, 60_000, 90_000, NEVER_NS)
_REAL_MODE_CODE, _REAL_MODE_DATA, _REAL_MODE_LIMIT = 0x9B00, 0x9300, 0xFFFF
_CR0_ET = 1 << 4


class _Outcome(NamedTuple):
    """What a run of the program left behind."""

    general: tuple[int, ...]
    rip: int
    stops: tuple[int, ...]
    """The clock at each deadline's stop and at the end."""
    written: bytes
    exceptions: int


def _expected(engine: Engine) -> _Outcome:
    """The outcome by arithmetic: every block is charged its instructions, then what they do."""
    block = engine.block
    instruction, access, tsc = block["COST_INSTRUCTION"], block["COST_ACCESS"], block["COST_TSC"]
    before_tsc = [6 * instruction + 2 * access, *[5 * instruction + 2 * access] * (_ROUNDS - 1)]
    before_tsc += [4 * instruction, *[3 * instruction] * (_ROUNDS - 1)]
    charges = [*before_tsc, 5 * instruction + tsc, 4 * instruction, instruction]
    deadlines, stops, now = list(_DEADLINES_NS), [], 0
    for charge in charges:
        while now >= deadlines[0]:
            stops.append(now)
            del deadlines[0]
        now += charge
    leaf, _, eax, ebx, ecx, edx = cpuid.rows()[0]
    assert leaf == 0, "CPUID's table begins with leaf 0"
    rsi = sum(before_tsc) + 5 * instruction + tsc
    rdi = sum(range(_ROUNDS + 1)) + 1
    return _Outcome(
        general=(eax, ecx, edx, ebx, _STACK, _STACK - 6, rsi, rdi, *[0] * 8),
        rip=_CODE + len(_PROGRAM),
        stops=(*stops, now),
        written=bytes(_PORT_BYTE * (n + 1) & 0xFF for n in range(_ROUNDS)),
        exceptions=1,
    )


def _run(engine: Engine, *, patching: bool) -> _Outcome:
    bound, block = engine.library, engine.block
    _load(engine)
    block["PATCHING"] = int(patching)
    for counter in ("N_BLOCKS_SEEN", "N_PATCHED", "N_EXCEPTIONS"):
        block[counter] = 0
    block.now_ns = 0
    written = bytearray()
    answers = _connect_ports(engine, written)
    stops = []
    for deadline in _DEADLINES_NS:
        block["DEADLINE"] = deadline
        block.look_at(deadline)
        rip = ctypes.c_uint64.from_address(engine.env + layout.EIP).value
        bound.check("uc_emu_start", bound.uc_emu_start(engine.uc, rip, 0, 0, 0))
        stops.append(block.now_ns)
    del answers
    state = registers.read(engine.env, bound.helper_read_eflags_x86_64(engine.env))
    return _Outcome(tuple(state.general), state.rip, tuple(stops), bytes(written), block["N_EXCEPTIONS"])


def _connect_ports(engine: Engine, written: bytearray) -> list[Any]:
    """Answer port reads, collect port writes; the result must live as long as the run."""

    def write(_port: int, _size: int, value: int) -> int:
        written.append(value & 0xFF)
        return 0

    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    answers = [call(lambda _port, _size, _value: _PORT_BYTE), call(write)]
    for word, answer in zip(("PY_PORT_IN", "PY_PORT_OUT"), answers, strict=True):
        engine.block[word] = ctypes.cast(answer, ctypes.c_void_p).value or 0
    return answers


def _load(engine: Engine) -> None:
    """The program in RAM, the processor in real mode before its first instruction."""
    bound = engine.library
    vector = struct.pack("<HH", _HANDLER, 0)
    for address, data in (
        (_CODE, _PROGRAM),
        (_HANDLER, _HANDLER_PROGRAM),
        (4 * _INVALID_OPCODE, vector),
    ):
        written = bound.uc_mem_write(
            ctypes.c_void_p(engine.uc), ctypes.c_uint64(address), data, ctypes.c_size_t(len(data))
        )
        bound.check("uc_mem_write", written)
    data_segment = SegmentState(0, 0, _REAL_MODE_LIMIT, _REAL_MODE_DATA)
    state = CpuState(rip=_CODE, segments=[data_segment] * 6, idt=SegmentState(limit=0x3FF))
    state.segments[registers.SEGMENT_NAMES.index("cs")] = SegmentState(
        0, 0, _REAL_MODE_LIMIT, _REAL_MODE_CODE
    )
    state.general[registers.GENERAL.index("rsp")] = _STACK
    state.control[0] = _CR0_ET
    registers.write(engine.env, state)
    bound.cpu_x86_update_cr0_x86_64(engine.env, _CR0_ET)
    bound.cpu_x86_update_cr4_x86_64(engine.env, 0)
    bound.x86_update_hflags_x86_64(engine.env)
    flushes = ctypes.c_uint32.from_address(engine.block["FLUSHES"])
    before = flushes.value
    bound.ctl(engine.uc, library.UC_CTL_TB_FLUSH)
    if flushes.value != before + 1:
        raise _refusal(engine, f"a flush of all blocks was counted as {flushes.value - before}")
    bound.tlb_flush_x86_64(engine.cpu)
