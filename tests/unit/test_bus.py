"""The bus: who answers, who is refused, what is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.bus import SMALL, SURPRISES_MAX, Bus
from vmm.device import all_ones
from vmm.errors import ConfigError
from vmm.state import State


class Echo:
    """Answers with its name and the offset; remembers what was written."""

    __slots__ = ("name", "state", "writes")

    def __init__(self, name: int) -> None:
        self.state = State()
        self.name = name
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return self.name << 32 | offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))

    def reset(self) -> None: ...

    def restored(self) -> None: ...


def test_device_is_told_offsets() -> None:
    bus, echo = Bus("ports"), Echo(1)
    bus.claim(0x3F8, 8, echo, "COM1")
    assert bus.read(0x3F8, 1) == 1 << 32
    assert bus.read(0x3FF, 1) == 1 << 32 | 7
    bus.write(0x3FB, 2, 0x1234)
    assert echo.writes == [(3, 2, 0x1234)]


def test_unclaimed_is_all_ones_and_counted() -> None:
    bus = Bus("ports")
    assert [bus.read(0x99, size) for size in (1, 2, 4, 8)] == [all_ones(size) for size in (1, 2, 4, 8)]
    bus.write(0x98, 1, 0)
    assert bus.surprises == {0x99: 4, 0x98: 1}


def test_known_and_absent_is_all_ones_and_no_surprise() -> None:
    bus = Bus("ports")
    bus.claim(0x2F8, 8, None, "COM2, not fitted")
    assert bus.read(0x2F8, 1) == 0xFF
    bus.write(0x2F8, 1, 0)
    assert not bus.surprises


def test_scanning_guest_does_not_fill_memory() -> None:
    bus = Bus("memory")
    for address in range(2 * SURPRISES_MAX):
        bus.read(address, 1)
    bus.read(0, 1)
    assert len(bus.surprises) == SURPRISES_MAX
    assert bus.surprises[0] == 2


def test_overlap_is_refused_and_both_are_named() -> None:
    bus = Bus("ports")
    bus.claim(0x60, 5, Echo(1), "keyboard")
    with pytest.raises(ConfigError, match=r"ports: port B at 0x61\+0x1 overlaps keyboard at 0x60\+0x5"):
        bus.claim(0x61, 1, Echo(2), "port B")
    bus.claim(0x65, 1, Echo(3), "next door")


@pytest.mark.parametrize("length", [16, SMALL, SMALL + 1, 1 << 20])
def test_released_range_is_free_again(length: int) -> None:
    bus = Bus("memory")
    claim = bus.claim(0x1000, length, Echo(1), "BAR")
    assert bus.find(0x1000 + length - 1) == claim
    bus.release(claim)
    assert bus.find(0x1000) is None
    assert bus.claims() == []
    bus.claim(0x1000, length, Echo(2), "BAR, again")
    assert bus.read(0x1000, 4) == 2 << 32


ranges = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 600)), max_size=12)


@given(ranges, st.lists(st.integers(-1, 2700), max_size=40))
def test_every_address_finds_the_claim_that_covers_it(
    wanted: list[tuple[int, int]], asked: list[int]
) -> None:
    bus = Bus("memory")
    owner: dict[int, int] = {}
    for number, (base, length) in enumerate(wanted):
        covered = range(base, base + length)
        if any(address in owner for address in covered):
            with pytest.raises(ConfigError):
                bus.claim(base, length, Echo(number), str(number))
            continue
        bus.claim(base, length, Echo(number), str(number))
        owner.update(dict.fromkeys(covered, number))
    for address in asked:
        claim = bus.find(address)
        assert (claim.what if claim else None) == (str(owner[address]) if address in owner else None)
    assert [claim.base for claim in bus.claims()] == sorted(claim.base for claim in bus.claims())
