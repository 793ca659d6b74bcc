"""A console whose outside hears only what is committed.

What a guest says on its serial line is output like any other: a reader who saw a prompt that the survivor
never printed has seen a machine that does not exist.  While a pair is formed it therefore waits in the
machine's :class:`~colo.filters.hold.OutputHold`, in one order with the frames of the cards.  Input passes
unchanged, at once.

The machine's own record of its console (``vmm.backends.console.Capture``) is not wrapped: it is internal,
and expectations in tests run on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from colo.filters.hold import OutputHold
from colo.messages import INPUT_BYTES_MAX
from vmm.backends.console import Console

PORT = "com1"
PIECE_MAX = INPUT_BYTES_MAX // 2
"""Bytes held as one piece: it must fit a message when it travels with its epoch."""


class HeldConsole:
    """``console``, with its output under ``hold``; mute, it says nothing at all.

    As with a card's back end, the releasing thread writes while the guest's thread reads, so each use of
    the console is under a lock; a console never blocks, so it is held for one piece at most.
    """

    __slots__ = ("_console", "_hold", "_lock", "_muted", "_port", "diverted", "muted_bytes")

    def __init__(self, console: Console, hold: OutputHold, port: str = PORT, *, muted: bool = False) -> None:
        self._console = console
        self._hold = hold
        self._lock = threading.Lock()
        self._muted = muted
        self._port = port
        self.diverted: Callable[[str, bytes], None] | None = None
        """Told, by the guest's thread, what the guest says while muted: our port, and a piece."""
        self.muted_bytes = 0  # while muted and not diverted
        hold.connect(port, self.say)

    @property
    def pending_output(self) -> bool:
        return self._console.pending_output

    def fileno(self) -> int:
        return self._console.fileno()

    def receive(self) -> bytes | None:
        with self._lock:
            return self._console.receive()

    def write(self, data: bytes) -> None:
        """The guest's thread: what the guest said."""
        speak: Callable[[str, bytes], object]
        if self._muted and self.diverted is not None:
            speak = self.diverted
        elif self._muted or not self._hold.active:
            self.say(data)
            return
        else:
            speak = self._hold.hold
        for at in range(0, len(data), PIECE_MAX):
            speak(self._port, data[at : at + PIECE_MAX])

    def flush(self) -> None:
        with self._lock:
            self._console.flush()

    def close(self) -> None:
        with self._lock:
            self._console.close()

    # From any thread

    def say(self, data: bytes) -> None:
        """To the outside; not while muted."""
        with self._lock:
            if not self._muted:
                self._console.write(data)
                return
            self.muted_bytes += len(data)

    @property
    def muted(self) -> bool:
        return self._muted

    def mute(self) -> None:
        """When this returns nothing more is said."""
        with self._lock:
            self._muted = True

    def unmute(self) -> None:
        self._muted = False
