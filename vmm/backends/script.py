r"""Console scripts: what a machine is expected to say, and what to type when it has said it.

A script is a text file.  Lines that are empty or start with ``#`` are skipped; every other line is::

    expect TEXT [within 5s]
    send TEXT

``expect`` waits until TEXT appears in the output that follows the text matched before; its limit is
*virtual* time from when it became the current line (ns, us, ms, s or min; 10 minutes when none is
given).  ``send`` types TEXT and a newline, at once, so it has no limit; ``\c`` at the end of TEXT
leaves the newline out.  Blanks around TEXT are not part of it.  TEXT may use the escapes of C:
``\n \r \t \a \b \f \v \e \0 \\ \" \xHH``, ``\x20`` for a blank at either end, and ``\[`` for a
bracket that begins no limit.

Matching is on bytes.  Escape sequences that a terminal would obey (ECMA-48, section 5: CSI, OSC and
the other control strings, two-character escapes) are taken out first, so colours and cursor
movement never split a word; they may fall across chunks.  A line of console output ends in
``\r\n``.

Nothing here looks at a clock or a file: the same output at the same virtual times always gives the
same input.  Not modelled: patterns, branches, variables; what needs them is a test in Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from vmm.clock import NEVER_NS
from vmm.errors import ScriptError

LIMIT_DEFAULT_NS = 600_000_000_000
"""Ten virtual minutes: no wait is without an end, and no boot takes as long."""
STEPS_MAX = 10_000
TEXT_MAX = 4096
"""Bytes of one TEXT, hence of output kept for matching."""
STRING_MAX = 4096
"""Bytes of a control string; a guest that never ends one would otherwise never be heard again."""
SEEN_MAX = 4096
"""Bytes of output kept to explain a failure."""
SEEN_LINES = 3

_UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}
_LIMIT = re.compile(r"(?:^|(?<=\s))\[within\s+(\d+(?:\.\d+)?)\s*(ns|us|ms|s|min)\]$")
_LOOKS_LIKE_LIMIT = re.compile(r"(?:^|\s)\[within\b[^\]]*\]?$")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.|$)")
_ESCAPES = {
    "n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v",
    "e": "\x1b", "0": "\0", "\\": "\\", '"': '"', "[": "[",
}  # fmt: skip

ESC, BEL = 0x1B, 0x07
CAN, SUB = 0x18, 0x1A


@dataclass(frozen=True)
class Step:
    """One line of a script: ``expect`` or ``send``."""

    line: int
    expects: bool
    data: bytes
    limit_ns: int = 0


@dataclass(frozen=True)
class Script:
    """The steps of a script; ``name`` is what messages call it, usually its file."""

    name: str
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str, name: str) -> Script:
        steps = []
        for number, raw in enumerate(text.split("\n"), start=1):
            line = raw.strip()
            if line and not line.startswith("#"):
                steps.append(_parse_line(line, number, f"{name}:{number}"))
        if len(steps) > STEPS_MAX:
            raise ScriptError(f"{name}: {len(steps)} steps: expected at most {STEPS_MAX}; split the script")
        return cls(name, tuple(steps))


def _parse_line(line: str, number: int, where: str) -> Step:
    word, *rest = line.split(None, 1)
    if word not in ("expect", "send"):
        raise ScriptError(
            f"{where}: {word!r} is no instruction: expected expect TEXT, send TEXT or # comment"
        )
    text, limit_ns = _split_limit(rest[0] if rest else "", where)
    if word == "send":
        if limit_ns is not None:
            raise ScriptError(
                f"{where}: send takes no time: a limit belongs to expect; put it there, or write \\[within"
            )
        newline = not re.search(r"(?<!\\)(?:\\\\)*\\c$", text)
        data = _unescape(text if newline else text[:-2], where) + (b"\n" if newline else b"")
        return _sized(Step(number, False, data), where)
    data = _unescape(text, where)
    if not data:
        raise ScriptError(f"{where}: expect without a text: expected the output to wait for")
    return _sized(Step(number, True, data, LIMIT_DEFAULT_NS if limit_ns is None else limit_ns), where)


def _split_limit(text: str, where: str) -> tuple[str, int | None]:
    found = _LIMIT.search(text)
    if found is None:
        if odd := _LOOKS_LIKE_LIMIT.search(text):
            raise ScriptError(
                f"{where}: {odd[0].strip()!r} is no limit: expected [within 5s] with one of"
                f" {', '.join(_UNITS_NS)}; for a text that looks like one, write \\[within"
            )
        return text, None
    limit_ns = int(Decimal(found[1]) * _UNITS_NS[found[2]])
    if not 0 < limit_ns < NEVER_NS:
        raise ScriptError(f"{where}: a limit of {found[1]}{found[2]}: expected 1ns to {NEVER_NS // 10**9}s")
    return text[: found.start()].rstrip(), limit_ns


def _unescape(text: str, where: str) -> bytes:
    out, at = b"", 0
    for found in _ESCAPE.finditer(text):
        out += text[at : found.start()].encode()
        code, at = found[1], found.end()
        if len(code) == 3:
            out += bytes.fromhex(code[1:])  # a byte, not a character: \xE2 stays one
        elif code in _ESCAPES:
            out += _ESCAPES[code].encode()
        else:
            raise ScriptError(
                f"{where}: unknown escape '\\{code}': expected one of C, such as \\n, \\t, \\x1B or \\\\; \\c"
                " may stand at the end of send alone"
            )
    return out + text[at:].encode()


def _sized(step: Step, where: str) -> Step:
    if len(step.data) > TEXT_MAX:
        raise ScriptError(f"{where}: a text of {len(step.data)} bytes: expected at most {TEXT_MAX}; split it")
    return step


class PlainText:
    """Takes the escape sequences out of a stream of bytes (ECMA-48, section 5)."""

    __slots__ = ("_inside", "_length")

    def __init__(self) -> None:
        self._inside = ""  # "" in text, else "esc", "csi" or "string"
        self._length = 0

    def feed(self, data: bytes) -> bytes:
        if not self._inside and ESC not in data:
            return data
        out, at = bytearray(), 0
        while at < len(data):
            if self._inside:
                if not self._consume(data[at]):
                    continue  # this byte is text after all
                at += 1
                continue
            start = data.find(ESC, at)
            if start < 0:
                start = len(data)
            else:
                self._enter("esc")
            out += data[at:start]
            at = start + 1
        return bytes(out)

    def _enter(self, inside: str) -> None:
        self._inside = inside
        self._length = 0

    def _consume(self, byte: int) -> bool:
        """Take one byte of a sequence; False when it is not part of it."""
        self._length += 1
        if byte == ESC:
            self._enter("esc")  # a new sequence, or with a backslash the end of a control string
        elif byte in (CAN, SUB) or self._length > STRING_MAX:
            self._enter("")  # cancelled, or not worth waiting for
        elif self._inside == "string":
            if byte == BEL:
                self._enter("")
        elif byte < 0x20:
            self._enter("")  # a terminal obeys control characters even here: line ends stay text
            return False
        elif self._inside == "csi":
            if byte >= 0x40:
                self._enter("")
        else:
            self._after_escape(byte)
        return True

    def _after_escape(self, byte: int) -> None:
        if byte == ord("["):
            self._enter("csi")
        elif byte in b"]PX^_":  # OSC, DCS, SOS, PM, APC
            self._enter("string")
        elif byte >= 0x30:
            self._enter("")  # a final byte; intermediate bytes 0x20 to 0x2F go on


class ScriptRunner:
    """A script in progress: told output and virtual time, says what to type and when to give up.

    The first line becomes current at ``start_ns``.  What is to be typed before anything is expected
    comes from the first ``feed``, which may be given no output.
    """

    __slots__ = ("_plain", "_seen", "_unmatched", "_waiting_since_ns", "at", "script")

    def __init__(self, script: Script, start_ns: int = 0) -> None:
        self.script = script
        self.at = 0  # index of the current step
        self._waiting_since_ns = start_ns
        self._plain = PlainText()
        self._unmatched = b""
        self._seen = b""

    @property
    def finished(self) -> bool:
        return self.at == len(self.script.steps)

    @property
    def next_deadline_ns(self) -> int:
        """When ``check`` will raise unless the current line is satisfied; NEVER_NS when finished."""
        step = self._current()
        if step is None or not step.expects:
            return NEVER_NS
        return self._waiting_since_ns + step.limit_ns

    @property
    def awaited(self) -> int:
        """The byte that would complete the current expectation; -1 when nothing is expected."""
        step = self._current()
        return step.data[-1] if step is not None and step.expects else -1

    def feed(self, output: bytes, now_ns: int) -> list[bytes]:
        """Take what the machine said at ``now_ns``; gives what to type, in order."""
        plain = self._plain.feed(output)
        self._seen = (self._seen + plain)[-SEEN_MAX:]
        rest = self._unmatched + plain
        typed: list[bytes] = []
        while (step := self._current()) is not None:
            if step.expects:
                found = rest.find(step.data)
                if found < 0:
                    # Nothing before the last len - 1 bytes can be part of a match to come.
                    rest = rest[max(0, len(rest) - len(step.data) + 1) :]
                    break
                rest = rest[found + len(step.data) :]
            else:
                typed.append(step.data)
            self.at += 1
            self._waiting_since_ns = now_ns
        self._unmatched = b"" if self.finished else rest
        return typed

    def check(self, now_ns: int) -> None:
        """Raise ScriptError when the current line's limit has passed."""
        step = self._current()
        if step is None or now_ns < self.next_deadline_ns:
            return
        seen = "\n".join(f"    {line}" for line in self.last_lines()) or "    (nothing)"
        raise ScriptError(
            f"{self.script.name}:{step.line}: expected {_shown(step.data)} within"
            f" {_seconds(step.limit_ns)} of virtual time, from {_seconds(self._waiting_since_ns)} on;"
            f" the last lines seen:\n{seen}"
        )

    def last_lines(self) -> list[str]:
        """The last lines of output that are not blank, as far as they are printable."""
        lines = self._seen.decode("utf-8", "replace").splitlines()
        shown = ["".join(char if char.isprintable() else "." for char in line.strip()) for line in lines]
        return [line for line in shown if line][-SEEN_LINES:]

    def _current(self) -> Step | None:
        return None if self.finished else self.script.steps[self.at]


def _shown(data: bytes) -> str:
    return ascii(data)[1:]


def _seconds(duration_ns: int) -> str:
    return f"{Decimal(duration_ns) / 10**9:f} s"
