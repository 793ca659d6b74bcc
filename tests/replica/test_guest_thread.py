"""The thread that runs a machine: jobs in order, and no word to it is ever lost, whenever it comes."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from colo.node.guest_thread import GuestThread
from tests.machine.support import MS, machine, multiboot
from tests.replica.support import BUSY, LIMIT_S, NAP, running, thread_of, until
from vmm.errors import ConfigError
from vmm.machine import Ended, Machine

# Jobs

STATES: dict[str, Callable[[GuestThread], None]] = {
    "never started": lambda guest: None,
    "running": GuestThread.start,
    "stopped": lambda guest: (guest.start(), guest.stop())[0],
    "frozen": lambda guest: (guest.start(), guest.freeze())[0],
}


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("state", STATES)
def test_jobs_run_in_order_whatever_the_guest_does(pc: Machine, state: str) -> None:
    guest, order = thread_of(pc), list[int]()
    with running(guest) as thread:
        STATES[state](guest)
        futures = [guest.submit(lambda number=number: order.append(number)) for number in range(50)]
        for future in futures:
            future.result(LIMIT_S)
        assert order == list(range(50))
        assert guest.call(threading.get_ident) == thread.ident


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("state", STATES)
def test_call_returns_what_the_job_returns_and_raises_what_it_raises(pc: Machine, state: str) -> None:
    guest = thread_of(pc)

    def refuse() -> None:
        raise ConfigError("planted")

    with running(guest):
        STATES[state](guest)
        assert guest.call(lambda: 42) == 42
        with pytest.raises(ConfigError, match="planted"):
            guest.call(refuse)
        assert guest.call(lambda: 43) == 43, "and the thread goes on"


def test_a_job_may_call_another_one() -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        assert guest.call(lambda: guest.call(lambda: guest.call(lambda: 7))) == 7


def test_a_job_finds_the_guest_between_two_blocks_and_the_guest_goes_on() -> None:
    """What a job sees is whole: a machine resumed from there and this one are one machine."""
    with multiboot("counter", command_line="mib=1 ms=1") as pc, running(guest := thread_of(pc)):
        guest.start()
        times = []
        for _ in range(200):
            times.append(guest.call(lambda: pc.clock.now_ns))
        until(lambda: guest.call(lambda: pc.clock.now_ns) > times[-1], "the guest goes on after the jobs")
        assert times == sorted(times)


def test_jobs_wait_for_a_thread_that_has_not_begun() -> None:
    with machine(BUSY) as pc:
        guest = thread_of(pc)
        early = guest.submit(lambda: pc.clock.now_ns)
        guest.start()
        with running(guest):
            assert early.result(LIMIT_S) == 0, "before the guest's first block"


def test_a_job_that_nobody_wants_any_more_is_not_done() -> None:
    """asyncio.wrap_future cancels the job when the task that awaits it is cancelled."""
    with machine(BUSY) as pc:
        guest, done = thread_of(pc), list[str]()
        unwanted = guest.submit(lambda: done.append("unwanted"))
        assert unwanted.cancel()
        with running(guest):
            guest.call(lambda: done.append("wanted"))
            assert done == ["wanted"]


def test_a_job_that_has_begun_is_finished() -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        begun, go_on = threading.Event(), threading.Event()
        job = guest.submit(lambda: (begun.set(), go_on.wait(LIMIT_S)))
        assert begun.wait(LIMIT_S)
        assert not job.cancel()
        go_on.set()
        assert job.result(LIMIT_S) == (None, True)


# Start, stop, freeze, thaw


def test_the_guest_stands_still_until_it_is_started_and_after_it_was_stopped() -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        assert [guest.call(lambda: pc.clock.now_ns) for _ in range(5)] == [0] * 5
        assert not guest.has_run
        guest.start()
        until(lambda: guest.call(lambda: pc.clock.now_ns), "the guest runs")
        assert guest.has_run
        guest.stop()
        stopped = guest.call(lambda: pc.clock.now_ns)
        assert [guest.call(lambda: pc.clock.now_ns) for _ in range(5)] == [stopped] * 5


def test_a_frozen_guest_does_not_run_whatever_is_said_until_it_is_thawed() -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        guest.freeze()
        guest.start()
        assert not guest.running
        assert [guest.call(lambda: pc.clock.now_ns) for _ in range(5)] == [0] * 5
        guest.thaw()
        assert guest.running
        until(lambda: guest.call(lambda: pc.clock.now_ns), "what start said counts now")
        guest.freeze()
        frozen = guest.call(lambda: pc.clock.now_ns)
        guest.stop()
        guest.thaw()
        assert guest.call(lambda: pc.clock.now_ns) == frozen, "what stop said counts, too"


# Throttle


def test_a_throttled_guest_stands_still_for_its_share() -> None:
    """Three quarters of the time: 30 ms for each 10 ms of its own."""
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        guest.throttle = 0.75
        began = time.monotonic()
        guest.start()
        until(lambda: pc.clock.now_ns >= 100 * MS, "ten slices")
        assert time.monotonic() - began > 0.15, "nine rests of 30 ms, half of them lost to a coarse clock"
        guest.throttle = 0.0
        until(lambda: pc.clock.now_ns >= 600 * MS, "and then it runs as before")


@pytest.mark.usefixtures("no_rests")
def test_a_throttled_guest_does_not_keep_a_job_waiting() -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)):
        guest.throttle = 1 - 1e-6
        guest.start()
        until(lambda: guest.has_run, "it rests, for hours")
        for _ in range(20):
            guest.call(lambda: None)
        assert guest.call(lambda: pc.clock.now_ns) < MS, "a job that ends a rest is no reason to run"


@pytest.mark.usefixtures("no_rests")
@pytest.mark.parametrize("how", ["stop", "freeze", "quit"])
def test_a_throttled_guest_can_be_stopped(how: str) -> None:
    with machine(BUSY) as pc, running(guest := thread_of(pc)) as thread:
        guest.throttle = 1 - 1e-6
        guest.start()
        until(lambda: guest.has_run, "it rests, for hours")
        getattr(guest, how)()
        if how == "quit":
            guest.submit(lambda: None)
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        else:
            guest.call(lambda: None)
            assert not guest.running


# The end


@pytest.mark.parametrize("state", ["busy", "asleep", "stopped"])
def test_a_signal_handler_makes_it_return(state: str) -> None:
    """As in a node, whose main thread runs the guest."""
    with machine(NAP if state == "asleep" else BUSY) as pc:
        guest = thread_of(pc)
        if state != "stopped":
            guest.start()
        before = signal.signal(signal.SIGALRM, lambda *_: guest.quit())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            guest.run()
        finally:
            signal.signal(signal.SIGALRM, before)


def test_quitting_beforehand_is_quitting_at_once() -> None:
    with machine(BUSY) as pc:
        guest = thread_of(pc)
        waiting = guest.submit(lambda: 1)
        guest.start()
        guest.quit()
        guest.run()
        with pytest.raises(RuntimeError, match="has ended"):
            waiting.result(LIMIT_S)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("cli\nhlt", Ended.POWEROFF), ("mov al, 3\nout 0xf4, al\nspin: jmp spin", Ended.DEBUG_EXIT)],
)
def test_a_guest_that_ends_is_reported_once_and_runs_no_more(source: str, expected: Ended) -> None:
    told: queue.Queue[tuple[Ended, int | None]] = queue.Queue()
    with machine(source) as pc:
        guest = GuestThread(pc, lambda ended: told.put((ended, threading.get_ident())))
        with running(guest) as thread:
            guest.start()
            assert told.get(timeout=LIMIT_S) == (expected, thread.ident)
            assert guest.call(lambda: guest.running) is False
            assert told.empty()
            guest.start()
            assert told.get(timeout=LIMIT_S) == (expected, thread.ident), "a machine that ended stays so"


class Broken:
    """A device whose fault is ours."""

    state: Any = None

    def read(self, offset: int, size: int) -> int:
        raise AssertionError("planted")

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing happens."""

    def reset(self) -> None:
        """Nothing is kept."""

    def restored(self) -> None:
        """Nothing is derived."""


def test_what_the_machine_raises_comes_out_of_run_and_fails_the_jobs_that_wait() -> None:
    with machine("mov dx, 0x700\nin al, dx\nspin: jmp spin") as pc:
        pc.ports.claim(0x700, 1, Broken(), "a broken device")
        guest, later = thread_of(pc), list[Future[int]]()
        guest.start()
        guest.submit(lambda: later.append(guest.submit(lambda: 1)))
        with pytest.raises(AssertionError, match="planted"), running(guest) as thread:
            thread.join(LIMIT_S)
        assert later[0].done()
        with pytest.raises(RuntimeError, match="has ended"):
            guest.submit(lambda: 2).result(LIMIT_S)
