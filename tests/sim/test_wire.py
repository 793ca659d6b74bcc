"""The path between two nodes: the real ``Link`` over a simulated transport, companions and heartbeats."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from colo.errors import PeerLost
from colo.faults.model import AtTime, LinkFault
from colo.messages import CheckpointReady, Log, Progress, RamPages
from colo.sim.agenda import Agenda
from colo.sim.companion import CAPACITY, SimCompanion
from colo.sim.heartbeat import SimHeartbeat
from colo.sim.process import Process
from colo.sim.transport import joined
from colo.sim.wire import RTO_NS, Wire
from colo.transport.link import Link

MS = 1_000_000
DELAY_NS = 100_000
NOW = AtTime(ns=0)


class Ends:
    """Two processes with a wire between them."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.failures: list[BaseException] = []
        self.near, self.far = (Process(name, self.agenda, self.failures.append) for name in "ab")
        self.wire = Wire(self.agenda, DELAY_NS, 0)
        self.seen: list[tuple[int, object]] = []

    def close(self) -> None:
        for process in (self.near, self.far):
            process.die()
            process.bury()

    def see(self, what: object) -> None:
        self.seen.append((self.agenda.now_ns, what))

    def run(self, until_ms: float = 100_000) -> None:
        self.agenda.run(round(until_ms * MS), lambda: bool(self.failures))
        assert not self.failures

    def hurt(self, effect: str, **parameters: object) -> None:
        fault = LinkFault(when=NOW, effect=effect, **parameters)  # type: ignore[arg-type]
        until_ns = self.wire.impairments.begin(fault, self.agenda.now_ns, random.Random("test"))
        self.agenda.at(until_ns, self.wire.looked_at)

    def links(self) -> tuple[Link, Link]:
        made = []
        for process in (self.near, self.far):
            with process.inside():
                made.append(Link())
                made[-1].greeted()
        joined(self.near, self.far, self.wire.both(), made)
        return made[0], made[1]

    def companions(self, unix: bool) -> tuple[SimCompanion, SimCompanion]:
        made = [
            SimCompanion(
                -2 - number,
                process,
                lane,
                unix=unix,
                arrived=lambda number=number: self.see(number),  # type: ignore[misc]
                spoke=lambda message: None,
            )
            for number, (process, lane) in enumerate(
                zip((self.near, self.far), self.wire.both(), strict=True)
            )
        ]
        made[0].peer, made[1].peer = made[1], made[0]
        return made[0], made[1]

    def heartbeats(self) -> tuple[SimHeartbeat, SimHeartbeat]:
        made = [
            SimHeartbeat(process, lane, 50, 300)
            for process, lane in zip((self.near, self.far), self.wire.both(), strict=True)
        ]
        made[0].peer, made[1].peer = made[1], made[0]
        for beat in made:
            beat.on_lost = self.see
            beat.begin()
        return made[0], made[1]


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


# Links


def test_words_arrive_in_order_after_the_delay(ends: Ends) -> None:
    near, far = ends.links()

    async def speak() -> None:
        for epoch in range(3):
            await near.send(RamPages(epoch, 1, bytes(1000)))
            await asyncio.sleep(0.001)

    async def hear() -> None:
        for _ in range(3):
            message = await far.receive()
            assert isinstance(message, RamPages)
            ends.see(message.epoch)

    ends.near.undertake(speak())
    ends.far.undertake(hear())
    ends.run()
    assert ends.seen == [(DELAY_NS, 0), (MS + DELAY_NS, 1), (2 * MS + DELAY_NS, 2)]


def test_a_thin_wire_holds_the_sender_back(ends: Ends) -> None:
    ends.wire.rate = 1_000_000
    near, far = ends.links()

    async def speak() -> None:
        for _ in range(3):
            await near.send(RamPages(0, 1, bytes(4_000_000)))
        ends.see("sent")

    async def hear() -> None:
        for _ in range(3):
            await far.receive()
        ends.see("heard")

    ends.near.undertake(speak())
    ends.far.undertake(hear())
    ends.run()
    (sent_ns, _), (heard_ns, _) = sorted(ends.seen)
    assert 7e9 < sent_ns < 9e9
    assert 12e9 < heard_ns < 12.1e9


def test_the_end_comes_after_the_last_word(ends: Ends) -> None:
    near, far = ends.links()

    async def speak() -> None:
        await near.send(CheckpointReady())
        near.close()

    async def hear() -> None:
        assert isinstance(await far.receive(), CheckpointReady)
        with pytest.raises(PeerLost, match="closed the connection"):
            await far.receive()
        ends.see("end")

    ends.near.undertake(speak())
    ends.far.undertake(hear())
    ends.run()
    assert ends.seen == [(DELAY_NS, "end")]


