"""QMP as text: where one JSON message ends and the next begins, and what to say of a bad one.

Source: the QEMU Machine Protocol specification (interop/qmp-spec) and RFC 8259.  Messages may stand
one a line, several a line, or spread over many lines: a message ends with the bracket that closes its
first one.  The server's and the clients' side use the same code.

Recovery: a line break inside a string, which JSON does not allow, ends the message, and so does a byte
0xFF, which no text has; what was begun is refused and the next message starts afresh.  So a client that
lost its way can find it again without a new connection, as under QEMU.

Not done: single quotes and %-formats, which QEMU's own parser takes beyond JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from colo.errors import ControlError, FrameError

TEXT_MAX = 1 << 20
"""Bytes of one message: every command of ours fits some hundred."""
DEPTH_MAX = 64
"""Brackets in brackets; the deepest message of ours has 4, and a parser recurses for each."""
QUOTE_MAX = 200
"""Characters of somebody's text that are said back to them."""

_IN_STRING = re.compile(rb'["\n\xff]|\\[^\xff]', re.DOTALL)
"""An escape is one mark of two bytes; it hides everything but the byte that always begins anew."""
_OUTSIDE = re.compile(rb'["{}\[\]\n\xff]')
_BLANK = b" \t\r\n"
_KINDS = {"int": "integer", "str": "string", "bool": "boolean", "float": "number"}
"""QMP's word for msgspec's, where they differ."""

T = TypeVar("T")


class Framer:
    """Cuts a stream of bytes into the texts of messages; does not judge whether they are JSON."""

    def __init__(self, text_max: int = TEXT_MAX) -> None:
        self._text_max = text_max
        self._buffer = bytearray()
        self._begin()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that end in ``data``.  FrameError: too long or too deep, and no way to go on."""
        self._buffer += data
        while (end := self._end()) is not None:
            text = bytes(self._buffer[:end]).strip(_BLANK)
            del self._buffer[:end]
            self._begin()
            if len(text) > self._text_max:
                break
            if text:
                yield text
        else:
            if len(self._buffer) <= self._text_max:
                return
        raise FrameError(f"a QMP message of more than {self._text_max} bytes")

    def _begin(self) -> None:
        self._at = 0
        self._depth = 0
        self._quoted = False

    def _end(self) -> int | None:
        """Where the first message in the buffer ends, or None if that is still to come."""
        while True:
            found = (_IN_STRING if self._quoted else _OUTSIDE).search(self._buffer, self._at)
            if found is None:
                half = self._quoted and self._buffer.endswith(b"\\", self._at)  # the rest of it is to come
                self._at = len(self._buffer) - half
                return None
            self._at = found.end()
            mark = found.group()
            if mark == b"\xff" or (mark == b"\n" and (self._quoted or not self._depth)):
                return self._at
            if mark == b'"':
                self._quoted = not self._quoted
            elif mark in b"{[":
                if not self._depth and self._buffer[: found.start()].strip(_BLANK):
                    return found.start()  # something that is no message stands before this one
                self._depth += 1
                if self._depth > DEPTH_MAX:
                    raise FrameError(f"a QMP message of more than {DEPTH_MAX} brackets in brackets")
            elif mark in b"}]":
                self._depth -= 1
                if self._depth <= 0:
                    return self._at


def decode(text: bytes) -> dict[str, Any]:
    """A message, which is a JSON object.  ControlError if it is not."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ControlError(f"JSON parse error: {exc}") from exc
    if not isinstance(found, dict):
        raise ControlError("QMP input must be a JSON object")
    return found


def encode(message: object) -> bytes:
    """A message on a line of its own."""
    return msgspec.json.encode(message) + b"\n"


def convert(given: object, kind: type[T]) -> T:
    """Arguments as ``kind`` declares them.  ControlError, in QMP's words, if they are not that."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as exc:
        raise ControlError(parameter_error(str(exc))) from exc


def parameter_error(text: str) -> str:
    """What QMP says where msgspec says ``text``."""
    fault, _, where = text.partition(" - at `$")
    where = where.removesuffix("`").lstrip(".")
    if found := re.fullmatch("Object (missing required|contains unknown) field `(.*)`", fault, re.DOTALL):
        name = quote(f"{where}.{found[2]}".lstrip("."))
        return f"Parameter {name} is " + ("missing" if found[1].startswith("missing") else "unexpected")
    if found := re.fullmatch("Expected `([^`]+)`, got .*", fault, re.DOTALL):
        kinds = (_KINDS.get(kind, kind) for kind in found[1].split(" | "))
        return f"Invalid parameter type for {quote(where)}, expected: {' or '.join(kinds)}"
    if found := re.fullmatch("Expected `([^`]+)` (.*)", fault, re.DOTALL):
        return f"Parameter {quote(where)} expects: {_KINDS.get(found[1], found[1])} {found[2]}"
    if found := re.fullmatch("Invalid enum value (.*)", fault, re.DOTALL):
        return f"Parameter {quote(where)} does not accept value {quote(found[1].strip(chr(39)))}"
    return f"Parameter {quote(where)}: {fault}"


def quote(text: str) -> str:
    """Somebody's text in quotes, not longer than what one wants to read."""
    return f"'{text if len(text) <= QUOTE_MAX else text[:QUOTE_MAX] + '…'}'"
