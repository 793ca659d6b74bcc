"""What another thread says to a guest's thread is never lost, before whichever line of its loop it comes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import pytest

from colo.node import guest_thread
from colo.node.guest_thread import GuestThread
from tests.machine.support import MS, machine, multiboot
from tests.replica.support import BUSY, LIMIT_S, running, thread_of, until
from vmm.machine import Ended, Machine


def between_the_lines(guest: GuestThread, line: int, act: Callable[[], object]) -> Callable[[], bool]:
    """Have another thread ``act`` before the ``line``-th line that the guest's thread executes in its loop.

    Returns whether it came to that.  The function that is returned by the tracer's installer runs in the
    guest's thread.
    """
    left, acted = line, False

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left, acted
        if frame.f_code.co_filename != guest_thread.__file__:
            return None
        if event == "line" and left > 0:
            left -= 1
            if left == 0:
                other = threading.Thread(target=act)
                other.start()
                other.join(LIMIT_S)
                acted = True
        return trace

    guest.submit(lambda: sys.settrace(trace))
    return lambda: acted


LINES = range(1, 60)
"""More than two turns of the thread's loop."""


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("line", LINES)
def test_a_start_is_never_lost(line: int) -> None:
    """Before every line of the loop.  A lost one was a survivor that served half a second later."""
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        guest = thread_of(pc)
        acted = between_the_lines(guest, line, guest.start)
        with running(guest):
            keep_it_busy(guest, acted)
            until(lambda: guest.has_run, "the guest runs")


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_a_job_is_never_lost(line: int, frozen: bool) -> None:
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        guest, futures = thread_of(pc), list[Future[int]]()
        guest.start()
        if frozen:
            guest.freeze()
        acted = between_the_lines(guest, line, lambda: futures.append(guest.submit(lambda: 42)))
        with running(guest):
            keep_it_busy(guest, acted)
            assert futures[0].result(LIMIT_S) == 42


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("how", ["stop", "freeze"])
def test_a_stop_is_never_lost(line: int, how: str) -> None:
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        guest = thread_of(pc)
        guest.start()
        acted = between_the_lines(guest, line, getattr(guest, how))
        with running(guest):
            keep_it_busy(guest, acted)
            stopped = guest.call(lambda: pc.clock.now_ns)
            assert [guest.call(lambda: pc.clock.now_ns) for _ in range(3)] == [stopped] * 3


def keep_it_busy(guest: GuestThread, acted: Callable[[], bool]) -> None:
    """Turn the loop until the other thread had its turn."""
    while not acted():
        guest.call(lambda: None)


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("line", LINES)
def test_no_word_of_another_thread_ends_a_run_that_a_job_makes(line: int) -> None:
    """A guest that stands by is run by jobs: a stop that was left over would end the run at once."""
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        guest, ends = thread_of(pc), list[Ended]()
        guest.freeze()

        def act() -> None:
            guest.start()
            guest.stop()
            guest.submit(lambda: ends.append(pc.run(pc.clock.now_ns + MS)))

        acted = between_the_lines(guest, line, act)
        with running(guest):
            keep_it_busy(guest, acted)
            guest.call(lambda: ends.append(pc.run(pc.clock.now_ns + MS)))
            assert ends == [Ended.TIME, Ended.TIME]


@pytest.mark.usefixtures("no_rests")
def test_three_threads_talk_at_once_and_none_waits_for_ever(pc: Machine) -> None:
    """Each word may come before, in or after any other; the interpreter changes threads all the time."""
    guest = thread_of(pc)
    rounds, counted = 300, [0]
    words: dict[str, Callable[[], object]] = {
        "start and stop": lambda: (guest.start(), guest.stop()),
        "freeze and thaw": lambda: (guest.freeze(), guest.thaw()),
        "job": lambda: guest.call(lambda: counted.__setitem__(0, counted[0] + 1)),
    }
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with running(guest):
            threads = [
                threading.Thread(target=lambda word=word: [word() for _ in range(rounds)])
                for word in words.values()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT_S)
                assert not thread.is_alive()
            assert counted == [rounds]
            guest.start()
            began = guest.call(lambda: guest.has_run)
            until(lambda: guest.has_run, f"the last start counts; it had run before: {began}")
    finally:
        sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("line", LINES)
def test_a_job_that_comes_while_the_thread_ends_is_refused_and_not_forgotten(line: int) -> None:
    """Whoever waits for it would wait for ever, and a node with it."""
    with machine(BUSY) as pc:
        guest, futures = thread_of(pc), list[Future[int]]()

        def act() -> None:
            futures.append(guest.submit(lambda: 1))

        acted = between_the_lines(guest, line, act)
        with running(guest) as thread:
            guest.submit(guest.quit)
            thread.join(LIMIT_S)
            if not acted():
                act()
            assert isinstance(futures[0].exception(LIMIT_S), RuntimeError | None)
