"""On which line of a TOML file each key and list entry is, so that an error can point to it.

``tomllib`` gives no positions, and style-preserving libraries give none for values either.  This reads text
that ``tomllib`` has accepted, so it only has to tell where things begin and end, not whether they are right:
the grammar is TOML 1.0's, its *Keys*, *Table*, *Array of Tables*, *Array* and *Inline Table*.

Not modelled: values.  A number or a date is what stands before the next comma, bracket, comment or line end.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NoReturn

from colo.faults.errors import Path, PlanError

NEST_MAX = 32
"""Of lists and tables in each other: a plan needs four."""

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"(?!")|""(?!"))?'
    r"|'''(?:[^']|'(?!''))*'''(?:'(?!')|''(?!'))?"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


class TooDeep(Exception):
    """Lists and tables in each other beyond :data:`NEST_MAX`; ``line`` is where."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def too_deep(place: str) -> NoReturn:
    expected = f"at most {NEST_MAX}"
    raise PlanError(place, (), "too many lists and tables in each other", expected) from None


def locate(text: str) -> dict[Path, int]:
    """The line, from 1, of every key, table and list entry of a valid TOML document."""
    text = text.replace("\r\n", "\n")
    scan = _Scan(text, [index for index, char in enumerate(text) if char == "\n"])
    scan.document()
    return scan.lines


@dataclass
class _Scan:
    text: str
    ends: list[int]
    at: int = 0
    lines: dict[Path, int] = field(default_factory=dict)
    entries: dict[Path, int] = field(default_factory=dict)
    """How many tables each array of tables has so far."""

    def document(self) -> None:
        table: Path = ()
        self.skip(_SPACE)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table, 0)
            self.skip(_SPACE)

    def header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``."""
        line = self.line()
        double = self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        parts = self.key()
        self.at += 2 if double else 1
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            self.lines.setdefault(path, line)
            if path in self.entries:
                path = (*path, self.entries[path] - 1)
        path = (*path, parts[-1])
        self.lines.setdefault(path, line)
        if double:
            number = self.entries.get(path, 0)
            self.entries[path] = number + 1
            path = (*path, number)
            self.lines[path] = line
        return path

    def pair(self, table: Path, depth: int) -> None:
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self.skip(_BLANK)
        self.value(path, depth)

    def key(self) -> list[str]:
        """A dotted key; ends behind the blanks that follow it."""
        parts = []
        while True:
            self.skip(_BLANK)
            bare = _BARE.match(self.text, self.at)
            parts.append(bare.group() if bare else self.quoted())
            if bare:
                self.at = bare.end()
            self.skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def quoted(self) -> str:
        start = self.at
        self.skip(_STRING)
        return str(tomllib.loads(f"key = {self.text[start : self.at]}")["key"])

    def value(self, path: Path, depth: int) -> None:
        if depth > NEST_MAX:
            raise TooDeep(self.line())
        match self.text[self.at]:
            case "[":
                self.array(path, depth + 1)
            case "{":
                self.table(path, depth + 1)
            case '"' | "'":
                self.skip(_STRING)
            case _:
                self.skip(_SCALAR)

    def array(self, path: Path, depth: int) -> None:
        number = 0
        self.at += 1
        self.skip(_SPACE)
        while self.text[self.at] != "]":
            self.lines[(*path, number)] = self.line()
            self.value((*path, number), depth)
            number += 1
            self.next_entry()
        self.at += 1

    def table(self, path: Path, depth: int) -> None:
        self.at += 1
        self.skip(_SPACE)
        while self.text[self.at] != "}":
            self.pair(path, depth)
            self.next_entry()
        self.at += 1

    def next_entry(self) -> None:
        self.skip(_SPACE)
        if self.text[self.at] == ",":
            self.at += 1
            self.skip(_SPACE)

    def skip(self, what: re.Pattern[str]) -> None:
        found = what.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def line(self) -> int:
        return bisect_right(self.ends, self.at - 1) + 1 if self.at else 1
