"""One descriptor that a run loop polls: a back end's own, a bell for other threads, and an alarm.

A back end's ``fileno()`` is one number for life (:mod:`vmm.backends.net`), but what becomes due at a card
with filters is not always input: an interval ends, or another thread released frames for the guest.  An
epoll descriptor is itself pollable, so all three stand behind one.

The alarm is a timerfd (timerfd_create(2)), called through the C library because Python has it from 3.13
on only.
"""

from __future__ import annotations

import ctypes
import os
import select
from contextlib import suppress

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_SECOND_NS = 1_000_000_000
ALARM_MIN_NS = 50_000
"""Shortest alarm: below it, waking up costs more than the wait."""

_libc = ctypes.CDLL(None, use_errno=True)


class Bell:
    """Readable when the back end is, when it rang, or when the alarm went off."""

    __slots__ = ("_alarm", "_epoll", "_event", "alarmed_ns", "rang")

    def __init__(self, descriptor: int) -> None:
        self.rang = False
        self.alarmed_ns = 0
        """Whatever the alarm was set for; 0 when it is not set."""
        self._epoll = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._alarm = -1
        self._epoll.register(descriptor, select.EPOLLIN)
        self._epoll.register(self._event, select.EPOLLIN)

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def ring(self) -> None:
        """From any thread."""
        if not self._epoll.closed:
            os.eventfd_write(self._event, 1)
            self.rang = True  # after the write: ``answer`` then always finds what it is called for

    def alarm(self, at_ns: int, wait_ns: int) -> None:
        """Wake after ``wait_ns`` of host time, for what is due at ``at_ns``."""
        if self._alarm < 0:
            self._alarm = _checked(_libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))
            self._epoll.register(self._alarm, select.EPOLLIN)
        seconds, fraction = divmod(max(wait_ns, ALARM_MIN_NS), _SECOND_NS)
        value = (ctypes.c_long * 4)(0, 0, seconds, fraction)  # struct itimerspec: no repetition, then once
        _checked(_libc.timerfd_settime(self._alarm, 0, value, None))
        self.alarmed_ns = at_ns

    def answer(self) -> None:
        """Quiet again, before looking for what is due."""
        self.rang = False
        self.alarmed_ns = 0
        for descriptor in (self._event, self._alarm):
            if descriptor >= 0:
                with suppress(BlockingIOError):  # this one was not it
                    os.read(descriptor, 8)

    def close(self) -> None:
        if self._epoll.closed:
            return
        self._epoll.close()
        os.close(self._event)
        if self._alarm >= 0:
            os.close(self._alarm)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
