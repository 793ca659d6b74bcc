"""Where a serial console leads: the user's terminal, a buffer, or several places at once.

:class:`Terminal` hands every key to the guest, Ctrl-C included.  Ctrl-] is the way out: it is followed
by a letter of the menu, which is shown when the machine starts.  What becomes of the terminal on the
way out is told in :mod:`vmm.backends.terminal`.

Input and output may be pipes or files instead.  Then every byte goes through unchanged, there is no
menu, and the end of the input is not the end of the machine.  Output that the other end does not take
is kept up to a limit, then dropped and counted: a guest does not wait for a pager.

SIGWINCH keeps its default, which is to be ignored: a serial line has no size (``stty`` in the guest
tells it one).  Not modelled: break signals, modem lines, flow control by XON/XOFF.
"""

from __future__ import annotations

import os
import select
from types import TracebackType
from typing import Protocol

from vmm.backends.terminal import Outlet, RawMode, Readiness, is_ready
from vmm.errors import BackendError

ESCAPE = 0x1D
"""Ctrl-], as in telnet(1): no shell or editor wants it."""
MENU = "Ctrl-] q quit | Ctrl-] s snapshot | Ctrl-] h help | Ctrl-] Ctrl-] sends Ctrl-]"
SNAPSHOT_HINT = "a snapshot is taken from another terminal: see the snapshot command in --help"
INPUT_CHUNK = 4096
"""Bytes read at once; the serial port takes 16, so more would only wait here."""
CLOSE_WAIT_MS = 1000
"""Longest wait at the end for a reader that has fallen behind to take the next piece."""
CAPTURE_MIB = 4


class Console(Protocol):
    """The host side of a serial port.  ``fileno()`` is -1 when it never brings input."""

    @property
    def pending_output(self) -> bool: ...

    def fileno(self) -> int: ...

    def receive(self) -> bytes | None: ...

    def write(self, data: bytes) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Capture:
    """The last ``limit_mib`` MiB of what the guest said."""

    __slots__ = ("_data", "_limit", "total")
    pending_output = False

    def __init__(self, limit_mib: int = CAPTURE_MIB) -> None:
        self._limit = limit_mib << 20
        self._data = bytearray()
        self.total = 0  # bytes ever written

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    @property
    def text(self) -> str:
        return self._data.decode("utf-8", "replace")

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        return None

    def write(self, data: bytes) -> None:
        self.total += len(data)
        self._data += data
        del self._data[: max(0, len(self._data) - self._limit)]

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Tee:
    """Output to every console given, input from the first."""

    __slots__ = ("_first", "_others")

    def __init__(self, first: Console, *others: Console) -> None:
        self._first = first
        self._others = others

    @property
    def pending_output(self) -> bool:
        return any(console.pending_output for console in (self._first, *self._others))

    def fileno(self) -> int:
        return self._first.fileno()

    def receive(self) -> bytes | None:
        return self._first.receive()

    def write(self, data: bytes) -> None:
        for console in (self._first, *self._others):
            console.write(data)

    def flush(self) -> None:
        for console in (self._first, *self._others):
            console.flush()

    def close(self) -> None:
        for console in (self._first, *self._others):
            console.close()


class Terminal:
    """Standard input and output, or the descriptors given.  Use it in a ``with`` statement."""

    __slots__ = (
        "_escaped",
        "_in",
        "_mode",
        "_out",
        "_poll",
        "_snapshot_hint",
        "eof",
        "quit_requested",
    )

    def __init__(
        self, stdin: int | None = None, stdout: int | None = None, snapshot_hint: str = SNAPSHOT_HINT
    ) -> None:
        source = _checked(0 if stdin is None else stdin, "input", "< /dev/null")
        sink = _checked(1 if stdout is None else stdout, "output", "> /dev/null")
        self._in = source
        self._out = Outlet(sink)
        self._poll = Readiness(source)
        self._mode = RawMode(source) if os.isatty(source) else None
        self._snapshot_hint = snapshot_hint
        self._escaped = False
        self.eof = False  # there will be no more input
        self.quit_requested = False  # the user asked to leave; the run loop looks here

    def __enter__(self) -> Terminal:
        if self._mode is not None:
            self._mode.enter()
            self.notice(f"console: {MENU}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def interactive(self) -> bool:
        return self._mode is not None

    @property
    def pending_output(self) -> bool:
        return self._out.pending

    @property
    def output_dropped(self) -> int:
        """Bytes of output that nobody took."""
        return self._out.dropped

    def fileno(self) -> int:
        return self._poll.fileno()

    def receive(self) -> bytes | None:
        """What was typed for the guest; None when there is nothing now."""
        self.flush()
        if self.eof or not is_ready(self._in, select.POLLIN):
            return None
        try:
            typed = os.read(self._in, INPUT_CHUNK)
        except BlockingIOError:
            return None
        except OSError:  # the terminal hung up
            typed = b""
        if not typed:
            self.eof = True
            self._poll.no_more_input()
            return None
        return self._for_guest(typed) if self.interactive else typed

    def write(self, data: bytes) -> None:
        self._out.write(data)
        self._poll.want_output(self._out)

    def flush(self) -> None:
        if self._out.pending:
            self._out.flush()
            self._poll.want_output(self._out)

    def notice(self, text: str) -> None:
        """A line of ours among the guest's output."""
        self.write(f"\r\n-- {text} --\r\n".encode())

    def close(self) -> None:
        self._out.drain(CLOSE_WAIT_MS)
        if self._mode is not None:
            self._mode.leave()
        self._poll.close()
        self._out.close()

    def _for_guest(self, typed: bytes) -> bytes | None:
        """``typed`` without what was meant for us."""
        out = bytearray()
        for key in typed:
            if self._escaped:
                self._escaped = False
                if key == ESCAPE:
                    out.append(key)
                else:
                    self._menu(chr(key).lower())
            elif key == ESCAPE:
                self._escaped = True
            else:
                out.append(key)
        return bytes(out) or None

    def _menu(self, letter: str) -> None:
        match letter:
            case "q":
                self.quit_requested = True
            case "s":
                self.notice(self._snapshot_hint)
            case "h" | "?":
                self.notice(MENU)
            case _:
                self.notice(f"no such command; {MENU}")


def _checked(fd: int, what: str, mend: str) -> int:
    try:
        os.fstat(fd)
    except OSError:
        raise BackendError(
            f"console: standard {what} is closed: expected a terminal, pipe or file; start with {mend}"
        ) from None
    return fd
