"""The fork server: a process that holds what all trials have in common, and forks a child for each.

A child starts with everything as it is in the server, copy-on-write: a guest's RAM and the engine's
translated code, and a whole world around it where there is one.  What a trial costs is what it executes.

One child lives at a time.  The process has a single thread and no event loop, because fork(2) copies only the
thread that calls it.  A child says one thing, its :class:`~colo.campaign.trial.Report`, through a pipe, and
ends without Python's exit, which would flush and close what belongs to the server.

Virtual time is what decides a hang.  The limit in the host's time is a safety net around the engine: a child
that exceeds it is killed, and its trial is reported as failed, with no outcome.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import time
import traceback
from typing import NoReturn

import msgspec

from colo.campaign.trial import Report
from colo.errors import ColoError
from colo.faults.model import Trial
from vmm.errors import VmmError

WALL_LIMIT_S = 300.0
"""Host time of one trial: a hundred times what a long one takes on a busy host."""
REPORT_MAX = 1 << 20
"""Bytes of a report; a child that says more is out of its mind."""
PR_SET_PDEATHSIG = 1


class ForkServer:
    """What the servers of machines and of worlds have in common."""

    def __init__(self, wall_limit_s: float) -> None:
        self._wall_limit_s = wall_limit_s

    def prepare(self, trial: Trial, policy: str = "") -> None:
        """In the server, before the fork: come to where the trial begins, in the world of this policy."""

    def perform(self, trial: Trial) -> Report:
        """In the child: the trial itself."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is held for all trials."""

    def run(self, trial: Trial, policy: str = "") -> Report:
        """Fork one trial and wait for what it comes to; ``policy`` is of a trial in a world."""
        self.prepare(trial, policy)
        return self.fork(trial)

    def fork(self, trial: Trial) -> Report:
        """The same from here."""
        began, server = time.monotonic(), os.getpid()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            self._be(trial, write, server)
        os.close(write)
        try:
            report = self._hear(read, pid)
        finally:
            os.close(read)
        return msgspec.structs.replace(report, wall_ms=round(1000 * (time.monotonic() - began), 3))

    # The child

    def _be(self, trial: Trial, write: int, server: int) -> NoReturn:
        """The child's life.  Whatever goes wrong, it never returns to the server's code."""
        status = 1
        try:
            _end_with_parent(server)
            _send(write, msgspec.msgpack.encode(self._report(trial)))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _report(self, trial: Trial) -> Report:
        try:
            return self.perform(trial)
        except (ColoError, VmmError) as exc:
            return Report(failure=str(exc))

    # The server meanwhile

    def _hear(self, read: int, pid: int) -> Report:
        deadline = time.monotonic() + self._wall_limit_s
        said = bytearray()
        poll = select.poll()
        poll.register(read, select.POLLIN)
        late = False
        while True:
            left_ms = 1000 * (deadline - time.monotonic())
            if left_ms <= 0 or len(said) > REPORT_MAX or not poll.poll(left_ms):
                late = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                break
            piece = os.read(read, 1 << 16)
            if not piece:
                break
            said += piece
        _, status = os.waitpid(pid, 0)
        if late:
            return Report(failure=f"no outcome within {self._wall_limit_s:g} s of the host's time")
        if os.waitstatus_to_exitcode(status) != 0:
            return Report(failure=_how_it_ended(os.waitstatus_to_exitcode(status)))
        return msgspec.msgpack.decode(bytes(said), type=Report)


def settle() -> None:
    """Before the first fork: a collection in a child would touch, and so copy, every page with an object."""
    gc.collect()
    gc.freeze()


def _end_with_parent(parent: int) -> None:
    """A child whose server was killed has nobody to report to (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _send(write: int, data: bytes) -> None:
    while data:
        data = data[os.write(write, data) :]


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"the trial's process was ended by {signal.Signals(-code).name}"
    return f"the trial's process failed with status {code}; its standard error has the reason"
