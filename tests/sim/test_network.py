"""Cables and switches: what arrives where, when, and in which state."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from colo.faults.delay import Delay
from colo.faults.model import AtTime, LinkFault
from colo.sim.agenda import LOOKAHEAD_NS, Agenda
from colo.sim.impair import Impairments, damaged
from colo.sim.network import CARD_QUEUE, Cable, Card, FarEnd, Switch
from colo.sim.station import Station

NOW = AtTime(ns=0)
DELAY = Delay(ns=50_000)
MS = 1_000_000
BROADCAST = b"\xff" * 6


class End:
    """A host that remembers."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self.heard: list[tuple[int, bytes]] = []

    def arrive(self, frame: bytes) -> None:
        self.heard.append((self._agenda.now_ns, frame))

    @property
    def payloads(self) -> list[bytes]:
        return [frame[14:] for _, frame in self.heard]


class Net:
    """Three hosts at a switch."""

    def __init__(self, *, learns: bool = False, rate: int = 0) -> None:
        self.agenda = Agenda()
        self.switch = Switch(learns)
        self.ends = [End(self.agenda) for _ in range(3)]
        self.told: list[tuple[str, str]] = []
        self.cables = [self._cable(number, end, rate) for number, end in enumerate(self.ends)]

    def _cable(self, number: int, end: End, rate: int) -> Cable:
        cable = Cable(
            f"c{number}",
            self.agenda,
            lambda who, what, frame: self.told.append((who, what)),
            end,
            delay=DELAY,
            bytes_per_s=rate,
            draw=lambda delay: delay.ns,
        )
        self.switch.plug(cable)
        return cable

    def say(self, source: int, destination: int | None, payload: bytes) -> None:
        to = BROADCAST if destination is None else mac(destination)
        self.cables[source].send("from", to + mac(source) + b"\x08\x00" + payload)

    def hurt(self, number: int, effect: str, **parameters: object) -> None:
        fault = LinkFault(when=NOW, effect=effect, **parameters)  # type: ignore[arg-type]
        self.cables[number].impairments.begin(fault, self.agenda.now_ns, random.Random("test"))

    def run(self, until_ms: float = 10_000) -> None:
        self.agenda.run(round(until_ms * MS), lambda: False)


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def test_a_frame_takes_the_delay_of_both_cables() -> None:
    net = Net()
    net.say(0, 1, b"hello")
    net.run()
    assert [(at_ns, frame[14:]) for at_ns, frame in net.ends[1].heard] == [(2 * DELAY.ns, b"hello")]


def test_nothing_is_faster_than_the_lookahead() -> None:
    net = Net()
    net.cables[0] = Cable(
        "fast", net.agenda, lambda *_: None, net.ends[0], delay=Delay(ns=0), bytes_per_s=0, draw=lambda d: 0
    )
    net.cables[0].send("to", bytes(60))
    net.run()
    assert [at_ns for at_ns, _ in net.ends[0].heard] == [LOOKAHEAD_NS]


@pytest.mark.parametrize(("learns", "overheard"), [(False, 2), (True, 1)])
def test_a_switch_learns_or_floods(learns: bool, overheard: int) -> None:
    net = Net(learns=learns)
    net.say(1, None, b"here I am")
    net.run(1)
    net.say(0, 1, b"one")
    net.run(2)
    net.say(1, 0, b"two")
    net.run(3)
    assert net.ends[1].payloads == [b"one"]
    assert net.ends[0].payloads == [b"here I am", b"two"]
    assert len(net.ends[2].heard) == 1 + (overheard if not learns else 0)


def test_an_unplugged_port_is_forgotten() -> None:
    net = Net(learns=True)
    net.say(1, None, b"here I am")
    net.run(1)
    net.switch.unplug(net.cables[1])
    net.say(0, 1, b"where are you")
    net.run(2)
    assert net.ends[1].heard == []
    assert net.ends[2].payloads == [b"here I am", b"where are you"]


def test_a_rate_is_a_queue_with_an_end() -> None:
    net = Net(rate=1_000_000)
    for _ in range(1200):
        net.say(0, 1, bytes(986))
    net.run()
    times = [at_ns for at_ns, _ in net.ends[1].heard]
    assert times[1] - times[0] == MS
    assert 1040 <= len(times) < 1200
    assert net.told.count(("c0.from", "loses(queue full)")) == 1200 - len(times)


