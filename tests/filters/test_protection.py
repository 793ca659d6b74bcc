"""A pair that forms and dissolves: its buffers on every card, and the console, in one order."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from colo.filters import FilteredNet, OutputHold, parse, protect, unprotect
from colo.filters.console import PIECE_MAX, HeldConsole
from tests.filters.cables import Cable, frame, number_of
from vmm.backends.console import Capture, Console
from vmm.errors import ConfigError

Plug = Callable[..., tuple[FilteredNet, Cable]]


def test_the_order_among_cards_and_the_console_is_kept(plug: Plug, hold: OutputHold) -> None:
    spoken: list[str] = []
    (first, cable), (second, other) = plug("net0"), plug("net1")
    cable.on_transmit = lambda data: spoken.append(f"net0 {number_of(data)}")
    other.on_transmit = lambda data: spoken.append(f"net1 {number_of(data)}")

    class Screen(Capture):
        def write(self, data: bytes) -> None:
            spoken.append(f"com1 {data.decode()}")

    console: Console = HeldConsole(Screen(), hold)
    protect([first, second], hold)
    first.transmit(frame(1))
    console.write(b"hello")
    second.transmit(frame(2))
    first.transmit(frame(3))
    assert spoken == []
    hold.cut(1)
    assert [port for port, _ in hold.taken(1, 1 << 16)] == ["net0", "com1", "net1", "net0"]
    hold.release(1)
    assert spoken == ["net0 1", "com1 hello", "net1 2", "net0 3"]


def test_protection_adds_buffers_as_qemu_names_them_and_takes_its_own_away(
    plug: Plug, hold: OutputHold
) -> None:
    (first, cable), (second, other) = plug("net0"), plug("net1")
    second.add(parse("buffer,id=mine"), hold)
    second.transmit(frame(0))
    assert other.numbers == [0], "without a pair nobody would release it"
    for _ in range(2):
        protect([first, second], hold)
        specs = [net.filters[0].spec for net in (first, second)]
        assert [(spec.id, spec.auto, spec.queue.value) for spec in specs] == [
            ("net0-filter-buffer.0", True, "rx"),
            ("mine", False, "all"),
        ]
    first.transmit(frame(1))
    second.transmit(frame(2))
    assert (cable.numbers, other.numbers) == ([], [0])
    for _ in range(2):
        unprotect([first, second])
        assert (cable.numbers, other.numbers) == ([1], [0, 2])
        assert [len(net.filters) for net in (first, second)] == [0, 1]
    first.transmit(frame(3))
    second.transmit(frame(4))
    assert (cable.numbers, other.numbers) == ([1, 3], [0, 2, 4])


def test_a_buffer_that_is_off_or_holds_only_input_protects_nothing(plug: Plug, hold: OutputHold) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=mine,status=off"), hold)
    protect([net], hold)
    net.transmit(frame(1))
    assert cable.numbers == []
    with pytest.raises(ConfigError, match="one is enough"):
        net.set_status("mine", True)
    with pytest.raises(ConfigError, match="one is enough"):
        net.add(parse("buffer,id=other,queue=tx"), hold)


def test_nobody_lets_out_what_is_not_committed_by_taking_a_filter_away(plug: Plug, hold: OutputHold) -> None:
    net, cable = plug()
    protect([net], hold)
    net.transmit(frame(1))
    with pytest.raises(ConfigError, match="end the protection first"):
        net.remove("net0-filter-buffer.0")
    with pytest.raises(ConfigError, match="end the protection first"):
        net.set_status("net0-filter-buffer.0", False)
    assert cable.numbers == []


def test_input_can_wait_for_a_commit_as_well(plug: Plug, hold: OutputHold) -> None:
    net, cable = plug()
    net.add(parse("buffer,id=f0,queue=all"), hold)
    protect([net], hold)
    cable.arrive(frame(1), frame(2))
    assert net.receive() is None
    net.transmit(frame(3))
    hold.cut(1)
    assert hold.taken(1, 1000) == [("net0", frame(3))]
    thread = threading.Thread(target=hold.release, args=(1,))
    thread.start()
    thread.join()
    assert cable.numbers == [3]
    assert [net.receive(), net.receive(), net.receive()] == [frame(1), frame(2), None]


def test_the_console_is_heard_at_once_without_a_pair_and_after_it(hold: OutputHold) -> None:
    screen = Capture()
    console = HeldConsole(screen, hold)
    console.write(b"a")
    hold.begin()
    console.write(b"b" * (PIECE_MAX + 1))
    assert screen.text == "a"
    hold.cut(1)
    assert [len(data) for _, data in hold.taken(1, 1 << 20)] == [PIECE_MAX, 1]
    hold.end()
    console.write(b"c")
    assert screen.text == "a" + "b" * (PIECE_MAX + 1) + "c"
    console.mute()
    console.write(b"d")
    assert (screen.text[-1], console.muted, console.muted_bytes) == ("c", True, 1)
    console.unmute()
    console.write(b"e")
    assert screen.text[-1] == "e"


def test_typing_is_not_held(hold: OutputHold) -> None:
    class Keyboard(Capture):
        def receive(self) -> bytes | None:
            return b"typed"

    console = HeldConsole(Keyboard(), hold)
    hold.begin()
    assert console.receive() == b"typed"
    assert (console.fileno(), console.pending_output) == (-1, False)
    console.flush()
    console.close()
