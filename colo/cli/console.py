"""The serial port at the user's terminal or pipes, and what ends a run from outside the guest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

from vmm.backends.console import Terminal
from vmm.machine import Machine

NEWLINE = 0x0A


class LiveConsole:
    """A :class:`Terminal` that tells its machine when the user left and when the input ended.

    ``listen=False`` leaves standard input alone: a script or a log is the guest's input.
    """

    def __init__(self, *, listen: bool, save: str | None) -> None:
        hint = (
            f"Ctrl-] q ends the run and writes {save}"
            if save
            else "start with --save FILE, then leave with Ctrl-] q"
        )
        self._opened = ExitStack()
        self._machine: Machine | None = None
        source = None
        if not listen:
            source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            self._opened.callback(os.close, source)
        self._terminal = Terminal(source, snapshot_hint=hint)
        self._at_line_start = True

    def attach(self, machine: Machine) -> None:
        """The machine runs from here on: take the terminal."""
        self._machine = machine
        self._opened.enter_context(self._terminal)

    @property
    def quit_requested(self) -> bool:
        return self._terminal.quit_requested

    @property
    def interactive(self) -> bool:
        return self._terminal.interactive

    @property
    def dropped(self) -> int:
        """Bytes of output that nobody took."""
        return self._terminal.output_dropped

    # What vmm.backends.console.Console asks for

    @property
    def pending_output(self) -> bool:
        return self._terminal.pending_output

    def fileno(self) -> int:
        return self._terminal.fileno()

    def receive(self) -> bytes | None:
        typed = self._terminal.receive()
        assert self._machine is not None, "nobody listens before the machine runs"
        if self._terminal.quit_requested:
            self._machine.stop()
        if self._terminal.eof:
            self._machine.expect_nothing_from(self._terminal.fileno())
        return typed

    def write(self, data: bytes) -> None:
        self._terminal.write(data)
        self._at_line_start = data[-1] == NEWLINE

    def flush(self) -> None:
        self._terminal.flush()

    def close(self) -> None:
        self._opened.close()

    def end_line(self) -> None:
        """What is printed next starts a line of its own."""
        if not self._at_line_start:
            self.write(b"\r\n" if self.interactive else b"\n")


class Interrupt:
    """SIGINT while a machine runs: the run ends between two blocks.  A second one ends the process."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._before: Any = None
        self.came = False

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        self._stop()
