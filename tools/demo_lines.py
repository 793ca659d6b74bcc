"""What ``tools/demo`` writes: numbered steps, a line that replaces itself, and numbers as people read them.

In a terminal the last line may be *live*: each one replaces the one before, until something is said for
good.  In a pipe or a file there are no live lines and no control characters, only what is said for good.
"""

from __future__ import annotations

import shutil
import sys
import time

from vmm.backends.script import PlainText

WIDTH = 86
"""Where the time of a step ends: fits a terminal of 90 columns."""
NAME_WIDTH = 10
"""Of a step's subject: guest, network, secondary."""
KIB, MIB = 1 << 10, 1 << 20


class Steps:
    """Numbered lines of progress, continuing those of tools/env.sh."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._live = sys.stdout.isatty()
        self._started = time.monotonic()
        # A character that the terminal's encoding lacks is no reason to end a pair.
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]

    def begin(self, what: str) -> None:
        """A step under way, whose :meth:`end` is a line of its own."""
        self._number += 1
        self._started = time.monotonic()
        self.say(f"{self._number:2d} {what}")

    def end(self, what: str) -> None:
        """What came of the step, with the time that it took."""
        self.say(timed(f"   {what}", time.monotonic() - self._started))

    def step(self, name: str, what: str, seconds: float | None = None) -> None:
        """A step that is known when it is over: ``name`` and what there is to know of it."""
        self._number += 1
        line = f"{self._number:2d} {name:<{NAME_WIDTH}} {what}"
        self.say(line if seconds is None else timed(line, seconds))

    def live(self, what: str) -> None:
        """A line that the next one replaces; nothing when piped."""
        if self._live:
            room = shutil.get_terminal_size().columns - 4
            print(f"\r\x1b[K   {printable(what)[:room]}", end="", flush=True)

    def note(self, what: str) -> None:
        """A line that belongs to the step above it."""
        self.say(f"   {what}")

    def say(self, line: str) -> None:
        print(f"\r\x1b[K{line}" if self._live else line, flush=True)

    def clear(self) -> None:
        """Take a live line away: somebody else is about to write."""
        if self._live:
            print("\r\x1b[K", end="", flush=True)


def timed(line: str, seconds: float) -> str:
    took = f"{seconds:.1f} s"
    return f"{line:<{WIDTH - 2 - len(took)}}  {took}"


def printable(text: str) -> str:
    """A guest's line without what would move the cursor."""
    plain = PlainText().feed(text.encode()).decode(errors="replace")
    return "".join(char for char in plain if char.isprintable())


def size(count: float) -> str:
    """Bytes: 812 B, 96 KiB, 31.4 MiB."""
    if count < KIB:
        return f"{count:.0f} B"
    return f"{count / KIB:,.0f} KiB" if count < MIB else f"{count / MIB:.1f} MiB"


def milliseconds(value_ms: float) -> str:
    """0.94 ms, 71 ms: two digits are enough for either."""
    return f"{value_ms:.1f} ms" if value_ms < 10 else f"{value_ms:,.0f} ms"


def counted(count: int, what: str) -> str:
    """1 connection, 8 keys, 18,233 replies."""
    if count != 1:
        what = f"{what[:-1]}ies" if what.endswith("ly") else f"{what}s"
    return f"{count:,} {what}"
