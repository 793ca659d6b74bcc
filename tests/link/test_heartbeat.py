"""Heartbeats on real sockets, threads, processes and signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colo.messages import Beat, Dissolve
from colo.transport.frames import FrameSocket
from colo.transport.heartbeat import Heartbeat, check_timing
from colo.transport.wire import Encoder
from tests.link.support import LIMIT_S, PATIENT_MS, World, hello, run, until
from vmm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BEATING = Path(__file__).with_name("beating.py")


@dataclass
class Loss:
    """What ``on_lost`` was told, and by whom."""

    reasons: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    event: threading.Event = field(default_factory=threading.Event)

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.threads.append(threading.current_thread())
        self.event.set()

    def wait(self) -> str:
        assert self.event.wait(LIMIT_S)
        return self.reasons[0]


@contextmanager
def one(
    interval_ms: int = 10, silence_ms: int = PATIENT_MS
) -> Iterator[tuple[Heartbeat, socket.socket, Loss]]:
    """A heartbeat and the bare other end of its socket."""
    ours, theirs = socket.socketpair()
    loss = Loss()
    beat = Heartbeat(FrameSocket(ours), loss, interval_ms, silence_ms)
    try:
        yield beat, theirs, loss
    finally:
        beat.close()
        theirs.close()


@contextmanager
def two() -> Iterator[tuple[Heartbeat, Heartbeat, Loss, Loss]]:
    ours, theirs = socket.socketpair()
    first, second = Loss(), Loss()
    near = Heartbeat(FrameSocket(ours), first, 10, PATIENT_MS)
    far = Heartbeat(FrameSocket(theirs), second, 10, PATIENT_MS)
    try:
        yield near, far, first, second
    finally:
        near.close()
        far.close()


def test_both_hear_each_other() -> None:
    with two() as (near, far, first, second):
        run(until(lambda: near.beats > 5 and far.beats > 5))
        assert near.age_ms() < PATIENT_MS
        assert 0 < near.max_gap_ms < PATIENT_MS
        assert near.sent >= far.beats > 0
    assert first.reasons == []
    assert second.reasons == [] or second.reasons == ["the peer closed the connection"]


def test_they_beat_while_python_is_busy() -> None:
    """The main thread never waits here: it only lets go of the interpreter when it is told to."""
    with two() as (near, far, first, second):
        while near.beats < 30 or far.beats < 30:
            pass
        assert first.reasons == second.reasons == []


def test_they_beat_while_the_event_loop_is_blocked(world: World) -> None:
    async def test() -> None:
        async with world.pair(mine=hello(interval_ms=10)) as (near, far):
            heard = far.heartbeat.beats
            blocked = threading.Event()
            while far.heartbeat.beats < heard + 20:
                blocked.wait(0.01)  # the loop's thread, on purpose
            assert near.lost is far.lost is None

    run(test())


def test_silence_is_a_loss_told_once_by_the_heartbeats_thread() -> None:
    with one(10, 60) as (beat, theirs, loss):
        assert loss.wait().startswith("no heartbeat for ")
        assert int(loss.reasons[0].split()[3]) >= 60
        beat.close()
        assert len(loss.reasons) == 1
        assert loss.threads == [beat._thread]
        theirs.settimeout(LIMIT_S)
        while theirs.recv(65536):
            continue  # it beat; and now the connection is closed


def test_a_peer_that_stops_reading_holds_nothing_up() -> None:
    """A stopped process: the socket's buffer fills, and nothing more is put into it."""
    with one(5) as (beat, theirs, loss):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        beat._frames.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        run(until(lambda: beat._outgoing))
        sent = beat.sent
        theirs.sendall(Encoder().frame(Beat(0)))
        run(until(lambda: beat.beats))
        assert beat.sent == sent
        assert loss.reasons == []


def test_the_end_of_the_connection_is_a_loss_at_once() -> None:
    with one() as (_, theirs, loss):
        theirs.close()
        assert loss.wait() in ("the peer closed the connection", "the peer reset the connection")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x" * 100, "where a frame begins"),
        (bytes(Encoder().frame(Dissolve("quit"))), "expected Beat, the peer sent Dissolve"),
        (bytes(Encoder().frame(Dissolve("quit" * 100))), "claims .* bytes, expected 64 at most"),
        (bytes(Encoder().frame(Beat(0))) * 2, "found frame 0, expected 1"),
    ],
)
def test_anything_but_beats_is_a_loss(data: bytes, reason: str) -> None:
    with one() as (_, theirs, loss):
        theirs.sendall(data)
        assert re.search(reason, loss.wait())


def test_closing_is_no_loss_and_may_be_repeated() -> None:
    with one() as (beat, theirs, loss):
        beat.close()
        beat.close()
        assert not beat._thread.is_alive()
        theirs.settimeout(LIMIT_S)
        while theirs.recv(65536):
            continue
        assert loss.reasons == []


