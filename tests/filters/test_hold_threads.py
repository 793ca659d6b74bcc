"""The guest's thread and the one that releases, at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from colo.filters import FilteredNet, OutputHold, protect, unprotect
from tests.filters.cables import Cable, frame, number_of

Plug = Callable[..., tuple[FilteredNet, Cable]]

EPOCHS, BURST = 300, 60


def test_a_guest_that_speaks_while_another_thread_releases(plug: Plug, hold: OutputHold) -> None:
    """Every frame once, in order, and none before its epoch was committed, both threads at full speed."""
    (first, cable), (second, other) = plug("net0"), plug("net1")
    heard: list[int] = []
    early: list[int] = []
    committed = [0]

    def hear(data: bytes) -> None:
        number = number_of(data)
        heard.append(number)
        if number >= committed[0]:
            early.append(number)

    cable.on_transmit = other.on_transmit = hear
    protect([first, second], hold)
    cuts: list[int] = []
    ready = threading.Semaphore(0)

    def release() -> None:
        for epoch in range(EPOCHS):
            ready.acquire()
            committed[0] = cuts[epoch]
            hold.release(epoch)
            assert hold.held_bytes >= 0

    releasing = threading.Thread(target=release)
    releasing.start()
    count = 0
    for epoch in range(EPOCHS):
        for _ in range(BURST):
            (first if count % 3 else second).transmit(memoryview(frame(count)))
            count += 1
        hold.cut(epoch)
        cuts.append(count)
        ready.release()
    releasing.join(60)
    assert not releasing.is_alive()
    assert (early, hold.dropped) == ([], 0)
    assert heard == list(range(EPOCHS * BURST))
    assert (hold.held_frames, hold._sealed_bytes) == (0, 0)


def test_the_end_waits_for_a_release_under_way(plug: Plug, hold: OutputHold) -> None:
    """The guest's thread ends the protection while the other thread is in the middle of a frame."""
    net, cable = plug()
    speaking, go_on = threading.Event(), threading.Event()

    def slow(data: bytes) -> None:
        cable.heard.append(data)
        speaking.set()
        assert go_on.wait(30)

    protect([net], hold)
    for number in range(3):
        net.transmit(frame(number))
    hold.cut(1)
    net.transmit(frame(3))
    cable.on_transmit = slow
    releasing = threading.Thread(target=hold.release, args=(1,))
    releasing.start()
    assert speaking.wait(30)
    ending = threading.Thread(target=unprotect, args=([net],))
    ending.start()
    go_on.set()
    for thread in (releasing, ending):
        thread.join(30)
    net.transmit(frame(4))
    assert cable.numbers == list(range(5))
    assert net.filters == ()


def test_after_a_mute_not_one_more_word(plug: Plug) -> None:
    """Whatever another thread was about to say: when mute has returned, it is not said."""
    net, cable = plug()
    last: list[int] = []
    stop = threading.Event()

    def speak() -> None:
        number = 0
        while not stop.is_set():
            net.say(frame(number))
            number += 1

    speaking = threading.Thread(target=speak)
    speaking.start()
    try:
        for _ in range(50):
            heard = len(cable.heard)
            while len(cable.heard) == heard:
                assert speaking.is_alive()
            net.mute()
            last.append(len(cable.heard))
            muted = net.muted_frames
            while net.muted_frames < muted + 10:
                assert speaking.is_alive()
            assert len(cable.heard) == last[-1]
            net.unmute()
    finally:
        stop.set()
        speaking.join(30)


def test_dropping_while_the_guest_speaks_leaves_nothing_to_say(hold: OutputHold) -> None:
    said: list[bytes] = []
    hold.connect("net0", said.append)
    stop = threading.Event()

    def speak() -> None:
        epoch = 0
        while not stop.is_set():
            hold.hold("net0", b"x" * 100)
            epoch += 1
            if epoch % 50 == 0:
                hold.cut(epoch)

    speaking = threading.Thread(target=speak)
    speaking.start()
    for _ in range(200):
        hold.drop_all()
    stop.set()
    speaking.join(30)
    hold.drop_all()
    hold.end()
    assert said == []
    assert (hold.held_frames, hold.held_bytes, hold._sealed_frames) == (0, 0, 0)
