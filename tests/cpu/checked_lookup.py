"""Every answer of ``lookup_block`` beside the engine's own, compiled like it: a guest makes millions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

from vmm.cpu import compile as native
from vmm.cpu import detour, layout
from vmm.cpu.control import ENV_TO_CONTROL, EPILOGUE, FN_TB_LOOKUP
from vmm.cpu.library import Library
from vmm.cpu.native import call1, call5, load32, load64, store64

ASKED, WRONG, PC, ANSWER, EXPECTED = range(0, 40, 8)
"""How many answers were asked for and how many were wrong; the last of those."""


def _compile(lookup: int, found: int) -> Any:
    def checked(env: int) -> int:
        answer = call1(lookup, env)
        cs_base = load64(env + layout.CS + layout.SEGMENT_BASE)
        pc = load64(env + layout.EIP) + cs_base
        flags = load32(env + layout.HFLAGS) | load64(env + layout.EFLAGS) & layout.TB_FLAGS_FROM_EFLAGS
        control, cpu = load64(env + ENV_TO_CONTROL), env - layout.ENV_FROM_CPU
        block = call5(load64(control + FN_TB_LOOKUP), cpu, pc, cs_base, flags, layout.TB_CFLAGS_DEFAULT)
        expected = load64(control + EPILOGUE) if block == 0 else load64(block + layout.TB_CODE)
        store64(found + ASKED, load64(found + ASKED) + 1)
        if answer != expected:
            store64(found + WRONG, load64(found + WRONG) + 1)
            store64(found + PC, pc)
            store64(found + ANSWER, answer)
            store64(found + EXPECTED, expected)
        return answer

    return numba.cfunc("int64(int64)")(checked)


@contextmanager
def checking(engine: Library) -> Iterator[Any]:
    """Check all lookups of this engine's machines; the words are indexed by ``ASKED >> 3`` and so on.

    The engine is asked after ours: if it walks page tables the guest sees other accessed bits than it would.
    """
    callbacks = native.callbacks()
    words = np.zeros(5, np.int64)
    check = _compile(callbacks["lookup_block"], int(words.ctypes.data))
    helper = engine.address("helper_lookup_tb_ptr_x86_64")
    way = detour._jump(callbacks["lookup_block"])
    assert ctypes.string_at(helper, len(way)) == way
    detour._overwrite(helper, detour._jump(check.address))
    try:
        yield words
    finally:
        detour._overwrite(helper, way)
