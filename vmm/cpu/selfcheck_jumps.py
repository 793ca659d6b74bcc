"""Does :mod:`vmm.cpu.jump_cache` answer as the engine would, and forget when the engine does?

Asked once a process, after a program ran: two of its blocks are looked up.  Each event that makes answers
wrong is caused through the engine's own functions; a row must not be believed afterwards.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmm.cpu import layout, library

if TYPE_CHECKING:
    from vmm.cpu.engine import Engine

_NO_ROW = 1
"""No code is there."""
_LOOKUP = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)
_OWN = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * 5)
_FLUSH_PAGE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)


class _Asked:
    """The jump cache of an engine, and its own table."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ask = _LOOKUP(engine.callbacks["lookup_block"])
        self._own = _OWN(engine.block["FN_TB_LOOKUP"])
        self._no_row = _LOOKUP(lambda _env: _NO_ROW)

    def answer(self, pc: int) -> int:
        """Where to jump, from wherever it is known."""
        ctypes.c_uint64.from_address(self._engine.env + layout.EIP).value = pc
        return int(self._ask(self._engine.env))

    def row(self, pc: int) -> int:
        """The same if a row is believed, else _NO_ROW."""
        block = self._engine.block
        before = block["FN_RENEW_ROW"]
        block["FN_RENEW_ROW"] = ctypes.cast(self._no_row, ctypes.c_void_p).value or 0
        answer = self.answer(pc)
        block["FN_RENEW_ROW"] = before
        return answer

    def own(self, pc: int) -> int:
        """The engine's answer, in the code segment at 0."""
        env = self._engine.env
        flags = ctypes.c_uint32.from_address(env + layout.HFLAGS).value
        flags |= ctypes.c_uint32.from_address(env + layout.EFLAGS).value & layout.TB_FLAGS_FROM_EFLAGS
        block = self._own(self._engine.cpu, pc, 0, flags, layout.TB_CFLAGS_DEFAULT)
        if block == 0:
            return self._engine.block["EPILOGUE"]
        return ctypes.c_uint64.from_address(block + layout.TB_CODE).value


def check(engine: Engine, first: int, second: int) -> str:
    """What is wrong, or an empty string.  ``first`` and ``second`` are addresses of blocks in one page."""
    bound, asked = engine.library, _Asked(engine)
    flush_page: Any = _FLUSH_PAGE(bound.address("tlb_flush_page_x86_64"))
    events: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a flush of the TLB", lambda: bound.tlb_flush_x86_64(engine.cpu)),
        ("a flush of a page", lambda: flush_page(engine.cpu, first)),
        ("an invalidation", lambda: bound.tb_invalidate_phys_range_x86_64(engine.uc, first, first + 1)),
    )
    for name, cause in events:
        own = asked.own(first)
        if own == engine.block["EPILOGUE"] or asked.answer(first) != own or asked.row(first) != own:
            return f"the jump cache does not find a block before {name}"
        cause()
        if asked.row(first) != _NO_ROW or asked.answer(first) != asked.own(first):
            return f"the jump cache believes a row after {name}"
    if asked.answer(second) == engine.block["EPILOGUE"]:
        return "the jump cache does not find a block beside one that became invalid"
    bound.ctl(engine.uc, library.UC_CTL_TB_FLUSH)
    if asked.answer(second) != engine.block["EPILOGUE"]:
        return "the jump cache believes a row after all code was dropped"
    return ""