@pytest.mark.parametrize(
    ("effect", "parameters", "expected"),
    [
        ("drop", {"times": 2}, [b"2", b"3", b"4"]),
        ("duplicate", {"times": 1, "copies": 2}, [b"0", b"0", b"0", b"1", b"2", b"3", b"4"]),
        ("reorder", {"times": 1, "overtaken": 2}, [b"1", b"2", b"0", b"3", b"4"]),
        ("partition", {"for_ns": 2 * MS}, [b"2", b"3", b"4"]),
        ("half-open", {"for_ns": MS, "direction": "from"}, [b"1", b"2", b"3", b"4"]),
        ("partition", {"for_ns": 9 * MS, "direction": "to"}, [b"0", b"1", b"2", b"3", b"4"]),
        ("delay", {"times": 1, "delay": Delay(ns=1_500_000)}, [b"1", b"0", b"2", b"3", b"4"]),
    ],
)
def test_what_becomes_of_five_frames(
    effect: str, parameters: dict[str, object], expected: list[bytes]
) -> None:
    net = Net()
    net.hurt(0, effect, **parameters)
    for number in range(5):
        net.say(0, 1, b"%d" % number)
        net.run((number + 1) * 1.0)
    net.run()
    assert net.ends[1].payloads == expected


def test_one_that_nobody_overtakes_arrives_in_the_end() -> None:
    net = Net()
    net.hurt(0, "reorder", times=1)
    net.say(0, 1, b"alone")
    net.run()
    assert net.ends[1].payloads == [b"alone"]


def test_damage_is_bits_and_not_bytes() -> None:
    net = Net()
    net.hurt(0, "corrupt", times=1, bits=3)
    net.cables[0].send("from", bytes(1000))
    net.cables[0].send("from", bytes(1000))
    net.run()
    flipped = [int.from_bytes(frame, "big").bit_count() for _, frame in net.ends[1].heard]
    assert flipped == [3, 0]


def test_damage_of_nothing_is_nothing() -> None:
    assert damaged(b"", (1, 2)) == b""
    assert damaged(b"\0", (9,)) == b"\x02"


def test_faults_have_luck_of_their_own() -> None:
    def lost(*others: LinkFault) -> list[bool]:
        media = Impairments()
        drops = LinkFault(when=NOW, effect="drop", probability=0.5, for_ns=MS)
        media.begin(drops, 0, random.Random("drops"))
        for number, other in enumerate(others):
            media.begin(other, 0, random.Random(f"other {number}"))
        return [bool(media.fate("to", 0).lost) for _ in range(50)]

    corrupts = LinkFault(when=NOW, effect="corrupt", probability=0.5, for_ns=MS)
    assert lost() == lost(corrupts)
    assert 10 < sum(lost()) < 40


def test_a_card_that_nobody_reads_keeps_so_many_frames(request: pytest.FixtureRequest) -> None:
    told: Callable[[], None] = lambda: None  # noqa: E731
    card = Card(told, lambda: True)
    request.addfinalizer(card.close)
    for _ in range(CARD_QUEUE + 7):
        card.arrive(bytes(60))
    assert (card.waiting, card.dropped) == (CARD_QUEUE, 7)
    while card.receive() is not None:
        continue
    assert card.waiting == 0


def test_two_switches_are_one_segment_until_the_cable_between_them_fails() -> None:
    net = Net(learns=True)
    second = Switch(learns=True)
    far = FarEnd(second)
    far.cable = trunk = net._cable(9, far, 0)  # type: ignore[arg-type]
    there = End(net.agenda)
    cable = Cable(
        "there", net.agenda, lambda *_: None, there, delay=DELAY, bytes_per_s=0, draw=lambda delay: delay.ns
    )
    second.plug(cable)
    cable.send("from", BROADCAST + mac(7) + b"\x08\x00" + b"here I am")
    net.run(1)
    assert [end.payloads for end in net.ends] == [[b"here I am"]] * 3
    net.say(0, 7, b"hello")
    net.run(2)
    assert there.payloads == [b"hello"]
    assert net.ends[1].payloads == [b"here I am"]
    cut = LinkFault(when=NOW, effect="partition", persistence="permanent")
    trunk.impairments.begin(cut, net.agenda.now_ns, random.Random("test"))
    net.say(0, 7, b"anybody?")
    net.run(3)
    assert there.payloads == [b"hello"]


def test_a_station_has_its_own_address_outside_and_in_arp() -> None:
    inner = bytes.fromhex("525400c01002")
    station = Station(inner, 3)
    arp = b"\x08\x06" + bytes.fromhex("0001 0800 06 04 0001") + inner + b"\x0a\x4d\x00\x02" + bytes(10)
    shown = station.outward(BROADCAST + inner + arp)
    assert inner not in shown
    assert shown.count(station.outer) == 2
    reply = station.outer + mac(1) + b"\x08\x06" + shown[14:22] + mac(1) + bytes(4) + station.outer + bytes(4)
    assert station.inward(reply) == reply.replace(station.outer, inner)
    data = mac(1) + inner + b"\x08\x00" + inner * 5
    assert station.outward(data) == mac(1) + station.outer + b"\x08\x00" + inner * 5