def test_it_may_be_closed_by_whom_it_tells() -> None:
    ours, theirs = socket.socketpair()
    done = threading.Event()

    def lost(_: str) -> None:
        beat.close()
        done.set()

    beat = Heartbeat(FrameSocket(ours), lost, 10, PATIENT_MS)
    theirs.close()
    assert done.wait(LIMIT_S)
    beat.close()


def test_timing_changes_while_it_runs() -> None:
    with one(10_000, 600_000) as (beat, theirs, loss):
        run(until(lambda: beat.sent == 1))
        beat.set_timing(5, 15)
        assert (beat.interval_ms, beat.silence_ms) == (5, 15)
        assert loss.wait().startswith("no heartbeat")
        with pytest.raises(ConfigError):
            beat.set_timing(5, 14)
        theirs.close()


@pytest.mark.parametrize(("interval_ms", "silence_ms"), [(4, 300), (0, 0), (50, 149), (-5, 100)])
def test_timings_that_no_host_keeps_are_refused(interval_ms: int, silence_ms: int) -> None:
    with pytest.raises(ConfigError, match="expected 5 ms or more, and a silence of 3 intervals"):
        check_timing(interval_ms, silence_ms)


def test_a_slow_peer_is_given_three_of_its_own_intervals(world: World) -> None:
    async def test() -> None:
        async with world.listener(mine=hello(interval_ms=5), silence_ms=20) as listener:
            slow = hello(interval_ms=2000)
            near, far = await asyncio.gather(world.dial(listener, slow), listener.accept())
            assert far.heartbeat.silence_ms == 6000
            for each in (near, far):
                each.close()
                await each.link.wait_closed()

    run(test())


# Processes


@contextmanager
def process(sock: socket.socket, interval_ms: int, silence_ms: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(BEATING), str(sock.fileno()), str(interval_ms), str(silence_ms)]
    with subprocess.Popen(
        command,
        pass_fds=[sock.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as child:
        sock.close()
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def beside_a_process(silence_ms: int = PATIENT_MS) -> Iterator[tuple[Heartbeat, Loss, subprocess.Popen[str]]]:
    """A heartbeat here, and one in a process, which has begun to beat."""
    ours, theirs = socket.socketpair()
    loss = Loss()
    with process(theirs, 20, 1500) as child:
        beat = Heartbeat(FrameSocket(ours), loss, 20, PATIENT_MS)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "beating\n"
            run(until(lambda: beat.beats > 3))
            beat.set_timing(20, silence_ms)
            yield beat, loss, child
        finally:
            beat.close()


def last_word(child: subprocess.Popen[str]) -> str:
    return child.communicate(timeout=LIMIT_S)[0]


def test_a_killed_process_is_lost_at_once() -> None:
    with beside_a_process() as (_, loss, child):
        child.kill()
        assert loss.wait() in ("the peer closed the connection", "the peer reset the connection")


def test_a_stopped_process_is_lost_after_the_silence() -> None:
    with beside_a_process(silence_ms=200) as (_, loss, child):
        child.send_signal(signal.SIGSTOP)
        assert loss.wait().startswith("no heartbeat for")


def test_a_process_that_was_stopped_itself_reads_before_it_judges() -> None:
    with beside_a_process() as (beat, loss, child):
        child.send_signal(signal.SIGSTOP)
        sent = beat.sent
        run(until(lambda: beat.sent > sent + 110))  # longer than its 1500 ms of silence
        child.send_signal(signal.SIGCONT)
        heard = beat.beats
        run(until(lambda: beat.beats > heard + 20))
        said = last_word(child)
        assert said.startswith("heard: ")
        assert int(said.split()[1]) > 100
        assert loss.reasons in ([], ["the peer closed the connection"])


def test_two_processes_that_were_stopped_together_go_on() -> None:
    """As when their host sleeps: nothing came while they could not listen, and that is nobody's silence."""
    ours, theirs = socket.socketpair()
    with process(ours, 20, 1500) as first, process(theirs, 20, 1500) as second, two() as (clock, *_):
        ages = [clock.sent]

        def pause(beats: int) -> None:
            ages.append(clock.sent)
            run(until(lambda: clock.sent > ages[-1] + beats))

        for child in (first, second):
            assert child.stdout is not None
            assert child.stdout.readline() == "beating\n"
        pause(20)
        for child in (first, second):
            child.send_signal(signal.SIGSTOP)
        pause(220)
        for child in (first, second):
            child.send_signal(signal.SIGCONT)
        pause(50)
        assert first.stdin is not None
        first.stdin.close()
        first.stdin = None
        assert last_word(first).startswith("heard: ")
        assert "no heartbeat" not in last_word(second)
