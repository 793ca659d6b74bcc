"""The internet checksum in all its forms against its definition."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from colo.compare.checksum import checksum, checksum_plain, ones_sum, pseudo_sum, updated, updated_long
from tests.compare import frames

data = st.binary(max_size=80) | st.integers(200, 3000).flatmap(lambda n: st.binary(min_size=n, max_size=n))


@given(data, st.integers(0, 0xFFFF))
@example(b"", 0)
@example(bytes(300), 0)
@example(b"\xff" * 301, 0)
@example(b"\xff" * 20, 0xFFFF)
def test_the_fast_checksum_is_the_plain_one(words: bytes, start: int) -> None:
    assert checksum(words, start) == checksum_plain(words, start)
    assert checksum(memoryview(words), start) == checksum_plain(words, start)


def test_the_example_of_rfc_1071() -> None:
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def test_the_example_of_rfc_1624() -> None:
    assert updated(0xDD2F, 0x5555, 0x3285) == 0x0000


@given(st.binary(min_size=8, max_size=400), st.data())
def test_a_checksum_brought_up_to_date_is_that_of_the_new_bytes(words: bytes, draw: st.DataObject) -> None:
    words = b"\x45" + words[1:]  # a header is never all zero
    at = 2 * draw.draw(st.integers(1, (len(words) - 4) // 2))
    new = draw.draw(st.binary(min_size=4, max_size=4))
    changed = words[:at] + new + words[at + 4 :]
    old_value, new_value = struct.unpack("!II", words[at : at + 4] + new)
    assert updated_long(checksum(words), old_value, new_value) == checksum(changed)


@given(st.binary(max_size=2000))
def test_a_partial_checksum_is_completed_by_summing_what_follows(payload: bytes) -> None:
    """As a card does: the field holds the sum of the pseudo header, and is summed with the rest."""
    whole = frames.tcp(1, payload, source=frames.GUEST6, destination=frames.CLIENT6)
    segment = whole[54:]
    pseudo = pseudo_sum(whole[22:38], whole[38:54], 6, len(segment))
    partial = segment[:16] + pseudo.to_bytes(2, "big") + segment[18:]
    assert checksum(partial) == int.from_bytes(segment[16:18], "big")
    assert checksum(segment, pseudo) == 0
