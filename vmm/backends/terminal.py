"""The host's terminals and pipes, used without harming who else uses them.

:class:`RawMode` is termios(3)'s ``cfmakeraw``: every byte passes as it is, both ways (a guest's editor
means a line feed without a carriage return when it sends one).  It is put back on every way out that
a process can notice: ``leave``, the interpreter's exit, SIGTERM and SIGHUP, and SIGTSTP; SIGCONT makes
the terminal raw again if it is ours (not for a job that continues in the background).  After
``kill -9``, or a crash of the process, type ``reset``.

:class:`Outlet` writes without ever waiting, and :class:`Readiness` gives input and output one pollable
descriptor.  O_NONBLOCK is never set on a descriptor that we were given: it belongs to the open file,
which the shell and other processes share.
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import signal
import stat
import termios
from contextlib import suppress
from types import FrameType
from typing import Any

OUTPUT_CHUNK = 4096
"""PIPE_BUF: a pipe that poll(2) calls writable takes this much without blocking."""
OUTPUT_MAX = 16 << 20
"""Bytes kept for a reader that has fallen behind: more than any boot says."""


class RawMode:
    """The raw mode of one terminal, and everything that puts it back."""

    __slots__ = ("_fd", "_handlers", "_owner", "_saved")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None  # None: not raw
        self._handlers: dict[signal.Signals, Any] = {}
        self._owner = 0

    def enter(self) -> None:
        self._owner = os.getpid()
        self._saved = termios.tcgetattr(self._fd)
        atexit.register(self.leave)
        wanted = {
            signal.SIGTERM: self._end,
            signal.SIGHUP: self._end,
            signal.SIGTSTP: self._stop,
            signal.SIGCONT: self._continue,
        }
        with suppress(ValueError):  # only the main thread may handle signals; the rest must do elsewhere
            for number, handler in wanted.items():
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup: it shall not end us
                    self._handlers[number] = signal.signal(number, handler)
        self._make_raw()

    def leave(self) -> None:
        """Back to how it was; also when it already is.  A forked child leaves its parent's alone."""
        if self._saved is None or os.getpid() != self._owner:
            return
        _set_mode(self._fd, self._saved)
        self._saved = None
        with suppress(ValueError):
            for number, handler in self._handlers.items():
                # None is a handler that was not made by Python: it cannot be put back from here.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers.clear()
        atexit.unregister(self.leave)

    def _make_raw(self) -> None:
        mode = termios.tcgetattr(self._fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        _set_mode(self._fd, mode)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Put the terminal back, then let the signal do what it would have done without us."""
        self.leave()
        if signal.getsignal(number) == self._end:  # a forked child, which has nothing to put back
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop with the terminal as the shell wants it."""
        if self._saved is not None and os.getpid() == self._owner:
            _set_mode(self._fd, self._saved)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self, number: int, frame: FrameType | None) -> None:
        if self._saved is not None and os.getpid() == self._owner and self._is_ours():
            self._make_raw()

    def _is_ours(self) -> bool:
        """Are we the terminal's foreground job?  Yes, where there is no job control."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True


class Outlet:
    """A descriptor that is written without ever waiting for its reader."""

    __slots__ = ("_buffer", "_fd", "_gone", "dropped")

    def __init__(self, fd: int) -> None:
        self._fd = _own_descriptor(fd)
        self._buffer = bytearray()
        self._gone = False  # nobody will ever read it again
        self.dropped = 0

    @property
    def pending(self) -> bool:
        return bool(self._buffer)

    def fileno(self) -> int:
        return self._fd

    def write(self, data: bytes) -> None:
        room = 0 if self._gone else OUTPUT_MAX - len(self._buffer)
        self._buffer += data[:room]
        self.dropped += max(0, len(data) - room)
        self.flush()

    def flush(self) -> None:
        while self._buffer and is_ready(self._fd, select.POLLOUT):
            try:
                done = os.write(self._fd, self._buffer[:OUTPUT_CHUNK])
            except BlockingIOError:
                return
            except OSError:  # the reader closed its pipe, the terminal hung up
                self._gone = True
                self.dropped += len(self._buffer)
                self._buffer.clear()
                return
            del self._buffer[:done]

    def drain(self, wait_ms: int) -> None:
        """Give a reader that makes progress its rest; ``wait_ms`` is for each piece."""
        self.flush()
        while self._buffer and is_ready(self._fd, select.POLLOUT, wait_ms):
            self.flush()

    def close(self) -> None:
        if self._fd >= 0:
            self.dropped += len(self._buffer)
            self._buffer.clear()
            os.close(self._fd)
            self._fd = -1
            self._gone = True


class Readiness:
    """One pollable descriptor for an input, and for an output while something waits for it.

    epoll refuses files and /dev/null, which are always ready: an eventfd that is always readable stands
    in for such an input.
    """

    __slots__ = ("_in", "_poll", "_stand_in", "_wanted")

    def __init__(self, source: int) -> None:
        self._poll = select.epoll()
        self._in = source
        self._stand_in = -1
        self._wanted = -1
        try:
            self._poll.register(source, select.EPOLLIN)
        except PermissionError:
            self._stand_in = self._in = os.eventfd(1, os.EFD_CLOEXEC)
            self._poll.register(self._in, select.EPOLLIN)

    def fileno(self) -> int:
        return -1 if self._poll.closed else self._poll.fileno()

    def no_more_input(self) -> None:
        with suppress(OSError):
            self._poll.unregister(self._in)

    def want_output(self, outlet: Outlet) -> None:
        """Wake for ``outlet`` exactly while it has something to write."""
        wanted = outlet.fileno() if outlet.pending else -1
        if wanted == self._wanted:
            return
        if wanted >= 0:
            self._poll.register(wanted, select.EPOLLOUT)
        else:
            self._poll.unregister(self._wanted)
        self._wanted = wanted

    def close(self) -> None:
        self._poll.close()
        self._wanted = -1
        if self._stand_in >= 0:
            os.close(self._stand_in)
            self._stand_in = -1


def is_ready(fd: int, event: int, wait_ms: int = 0) -> bool:
    """Is ``fd`` ready for ``event`` of poll(2), or beyond hope?"""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(wait_ms))


def _own_descriptor(fd: int) -> int:
    """A descriptor of our own for ``fd``.

    A terminal can be opened once more; for everything else writing little at a time
    after poll(2) does not block.
    """
    if stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd):
        with suppress(OSError):
            return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(fd)


def _set_mode(fd: int, mode: list[Any]) -> None:
    """tcsetattr, also from the background, where it would otherwise stop us with SIGTTOU.

    TCSANOW: the other actions wait for the reader of the output, who may have gone.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        termios.tcsetattr(fd, termios.TCSANOW, mode)
    except termios.error as exc:
        if exc.args[0] not in (errno.EIO, errno.EBADF, errno.ENOTTY):
            raise  # the others say that the terminal is gone, and with it what to put back
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
