"""Which connections are kept, which are forgotten, and when nothing is left to do."""

from __future__ import annotations

import pytest

from colo.compare.packet import FIN, RST, SYN
from colo.rewrite.connection import Connection
from colo.rewrite.rewriter import Rewriter, Settings, Status
from colo.rewrite.table import reversed_key
from colo.rewrite.timestamps import MARGIN
from tests.compare.frames import tcp
from tests.rewrite.ends import MASK, Ends

OWN, ITS, CLIENT = 1000, 700_000, 5000


class Host:
    """Connections of many ports at one rewriter."""

    def __init__(self, **limits: float) -> None:
        self.rewriter = Rewriter(Settings(**limits))  # type: ignore[arg-type]
        self.now_ms = 0.0

    def at(self, port: int) -> Ends:
        ends = Ends(port=port)
        ends.rewriter, ends.now_ms = self.rewriter, self.now_ms
        return ends

    def opened(self, port: int) -> None:
        ends = self.at(port)
        ends.guest(OWN, ack=CLIENT + 1, flags=SYN)
        ends.client(CLIENT + 1, ack=ITS + 1)

    def translates(self, port: int) -> bool:
        return self.at(port).guest(OWN + 1, b"x", ack=CLIENT + 1).seq == ITS + 1

    def later(self, ms: float) -> None:
        """Long enough for ageing to come round."""
        self.now_ms += ms
        for _ in range(10):
            self.rewriter.tick(self.now_ms)

    @property
    def ports(self) -> list[int]:
        return sorted(int(each.name.rpartition(":")[2]) for each in self.rewriter.conversations())


def test_a_flood_costs_only_its_own() -> None:
    """Of any size: SYN-ACKs that nobody answers make room for each other."""
    host = Host(connections_max=64)
    for port in range(40):
        host.opened(port)
    for port in range(1000, 3000):
        host.at(port).guest(OWN, ack=CLIENT + 1, flags=SYN)
    assert len(host.ports) == 64
    assert all(host.translates(port) for port in range(40))
    assert host.rewriter.counts["evicted"] == 2000 - 24
    assert "evicted_translated" not in host.rewriter.counts


def test_a_client_s_syns_are_not_even_noted() -> None:
    host = Host()
    for port in range(1000):
        host.at(port).client(CLIENT, flags=SYN)
        host.at(port).guest(0, ack=CLIENT + 1, flags=RST)
    assert host.ports == []


def test_the_one_unused_for_longest_is_given_up_and_counted() -> None:
    host = Host(connections_max=8)
    for port in range(8):
        host.opened(port)
        host.now_ms += 1
    host.translates(0)
    for port in (100, 101):
        host.opened(port)
    assert host.rewriter.counts["evicted_translated"] == 2
    assert host.ports == [0, 3, 4, 5, 6, 7, 100, 101]


def test_a_table_of_one() -> None:
    host = Host(connections_max=1)
    for port in range(3):
        host.opened(port)
    assert host.ports == [2]
    assert host.translates(2)


def test_a_checkpoint_makes_all_of_them_dispensable() -> None:
    host = Host(connections_max=8)
    for port in range(8):
        host.opened(port)
    host.rewriter.reset()
    for port in range(100, 108):
        host.opened(port)
    assert host.ports == list(range(100, 108))
    assert host.rewriter.counts["evicted"] == 8
    assert "evicted_translated" not in host.rewriter.counts


@pytest.mark.parametrize("end", ["fins", "guest", "client"])
def test_what_ended_lingers_and_is_forgotten(end: str) -> None:
    host = Host()
    host.opened(1)
    ends = host.at(1)
    ends.guest(OWN + 1, ack=CLIENT + 1)
    if end == "fins":
        ends.guest(OWN + 1, ack=CLIENT + 1, flags=FIN)
        ends.client(CLIENT + 1, ack=ITS + 2, flags=FIN)
    elif end == "guest":
        ends.guest(OWN + 1, flags=RST)
    else:
        ends.client(CLIENT + 1, flags=RST)
    host.later(host.rewriter.settings.linger_ms - 1)
    assert host.translates(1), "a last word said again"
    if end != "fins":  # that it speaks shows that it lives
        host.at(1).guest(OWN + 1, flags=RST)
    host.later(host.rewriter.settings.linger_ms)
    assert host.ports == []
    assert host.rewriter.counts["forgotten"] == 1


def test_a_forged_reset_does_not_end_anything() -> None:
    """RFC 5961, section 3.2: only one at exactly the next number is taken."""
    host = Host()
    host.opened(1)
    host.at(1).guest(OWN + 1, ack=CLIENT + 1)
    host.at(1).client(CLIENT + 2, flags=RST)
    host.later(host.rewriter.settings.linger_ms)
    assert host.translates(1)
    host.at(1).guest(OWN + 1, flags=RST)
    host.at(1).guest(OWN + 1, ack=CLIENT + 1)
    host.later(host.rewriter.settings.linger_ms)
    assert host.translates(1)


def test_what_is_idle_is_forgotten_late_and_an_unfinished_handshake_early() -> None:
    host = Host()
    host.opened(1)
    host.at(2).guest(OWN, flags=SYN)
    host.later(host.rewriter.settings.linger_ms)
    assert host.ports == [1]
    host.later(host.rewriter.settings.idle_ms)
    assert host.ports == []


