"""Where a message ends, and what is said of one that is none."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from colo.errors import ControlError, FrameError
from colo.qmp.schema import CapabilityStatus, Parameters, SetCapabilities
from colo.qmp.text import DEPTH_MAX, QUOTE_MAX, Framer, convert, decode, encode, parameter_error

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), values, max_size=4)


def fed(data: bytes, cuts: list[int] | None = None, framer: Framer | None = None) -> list[bytes]:
    framer = framer or Framer()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    return [text for a, b in pairwise(edges) for text in framer.feed(data[a:b])]


@given(
    st.lists(st.tuples(objects, st.sampled_from([None, 2]), st.sampled_from(["", "\n", "\r\n", " \t"]))),
    st.lists(st.integers(0, 1 << 16)),
    st.booleans(),
)
def test_messages_are_found_however_they_are_spaced_and_cut(
    said: list[tuple[dict[str, Any], int | None, str]], cuts: list[int], ascii_only: bool
) -> None:
    text = "".join(json.dumps(o, indent=indent, ensure_ascii=ascii_only) + end for o, indent, end in said)
    found = fed(text.encode("utf-8", "surrogatepass"), cuts)
    assert [json.loads(message) for message in found] == [o for o, _, _ in said]


@given(objects)
def test_an_encoded_message_is_one_line_and_decodes_to_itself(message: dict[str, Any]) -> None:
    assert encode(message).count(b"\n") == 1
    assert [decode(text) for text in fed(encode(message))] == [message]


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)))
def test_bytes_of_any_kind_give_the_same_texts_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert fed(data, cuts) == fed(data)


@example(b'"\\', {})
@given(st.binary(max_size=60), objects)
def test_after_a_byte_ff_the_next_message_is_found(noise: bytes, message: dict[str, Any]) -> None:
    framer = Framer()
    fed(noise + b"\xff", framer=framer)
    assert [decode(text) for text in fed(encode(message), framer=framer)] == [message]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'{"a": "}"}{"b": "\\"{"}', [b'{"a": "}"}', b'{"b": "\\"{"}']),
        (b"hello\n{}", [b"hello", b"{}"]),
        (b"hello {}", [b"hello", b"{}"]),
        (b"\n\n \r\n", []),
        (b"}{}", [b"}", b"{}"]),
        (b"3\n", [b"3"]),
        (b"3", []),
        (b'"{"\n{}', [b'"{"', b"{}"]),
        (b'{"execute": "sto\n{}', [b'{"execute": "sto', b"{}"]),
        (b'{"a": \xff{}', [b'{"a": \xff', b"{}"]),
        (b"[1, {}]\n", [b"[1, {}]"]),
    ],
)
def test_texts(data: bytes, texts: list[bytes]) -> None:
    assert fed(data) == texts


def test_a_message_that_is_too_long_is_refused_whether_or_not_it_ends() -> None:
    framer = Framer(100)
    assert len(fed(b'{"a": "%s"}' % (b"x" * 91), framer=framer)) == 1
    with pytest.raises(FrameError, match="100 bytes"):
        fed(b'{"a": "%s"}' % (b"x" * 92), framer=Framer(100))
    with pytest.raises(FrameError, match="100 bytes"):
        fed(b'{"a": "%s' % (b"x" * 95), framer=Framer(100))


def test_brackets_are_nested_so_far_and_no_further() -> None:
    assert len(fed(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)) == 1
    with pytest.raises(FrameError, match="brackets"):
        fed(b"[" * (DEPTH_MAX + 1))


@pytest.mark.parametrize(
    "text", [b"{", b'{"a": NaN}', b'{"a": "\xff"}', b'"\\ud800"', b"\xef\xbb\xbf{}", b"\x00"]
)
def test_what_is_no_json_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(ControlError, match="JSON parse error"):
        decode(text)


@pytest.mark.parametrize("text", [b"3", b"[]", b"null", b'"quit"'])
def test_a_message_is_an_object(text: bytes) -> None:
    with pytest.raises(ControlError, match="must be a JSON object"):
        decode(text)


class Asked(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    uri: str
    x_delay: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    share: float = 0.5
    maybe: int | None = None
    many: list[CapabilityStatus] = []


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({}, "Parameter 'uri' is missing"),
        ({"uri": "x", "x_delay": 1}, "Parameter 'x_delay' is unexpected"),
        ({"uri": 3}, "Invalid parameter type for 'uri', expected: string"),
        ({"uri": None}, "Invalid parameter type for 'uri', expected: string"),
        ({"uri": "x", "x-delay": "1"}, "Invalid parameter type for 'x-delay', expected: integer"),
        ({"uri": "x", "x-delay": True}, "Invalid parameter type for 'x-delay', expected: integer"),
        ({"uri": "x", "x-delay": 1.5}, "Invalid parameter type for 'x-delay', expected: integer"),
        ({"uri": "x", "x-delay": -1}, "Parameter 'x-delay' expects: integer >= 0"),
        ({"uri": "x", "x-delay": 101}, "Parameter 'x-delay' expects: integer <= 100"),
        ({"uri": "x", "share": "all"}, "Invalid parameter type for 'share', expected: number"),
        ({"uri": "x", "maybe": "no"}, "Invalid parameter type for 'maybe', expected: integer or null"),
        ({"uri": "x", "many": {}}, "Invalid parameter type for 'many', expected: array"),
        ({"uri": "x", "many": [3]}, "Invalid parameter type for 'many[0]', expected: object"),
        ({"uri": "x", "many": [{"state": True}]}, "Parameter 'many[0].capability' is missing"),
        (
            {"uri": "x", "many": [{"capability": "x-colo", "state": 1}]},
            "Invalid parameter type for 'many[0].state', expected: boolean",
        ),
        (
            {"uri": "x", "many": [{"capability": "x-rdma", "state": True}]},
            "Parameter 'many[0].capability' does not accept value 'x-rdma'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named_as_qemu_names_them(given_: dict[str, Any], text: str) -> None:
    with pytest.raises(ControlError) as caught:
        convert(given_, Asked)
    assert (str(caught.value), caught.value.kind) == (text, "GenericError")


def test_a_long_name_is_not_said_back_in_full() -> None:
    with pytest.raises(ControlError) as caught:
        convert({"uri": "x", "y" * 10_000: 1}, Asked)
    assert len(str(caught.value)) < QUOTE_MAX + 50


@given(objects)
def test_arguments_are_converted_or_refused(given_: dict[str, Any]) -> None:
    for kind in (Asked, Parameters, SetCapabilities):
        with pytest.raises(ControlError):
            convert({**given_, "none of ours": 1}, kind)


@given(st.text())
def test_whatever_the_library_says_there_is_something_to_say(text: str) -> None:
    assert parameter_error(text).strip()