@pytest.mark.parametrize(
    ("effect", "parameters", "at_ns"),
    [
        ("drop", {"times": 1}, DELAY_NS + RTO_NS),
        ("partition", {"for_ns": 30 * MS}, DELAY_NS + 30 * MS),
        ("duplicate", {"times": 1}, DELAY_NS),
        ("partition", {"for_ns": 30 * MS, "direction": "from"}, DELAY_NS),
    ],
)
def test_faults_cost_time_and_no_word(
    ends: Ends, effect: str, parameters: dict[str, object], at_ns: int
) -> None:
    near, far = ends.links()
    ends.hurt(effect, **parameters)

    async def hear() -> None:
        ends.see(await far.receive())

    ends.near.undertake(near.send(CheckpointReady()))
    ends.far.undertake(hear())
    ends.run()
    assert ends.seen == [(at_ns, CheckpointReady())]


def test_damage_is_refused(ends: Ends) -> None:
    near, far = ends.links()
    ends.hurt("corrupt", times=1)

    async def hear() -> None:
        with pytest.raises(Exception, match=r"damaged|where a frame begins|expected frame|no message"):
            await far.receive()
        ends.see("refused")

    ends.near.undertake(near.send(RamPages(0, 1, bytes(100))))
    ends.far.undertake(hear())
    ends.run()
    assert ends.seen


# Companions


def words(companion: SimCompanion) -> list[int]:
    found = []
    while (word := companion.receive()) is not None:
        assert isinstance(word, Progress)
        found.append(word.held)
    return found


def test_what_the_kernel_took_survives_its_sender(ends: Ends) -> None:
    near, far = ends.companions(unix=True)
    assert near.send(Progress(0, 1, 0))
    assert far.receive() is None, "not readable yet"
    ends.near.die()
    near.die(silently=False)
    far.shut()
    assert isinstance(far.receive(), Progress)
    with pytest.raises(PeerLost):
        far.receive()


def test_after_the_fence_nothing_is_taken(ends: Ends) -> None:
    near, far = ends.companions(unix=True)
    far.shut()
    assert near.peer_left
    with pytest.raises(PeerLost):
        near.send(Progress(0, 1, 0))


def test_over_tcp_what_flies_is_lost_with_the_host(ends: Ends) -> None:
    near, far = ends.companions(unix=False)
    near.send(Progress(0, 1, 0))
    ends.wire.cut()
    ends.run(1)
    assert far.receive() is None
    assert not near.held_on_send


def test_over_tcp_what_lands_behind_the_fence_is_lost(ends: Ends) -> None:
    near, far = ends.companions(unix=False)
    near.send(Progress(0, 1, 0))
    ends.run(1)
    near.send(Progress(0, 2, 0))
    far.shut()
    ends.run(2)
    assert isinstance(far.receive(), Progress)
    with pytest.raises(PeerLost):
        far.receive()
    assert near.peer_left


@pytest.mark.parametrize("unix", [True, False])
def test_a_reader_that_does_not_read_fills_the_queue(ends: Ends, unix: bool) -> None:
    near, far = ends.companions(unix)
    big = Log(0, 0, [(0, "net0", bytes(1000))], [], {})
    sent = 0
    while near.send(big):
        sent += 1
    assert CAPACITY - 20_000 < sent * 1000 < CAPACITY
    assert near.backlog > 1000
    ends.run(1)
    assert far.receive() is not None
    assert near.flush()
    assert ends.seen, "the reader was told"


# Heartbeats


def test_beats_go_both_ways(ends: Ends) -> None:
    near, far = ends.heartbeats()
    ends.run(1000)
    assert 19 <= near.beats <= 21
    assert 19 <= far.beats <= 21
    assert not ends.seen
    assert not near.is_overdue()


def test_silence_is_noticed_and_a_close_at_once(ends: Ends) -> None:
    near, _ = ends.heartbeats()
    ends.run(500)
    ends.near.die()
    near.die(silently=True)
    ends.run(2000)
    ((at_ns, reason),) = ends.seen
    assert 750 * MS <= at_ns <= 801 * MS
    assert reason == "no heartbeat for 300 ms"


def test_a_close_is_noticed_at_once(ends: Ends) -> None:
    near, _ = ends.heartbeats()
    ends.run(510)
    near.die(silently=False)
    ends.run(2000)
    assert [at_ns for at_ns, _ in ends.seen] == [510 * MS + DELAY_NS]


def test_both_stopped_together_forgive_each_other(ends: Ends) -> None:
    """A host that sleeps takes both with it."""
    near, far = ends.heartbeats()
    ends.run(510)
    for process in (ends.near, ends.far):
        process.pause()
    ends.run(5000)
    for process, beat in ((ends.near, near), (ends.far, far)):
        process.resume()
        beat.go_on()
    assert near.is_overdue(), "it was silent for longer than the other one waits"
    ends.run(7000)
    assert not ends.seen


def test_one_that_was_stopped_alone_is_lost(ends: Ends) -> None:
    ends.heartbeats()
    ends.run(510)
    ends.near.pause()
    ends.run(2000)
    assert [reason for _, reason in ends.seen] == ["no heartbeat for 300 ms"]
