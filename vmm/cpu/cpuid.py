"""CPUID: one list of features from which both the guest's answer and the engine's ability follow.

The processor is what the engine implements well: x86-64-v2 (SSE4.2, POPCNT, CMPXCHG16B) with AES,
carry-less multiply, MOVBE, FSGSBASE, SMEP, 1 GiB pages; SYSRET and segment rules are AMD's, so the vendor
is too.  Left out although the engine has them: XSAVE and
ERMS (slower than the plain forms here), SMAP (two more blocks in every copy from user space),
RDRAND and RDSEED (host randomness), SVM, MTRR and machine check (stubs in the engine).  The engine has
no AVX.

Sources: SDM vol. 2 CPUID, AMD APM vol. 3 appendix E; the hypervisor leaves follow the convention of
0x40000000 (signature) and 0x40000010 (TSC and bus frequency in kHz).
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from vmm.cpu import layout
from vmm.cpu.constants import CPUID_ANY_SUBLEAF, PHYSICAL_BITS

VENDOR = b"AuthenticAMD"
HYPERVISOR = b"ColoVMM\0\0\0\0\0"
BRAND = b"colo-vmm virtual CPU (Unicorn 2.1.4 TCG)"
SIGNATURE = 0x00060FB1
"""Family 15, model 107, stepping 1: a K8 whose REP MOVS and REP STOS kernels are told to trust."""
TSC_KHZ = 1_000_000
LINEAR_BITS = 48

_FEATURES_1_EDX = {
    0: "FPU", 2: "DE", 3: "PSE", 4: "TSC", 5: "MSR", 6: "PAE", 8: "CX8", 9: "APIC", 11: "SEP", 13: "PGE",
    15: "CMOV", 16: "PAT", 17: "PSE36", 19: "CLFSH", 23: "MMX", 24: "FXSR", 25: "SSE", 26: "SSE2",
}  # fmt: skip
_FEATURES_1_ECX = {
    0: "SSE3", 1: "PCLMULQDQ", 9: "SSSE3", 13: "CX16", 19: "SSE4.1", 20: "SSE4.2", 22: "MOVBE",
    23: "POPCNT", 24: "TSC-DEADLINE", 25: "AES", 31: "HYPERVISOR",
}  # fmt: skip
_FEATURES_7_EBX = {0: "FSGSBASE", 7: "SMEP"}
_FEATURES_EXT_EDX = {11: "SYSCALL", 20: "NX", 26: "1GB", 27: "RDTSCP", 29: "LM"}
_FEATURES_EXT_ECX = {0: "LAHF-SAHF", 5: "ABM"}
_COMMON_WITH_1_EDX = 0x0183F3FF
"""Bits of leaf 1 EDX that AMD repeats in leaf 0x80000001."""
_INVARIANT_TSC = 1 << 8
_ARAT = 1 << 2
"""The local APIC's timer does not stop when the processor idles."""


def _mask(features: dict[int, str]) -> int:
    return sum(1 << bit for bit in features)


FEATURE_WORDS: dict[int, int] = {
    layout.FEATURE_1_EDX: _mask(_FEATURES_1_EDX),
    layout.FEATURE_1_ECX: _mask(_FEATURES_1_ECX),
    layout.FEATURE_7_EBX: _mask(_FEATURES_7_EBX),
    layout.FEATURE_7_ECX: 0,
    layout.FEATURE_EXT_EDX: _mask(_FEATURES_EXT_EDX) | (_mask(_FEATURES_1_EDX) & _COMMON_WITH_1_EDX),
    layout.FEATURE_EXT_ECX: _mask(_FEATURES_EXT_ECX),
}
"""What the engine's translator is told to accept: exactly what the guest is told."""


def _text(text: bytes) -> tuple[int, ...]:
    return struct.unpack("<4I", text)


def rows() -> list[tuple[int, int, int, int, int, int]]:
    """(leaf, subleaf or CPUID_ANY_SUBLEAF, EAX, EBX, ECX, EDX); anything else reads zero."""
    any_ = CPUID_ANY_SUBLEAF
    vendor_b, vendor_d, vendor_c = struct.unpack("<3I", VENDOR)
    hyper_b, hyper_c, hyper_d = struct.unpack("<3I", HYPERVISOR)
    words = FEATURE_WORDS
    brand = BRAND.ljust(48, b"\0")
    clflush_bytes, logical_cpus = 8, 1
    return [
        (0x0, any_, 7, vendor_b, vendor_c, vendor_d),
        (0x1, any_, SIGNATURE, clflush_bytes << 8 | logical_cpus << 16, words[1], words[0]),
        (0x6, any_, _ARAT, 0, 0, 0),
        (0x7, 0, 0, words[2], 0, 0),
        (0x40000000, any_, 0x40000010, hyper_b, hyper_c, hyper_d),
        (0x40000010, any_, TSC_KHZ, TSC_KHZ, 0, 0),
        (0x80000000, any_, 0x80000008, vendor_b, vendor_c, vendor_d),
        (0x80000001, any_, SIGNATURE, 0, words[7], words[6]),
        *((0x80000002 + n, any_, *_text(brand[16 * n : 16 * n + 16])) for n in range(3)),  # type: ignore[list-item]
        (0x80000007, any_, 0, 0, 0, _INVARIANT_TSC),
        (0x80000008, any_, LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0),
    ]


def table() -> npt.NDArray[np.int64]:
    """:func:`rows` as the native code wants them."""
    return np.array(rows(), dtype=np.int64)