def test_ageing_goes_round_a_large_table() -> None:
    host = Host()
    for port in range(1, 1001):
        host.opened(port)
    host.now_ms = host.rewriter.settings.idle_ms
    for port in range(1, 11):
        assert host.translates(port)
    for _ in range(100):
        host.rewriter.tick(host.now_ms)
    assert host.ports == list(range(1, 11))


# When is there nothing left to do?


def test_before_a_take_over_there_always_is() -> None:
    assert Rewriter().active


def test_after_it_as_long_as_a_connection_has_other_numbers() -> None:
    host = Host()
    host.opened(1)
    host.rewriter.take_over(host.now_ms)
    assert host.rewriter.active
    host.at(1).guest(OWN + 1, flags=RST)
    assert host.rewriter.active, "it may be said again"
    host.later(host.rewriter.settings.linger_ms)
    assert not host.rewriter.active


def test_after_it_as_long_as_a_clock_is_behind() -> None:
    host = Host()
    ends = host.at(1)
    ends.client(CLIENT, ack=OWN, stamps=(1, 50_000))
    host.rewriter.take_over(host.now_ms)
    assert host.rewriter.active
    ahead = 50_001 + MARGIN
    for own in (50_001, ahead - 1):
        assert ends.guest(OWN, b"x", ack=CLIENT, stamps=(own, 1)).stamps == (ahead, 1)
        assert host.rewriter.active
    assert ends.guest(OWN, b"x", ack=CLIENT, stamps=(ahead, 1)).stamps == (ahead, 1)
    assert not host.rewriter.active


def test_after_it_an_idle_clock_is_waited_for_only_so_long() -> None:
    host = Host()
    host.at(1).client(CLIENT, ack=OWN, stamps=(1, 50_000))
    host.rewriter.take_over(host.now_ms)
    host.later(host.rewriter.settings.settle_ms - 1)
    assert host.rewriter.active
    host.later(1)
    assert not host.rewriter.active


def test_after_it_as_long_as_a_handshake_is_unfinished() -> None:
    host = Host()
    host.at(1).guest(OWN, ack=CLIENT + 1, flags=SYN)
    host.rewriter.take_over(host.now_ms)
    assert host.rewriter.active
    host.at(1).client(CLIENT + 1, ack=OWN + 1)
    assert not host.rewriter.active


def test_what_a_survivor_gave_is_aged_like_the_rest() -> None:
    host = Host()
    host.opened(1)
    given = host.rewriter.translations()
    other = Host()
    other.rewriter.reset(given)
    other.rewriter.take_over(0.0)
    assert other.ports == [1]
    assert other.rewriter.active
    other.later(other.rewriter.settings.idle_ms)
    assert not other.rewriter.active


def test_what_a_survivor_gave_also_serves_an_error_that_quotes_it() -> None:
    from tests.rewrite.ends import words
    from tests.rewrite.test_edit import error

    host = Host()
    host.opened(1)
    other = Host()
    other.rewriter.reset(host.rewriter.translations())
    quote = other.at(1).guest_frame(ITS + 5, ack=6)[14:]
    assert other.rewriter.inward(error(quote), 0.0)[14 + 28 + 24 :][:4] == words(OWN + 5)


# For a reader


def test_conversations_and_counts() -> None:
    ends = Ends(six=True)
    ends.guest(OWN, ack=CLIENT + 1, flags=SYN, stamps=(100, 7))
    ends.client(CLIENT + 1, ack=ITS + 1, stamps=(8, 40))
    ends.guest(OWN + 1, b"x", ack=CLIENT + 1, stamps=(110, 8))
    (status,) = ends.rewriter.conversations()
    assert status == Status("tcp [fd00::2]:80 > [fd00::1]:40000", False, ITS - OWN, -60, ends.counts)
    assert status.counts == {
        "unchanged": 1,
        "sequence": 1,
        "stamp": 1,
        "acknowledgement": 1,
        "echo": 1,
        "learned_accepted": 1,
    }


@pytest.mark.parametrize("vlans", [(), (7,), (7, 9)])
@pytest.mark.parametrize("six", [False, True])
def test_a_key_turned_round_is_that_of_the_answer(vlans: tuple[int, ...], six: bool) -> None:
    from colo.compare.packet import parse

    ends = {"source": "fd00::2", "destination": "fd00::1"} if six else {}
    back = (
        {"source": "fd00::1", "destination": "fd00::2"}
        if six
        else {"source": "10.77.0.1", "destination": "10.77.0.2"}
    )
    key = parse(tcp(1, vlans=vlans, ports=(80, 4000), **ends)).key
    assert reversed_key(key) == parse(tcp(1, vlans=vlans, ports=(4000, 80), **back)).key
    assert reversed_key(reversed_key(key)) == key


def test_no_field_can_be_added_by_mistake() -> None:
    with pytest.raises(AttributeError):
        Rewriter().shift = MASK  # type: ignore[attr-defined]
    assert not hasattr(Connection, "__dict__") or "__slots__" in vars(Connection)
