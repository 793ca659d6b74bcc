"""What Python answers native code: one pointer a question in the control block.

No exception may cross native frames: the first one is kept, the guest stops, and :meth:`Answers.raise_kept`
raises it.  Reads and writes have a guard each: one call less on the busiest path there is.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from types import CodeType

from vmm.cpu.control import ControlBlock

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64)

Answer = Callable[[int, int, int], int]


class Answers:
    """Functions that native code may call, each behind a guard."""

    __slots__ = ("_block", "_failure", "_guards", "_main_thread", "_outer", "_pointers", "_stop")

    def __init__(self, block: ControlBlock, stop: Callable[[], None]) -> None:
        """``stop`` makes the guest stop at its next block."""
        self._block = block
        self._stop = stop
        self._failure: BaseException | None = None
        self._main_thread = 0
        self._guards: set[CodeType] = set()
        self._pointers: dict[str, object] = {}
        self._outer: Callable[[sys.UnraisableHookArgs], object] = sys.unraisablehook

    def _set(self, word: str, function: Answer) -> None:
        pointer = _CALLBACK(function)
        self._guards.add(function.__code__)
        self._pointers[word] = pointer
        self._block[word] = ctypes.cast(pointer, ctypes.c_void_p).value or 0

    def _failed(self, failure: BaseException) -> int:
        if self._failure is None:
            self._failure = failure
        self._stop()
        return 0

    def read(self, word: str, read: Callable[[int, int], int]) -> None:
        """A question of two numbers."""

        def call(a: int, b: int, _: int) -> int:
            try:
                return read(a, b)
            except BaseException as exc:
                return self._failed(exc)

        self._set(word, call)

    def write(self, word: str, write: Callable[[int, int, int], object]) -> None:
        """Something to be done, of three numbers."""

        def call(a: int, b: int, c: int) -> int:
            try:
                write(a, b, c)
            except BaseException as exc:
                return self._failed(exc)
            return 0

        self._set(word, call)

    def answer(self, word: str, answer: Answer) -> None:
        """A question of three numbers."""

        def call(a: int, b: int, c: int) -> int:
            try:
                return answer(a, b, c)
            except BaseException as exc:
                return self._failed(exc)

        self._set(word, call)

    def raise_kept(self) -> None:
        """Raise what a function raised while native code had called it."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._block["STOP_REQUEST"] = 0
            raise failure

    def keep_lost(self, thread: int) -> Callable[[sys.UnraisableHookArgs], object] | None:
        """Keep what a signal handler raises on the way into a guard, before its ``try``.

        Python runs handlers in the main thread, wherever it happens to be; ctypes hands what is raised
        there to ``sys.unraisablehook`` and the access that was to be made answers 0.  Returns the hook to be
        put back afterwards, or None where there is none, because no handler runs in this ``thread``.  One may
        have raised before that was done the last time: our own hook is then still there.
        """
        if thread != self._main_thread:
            if thread != threading.main_thread().ident:
                return None
            self._main_thread = thread
        if sys.unraisablehook != self._keep:
            self._outer = sys.unraisablehook
        sys.unraisablehook = self._keep
        return self._outer

    def _keep(self, lost: sys.UnraisableHookArgs) -> None:
        """A guard is known by its code, in the outermost frame: Python 3.13 no longer passes the function."""
        trace = lost.exc_traceback
        if trace is not None and trace.tb_frame.f_code in self._guards and lost.exc_value is not None:
            self._failed(lost.exc_value)
        else:
            self._outer(lost)
