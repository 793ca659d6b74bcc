"""When output goes: one primary of policy ``lockstep``, step by step (:mod:`colo.node.logged`).

The simulator (:mod:`tests.protocol`) has these rules under every fault; here each is told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from colo.filters import protect
from colo.messages import Diverged, Log, Message, Progress
from colo.node.logged import Logged
from tests.protocol.companions import QUEUE, TcpCompanion, ToyCompanion, UnixCompanion, companions
from tests.protocol.host import HostTime, small_limits
from tests.protocol.toy_guest import CONSOLE, NET, WORD_BYTES, Guest, request
from tests.protocol.toy_machine import ToyMachine

EPOCH = 0
STEP_MS = 0.01
"""So short that nothing is published because time passed."""


class Primary:
    """A machine, its rule, and the other end of its companion."""

    def __init__(self, kind: str) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self.divergences: list[dict[str, object]] = []
        self.machine = ToyMachine(
            "n0",
            Guest(),
            (lambda _, stream, data: self.heard.append((stream, data)), lambda *_: None),
            HostTime(STEP_MS),
            Random("release"),
            muted=False,
        )
        ends = companions(kind, 2, (lambda _: None,) * 2, (lambda: False,) * 2, Random(kind))
        self.companion: ToyCompanion = ends[0]
        self.peer: ToyCompanion = ends[1]
        protect(self.machine.replica.nets, self.machine.hold)
        stand_in: Any = self.companion
        self.rule = Logged(self.machine.replica, stand_in, self.divergences.append)

    def begin(self, *, opened: bool = True) -> None:
        self.machine.hold.cut(EPOCH)
        self.rule.begin(EPOCH)
        self.machine.hold.release(EPOCH)
        if opened:
            self.rule.open()

    def ask(self, *requests: tuple[int, int]) -> None:
        for client, number in requests:
            self.machine.door.enter(NET, request(client, number, 10))

    def work(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.machine.turn()

    def answer(self, word: Message) -> None:
        """The secondary says something."""
        self.peer.send(word)
        if isinstance(self.companion, TcpCompanion):
            self.companion.into.land()
        self.rule.hear()


@pytest.fixture(params=["unix", "tcp"])
def primary(request: pytest.FixtureRequest) -> Iterator[Primary]:
    made = Primary(request.param)
    with small_limits():
        yield made


@pytest.fixture
def over_tcp() -> Iterator[Primary]:
    made = Primary("tcp")
    with small_limits():
        yield made


@pytest.fixture
def beside() -> Iterator[tuple[Primary, UnixCompanion]]:
    """On one host: and the secondary's end."""
    made = Primary("unix")
    assert isinstance(made.peer, UnixCompanion)
    with small_limits():
        yield made, made.peer


def test_between_a_cut_and_its_commit_nothing_goes(primary: Primary) -> None:
    primary.begin(opened=False)
    primary.ask((0, 1))
    primary.work()
    assert primary.heard == []
    assert primary.machine.hold.held_frames == 2, "a reply, and a note on the console"


def test_what_the_kernel_of_one_host_took_is_held(beside: tuple[Primary, UnixCompanion]) -> None:
    primary, peer = beside
    primary.begin()
    primary.ask((0, 1))
    primary.work()
    assert [stream for stream, _ in primary.heard] == [0, 2]
    words = [word for word in peer.queue if isinstance(word, Log)]
    assert [(len(word.inputs), len(word.outputs)) for word in words][-2:] == [(1, 1), (0, 1)]
    assert words[-1].spoken == {NET: len(primary.heard[0][1]) + 42}, "with its frame's headers"


def test_a_word_in_the_backlog_keeps_its_output_waiting(beside: tuple[Primary, UnixCompanion]) -> None:
    primary, peer = beside
    primary.begin()
    peer.queue.extend([Log(EPOCH, 0, [], [], {})] * (QUEUE - len(peer.queue)))
    primary.ask((0, 1))
    primary.work()
    assert primary.heard == []
    while peer.queue:
        peer.queue.popleft()
    primary.rule.hear()
    assert len(primary.heard) == 2


def test_over_tcp_an_answer_counts_and_it_has_to_be_the_last_words(over_tcp: Primary) -> None:
    """Two inputs do not fit a word here: the second one has a word of its own, and the frontier."""
    over_tcp.begin()
    over_tcp.ask((0, 1), (1, 1))
    before = over_tcp.rule._words
    over_tcp.work()
    words = [word for word in over_tcp.companion.out.flying if isinstance(word, Log)]  # type: ignore[attr-defined]
    assert [len(word.inputs) for word in words][-3:] == [1, 1, 0]
    assert over_tcp.heard == []
    over_tcp.answer(Progress(EPOCH, before + 1, 0))
    assert over_tcp.heard == [], "the word with the frontier is not held"
    over_tcp.answer(Progress(EPOCH, before + 2, 0))
    assert [stream for stream, _ in over_tcp.heard] == [0]
    over_tcp.answer(Progress(EPOCH, before + 3, 0))
    assert [stream for stream, _ in over_tcp.heard] == [0, 2]


def test_an_answer_of_another_epoch_is_none(over_tcp: Primary) -> None:
    over_tcp.begin()
    over_tcp.ask((0, 1))
    over_tcp.work()
    over_tcp.answer(Progress(EPOCH + 1, 99, 99))
    assert over_tcp.heard == []


def test_after_a_divergence_all_waits_and_goes_with_the_next_cut_in_order(over_tcp: Primary) -> None:
    over_tcp.begin()
    over_tcp.ask((0, 1))
    over_tcp.work()
    over_tcp.answer(Diverged(EPOCH, 5, "it differs", {}))
    assert [told["what"] for told in over_tcp.divergences] == ["it differs"]
    over_tcp.ask((1, 1))
    over_tcp.work(2)
    assert over_tcp.heard == []
    over_tcp.machine.hold.cut(EPOCH + 1)
    over_tcp.machine.hold.release(EPOCH + 1)
    assert [stream for stream, _ in over_tcp.heard] == [0, 2, 1, 2]


def test_a_fence_keeps_what_was_not_said_yet(over_tcp: Primary) -> None:
    """The survivor shut its end: what it had acknowledged before is for it to say now."""
    over_tcp.begin()
    over_tcp.ask((0, 1))
    over_tcp.work()
    over_tcp.peer.send(Progress(EPOCH, 99, 0))
    over_tcp.peer.shut()
    while over_tcp.companion.into.flying:  # type: ignore[attr-defined]
        over_tcp.companion.into.land()  # type: ignore[attr-defined]
    over_tcp.rule.hear()
    assert over_tcp.heard == []


def test_a_console_says_no_more_than_the_log_covers(primary: Primary) -> None:
    """Words to the console follow the same rule as frames do."""
    primary.begin()
    primary.machine.door.enter(CONSOLE, b"\1\0")
    primary.work()
    if isinstance(primary.companion, TcpCompanion):
        assert primary.heard == []
        primary.answer(Progress(EPOCH, primary.rule._words, 0))
    assert [(stream, len(data)) for stream, data in primary.heard] == [(2, WORD_BYTES)]
