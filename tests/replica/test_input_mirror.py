"""Inputs on their way to the secondary: in order, each with its epoch, and none left lying."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from colo.messages import INPUTS_MAX, Inputs, Message, Packet
from colo.node import input_mirror
from colo.node.input_mirror import KEPT, InputMirror
from colo.node.replica import Totals
from tests.replica.support import LIMIT_S, End, connection


def said(end: End) -> list[tuple[int, Packet]]:
    """Everything that was sent, one by one."""
    flat: list[tuple[int, Packet]] = []
    for message in end.sent:
        assert isinstance(message, Inputs)
        assert 0 < len(message.packets) <= INPUTS_MAX
        flat += [(message.epoch, packet) for packet in message.packets]
    return flat


async def settled(end: End, count: int) -> None:
    """Until so many inputs were sent; the loop has nothing else to do."""
    async with asyncio.timeout(LIMIT_S / 4):
        while len(said(end)) < count:
            await asyncio.sleep(0)


class HeardEnd(End):
    """A link whose user is told of each message that it took."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = threading.Semaphore(0)

    async def send(self, message: Message) -> None:
        await super().send(message)
        self.taken.release()


class SlowEnd(End):
    """A link that takes nothing until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()

    async def send(self, message: Message) -> None:
        await self.opened.wait()
        await super().send(message)


def numbered(number: int) -> Packet:
    return ("net0", number.to_bytes(4, "big"))


def test_inputs_go_in_order_one_message_an_epoch() -> None:
    async def scenario() -> None:
        mirror, (end, _) = InputMirror(Totals()), connection()
        mirror.attach(end)
        for epoch in range(5):
            mirror.epoch = epoch
            for number in range(10):
                mirror.hear(*numbered(10 * epoch + number))
        await settled(end, 50)
        assert said(end) == [(number // 10, numbered(number)) for number in range(50)]
        assert len(end.sent) == 5

    asyncio.run(scenario())


def test_a_message_has_a_limit() -> None:
    async def scenario() -> None:
        mirror, (end, _) = InputMirror(Totals()), connection()
        mirror.attach(end)
        for number in range(2 * INPUTS_MAX + 1):
            mirror.hear(*numbered(number))
        await settled(end, 2 * INPUTS_MAX + 1)
        assert [len(message.packets) for message in end.sent if isinstance(message, Inputs)] == [
            INPUTS_MAX,
            INPUTS_MAX,
            1,
        ]

    asyncio.run(scenario())


def test_a_slow_link_costs_inputs_and_no_memory() -> None:
    async def scenario() -> None:
        totals = Totals()
        mirror, end, other = InputMirror(totals), SlowEnd(), End()
        end.peer, other.peer = other, end
        mirror.attach(end)
        for number in range(KEPT + 30):
            mirror.hear(*numbered(number))
        assert totals.inputs_dropped == 30
        end.opened.set()
        await settled(end, KEPT)
        assert said(end) == [(0, numbered(number)) for number in range(KEPT)]
        mirror.hear(*numbered(7))
        await settled(end, KEPT + 1)
        assert totals.inputs_dropped == 30, "and then there is room again"

    asyncio.run(scenario())


def test_a_lost_link_empties_the_queue() -> None:
    async def scenario() -> None:
        totals = Totals()
        mirror, (end, _) = InputMirror(totals), connection()
        mirror.attach(end)
        end.close()
        for turn in range(4):
            for number in range(KEPT):
                mirror.hear(*numbered(number))
            async with asyncio.timeout(LIMIT_S):
                while mirror._waiting or mirror._due:
                    await asyncio.sleep(0)
            assert totals.inputs_dropped == 0, f"turn {turn}"
        assert end.sent == []

    asyncio.run(scenario())


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change places as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
def test_nothing_is_left_lying_when_another_thread_hears() -> None:
    """The sender may be about to rest at any moment at which the guest's thread adds an input."""

    async def scenario() -> None:
        mirror, (end, _) = InputMirror(Totals()), connection()
        mirror.attach(end)
        count = 6000

        def guest() -> None:
            for number in range(count):
                if number % 97 == 0:
                    mirror.epoch += 1
                mirror.hear(*numbered(number))
                while number - sent() > KEPT // 2:  # the link keeps up: nothing may be dropped
                    asked.wait(0.0005)

        def sent() -> int:
            return sum(len(each.packets) for each in end.sent if isinstance(each, Inputs))

        asked = threading.Event()
        thread = threading.Thread(target=guest)
        thread.start()
        async with asyncio.timeout(LIMIT_S):
            while thread.is_alive() or mirror._waiting or mirror._due:
                await asyncio.sleep(0)
        thread.join()
        assert [packet for _, packet in said(end)] == [numbered(number) for number in range(count)]
        assert [epoch for epoch, _ in said(end)] == [number // 97 + 1 for number in range(count)]

    asyncio.run(scenario())


@pytest.mark.usefixtures("hurried")
def test_bursts_with_rests_in_between_wake_the_sender_every_time() -> None:
    """One input at a time, the next one just when the sender has sent the one before."""

    async def scenario() -> None:
        mirror, end, other = InputMirror(Totals()), HeardEnd(), End()
        end.peer, other.peer = other, end
        mirror.attach(end)
        count = 2000

        def guest() -> None:
            for number in range(count):
                mirror.hear(*numbered(number))
                assert end.taken.acquire(timeout=LIMIT_S), f"input {number} was left lying"

        await asyncio.to_thread(guest)
        assert said(end) == [(0, numbered(number)) for number in range(count)]

    asyncio.run(scenario())


@pytest.mark.parametrize("line", range(1, 40))
def test_an_input_is_sent_before_whichever_line_of_the_sender_it_comes(line: int) -> None:
    """Another thread's: where two threads could miss each other is between two lines."""

    async def scenario() -> None:
        mirror, (end, _) = InputMirror(Totals()), connection()
        mirror.attach(end)
        left = line

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != input_mirror.__file__:
                return None
            left -= event == "line"
            if left == 0:
                left = -1
                guest = threading.Thread(target=mirror.hear, args=numbered(2))
                guest.start()
                guest.join()
            return trace

        before = sys.gettrace()
        mirror.hear(*numbered(1))
        sys.settrace(trace)
        try:
            await settled(end, 1)
            while mirror._due:
                await asyncio.sleep(0)
        finally:
            sys.settrace(before)
        if left >= 0:  # it has rested before it came to that line
            mirror.hear(*numbered(2))
        await settled(end, 2)
        assert said(end) == [(0, numbered(1)), (0, numbered(2))]

    asyncio.run(scenario())


def test_epochs_only_grow() -> None:
    async def scenario() -> None:
        mirror, (end, _) = InputMirror(Totals()), connection()
        mirror.attach(end)
        for epoch in (0, 0, 3, 3, 4):
            mirror.epoch = epoch
            mirror.hear(*numbered(epoch))
        await settled(end, 5)
        epochs = [epoch for epoch, _ in said(end)]
        assert all(one <= other for one, other in pairwise(epochs))

    asyncio.run(scenario())
