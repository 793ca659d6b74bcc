"""State: canonical bytes, refusals that name the field, differences, layout digests."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import StateError
from vmm.state import (
    State,
    at_most,
    diff,
    field,
    i64,
    layout,
    layout_digest,
    length,
    pack,
    u8,
    u16,
    u64,
    unpack,
)


class Channel(State):
    mode: u8 = 3
    count: u16 = 0


def three() -> list[Channel]:
    return [Channel() for _ in range(3)]


class Chip(State):
    channels: Annotated[list[Channel], length(3)] = field(default_factory=three)
    queue: Annotated[bytes, at_most(4)] = b""
    cells: Annotated[bytearray, length(2)] = field(default_factory=lambda: bytearray(2))
    at_ns: u64 = 0
    offset_ns: i64 = 0
    on: bool = False


class Narrower(State):
    mode: u8 = 3
    count: u8 = 0


chips = st.builds(
    Chip,
    channels=st.lists(st.builds(Channel, st.integers(0, 255), st.integers(0, 65535)), min_size=3, max_size=3),
    queue=st.binary(max_size=4),
    cells=st.binary(min_size=2, max_size=2).map(bytearray),
    at_ns=st.integers(0, (1 << 64) - 1),
    offset_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    on=st.booleans(),
)


@given(chips)
def test_unpack_undoes_pack(chip: Chip) -> None:
    again = unpack(Chip, pack(chip))
    assert again == chip
    assert pack(again) == pack(chip)
    assert isinstance(again.cells, bytearray)
    assert list(diff(chip, again)) == []


@given(chips, chips)
def test_equal_states_have_equal_bytes_and_only_they(one: Chip, other: Chip) -> None:
    assert (one == other) == (pack(one) == pack(other)) == (list(diff(one, other)) == [])


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        chip = unpack(Chip, data)
    except StateError:
        return
    assert pack(chip) == data


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"queue": b"12345"}, "queue"),
        ({"cells": bytearray(3)}, "cells"),
        ({"channels": []}, "channels"),
        ({"at_ns": -1}, "at_ns"),
        ({"at_ns": 1 << 64}, "Chip"),
        ({"channels": [Channel(), Channel(mode=256), Channel()]}, "channels"),
    ],
)
def test_pack_refuses_what_does_not_fit_and_names_it(change: dict[str, object], named: str) -> None:
    chip = Chip()
    for name, value in change.items():
        setattr(chip, name, value)
    with pytest.raises(StateError, match=named):
        pack(chip)


def test_unpack_refuses_short_long_and_reencoded() -> None:
    good = pack(Chip())
    fields = msgspec.msgpack.decode(good)
    assert good[0] == 0x96, "a short array header; 0xdc is the long form of the same"
    for bad in (
        b"",
        good[:-1],
        good + b"\x00",
        msgspec.msgpack.encode(fields[:-1]),
        b"\xdc\x00\x06" + good[1:],
    ):
        with pytest.raises(StateError):
            unpack(Chip, bad)


def test_unpack_names_the_field() -> None:
    fields = msgspec.msgpack.decode(pack(Chip()))
    fields[3] = "noon"
    with pytest.raises(StateError, match=r"Chip: .*`at_ns"):
        unpack(Chip, msgspec.msgpack.encode(fields))


def test_state_has_no_stray_attributes() -> None:
    with pytest.raises(AttributeError):
        Chip().stray = 1  # type: ignore[attr-defined]


def test_defaults_are_not_shared() -> None:
    one, other = Chip(), Chip()
    one.channels[0].count = 5
    one.cells[0] = 1
    assert (other.channels[0].count, other.cells[0]) == (0, 0)


def test_diff_names_each_place() -> None:
    left = Chip(queue=b"ab")
    right = Chip(queue=b"abc", at_ns=16)
    right.channels[1].count = 255
    right.cells[1] = 7
    assert [str(one) for one in diff(left, right)] == [
        "channels[1].count: 0 != 0xff",
        "len(queue): 2 != 3",
        "cells[0x1:]: '00' != '07'",
        "at_ns: 0 != 0x10",
    ]


def test_layout_shows_names_types_and_limits() -> None:
    assert layout(Channel) == "{mode:int(ge=0,le=255) count:int(ge=0,le=65535)}"
    assert "queue:bytes(max=4)" in layout(Chip)
    assert "channels:list[{mode:" in layout(Chip)


def test_digest_tells_layouts_apart_and_ignores_order() -> None:
    digest = layout_digest({"a": Channel, "b": Chip})
    assert digest == layout_digest({"b": Chip, "a": Channel})
    assert (
        len({digest, layout_digest({"a": Narrower, "b": Chip}), layout_digest({"c": Channel, "b": Chip})})
        == 3
    )
