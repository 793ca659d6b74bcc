"""Messages on standard error: what is being done while somebody waits for more than a moment.

On a terminal one line is rewritten in place; in a pipe, a log, it is written once and then every few
seconds.  What takes less than a second says nothing.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

QUIET_S = 1.0
TERMINAL_EVERY_S, PIPE_EVERY_S = 0.1, 5.0
MIB = 1 << 20


class Progress:
    """One task; use it in a ``with`` statement."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._live = sys.stderr.isatty()
        self._next = time.monotonic() + QUIET_S
        self._shown = False
        self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def part(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes."""
        if time.monotonic() >= self._next:
            self._show(f"{done // MIB} of {total // MIB} MiB")

    def more(self, count: int) -> None:
        """``count`` more bytes."""
        self._done += count
        if time.monotonic() >= self._next:
            self._show(f"{self._done // MIB} MiB")

    def step(self, text: str) -> None:
        """A step by name; steps are worth a line each, however quick."""
        self._show(text)

    def _show(self, text: str) -> None:
        self._next = time.monotonic() + (TERMINAL_EVERY_S if self._live else PIPE_EVERY_S)
        self._shown = True
        line = f"colo: {self._what}: {text}"
        if self._live:
            line = f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}"
        print(line, end="" if self._live else "\n", file=sys.stderr, flush=True)
