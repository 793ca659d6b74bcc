"""A plan file as plain data, with the line of every key: TOML, or YAML where PyYAML is installed.

A file is read by people and by programs, so what it may cost is bounded before it is parsed: its size, the
length of a line (TOML keys are on one line, and parsers are quadratic in their parts) and how deep it nests.
YAML is the part of it that says what TOML can say: no anchors, aliases, tags or merge keys, which make small
files large, and no keys but strings.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from colo.faults import yaml_lines
from colo.faults.errors import FaultError, Path, PlanError, nearest, shown
from colo.faults.toml_lines import TooDeep, locate, too_deep

FILE_BYTES_MAX = 1 << 18
LINE_MAX = 4096
YAML_NAMES = (".yaml", ".yml")


@dataclass(frozen=True)
class Document:
    """Plain data, and where each part of it stands.  ``name`` is the file's, as errors say it."""

    name: str
    data: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """``plan.toml:12``: the line of the nearest thing around that has one."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.name}:{line}"
        return self.name

    def error(self, path: Path, found: str, expected: str, advice: str = "") -> PlanError:
        return PlanError(self.place(path), path, found, expected, advice)

    def at(self, error: FaultError, path: Path) -> PlanError:
        """An error about a part of this document, told where the part is."""
        whole = (*path, *error.path)
        return PlanError(self.place(whole), whole, error.found, error.expected, error.advice)

    def unknown(self, path: Path, known: Iterable[str]) -> PlanError:
        """The last step of ``path`` is a key that nobody knows."""
        names = list(known)
        expected = ("one of " if len(names) > 1 else "") + ", ".join(names)
        return self.error(path, "an unknown key", expected, nearest(path[-1], names))


def read(file: FilePath) -> Document:
    """The plan file; raises :class:`PlanError` for what cannot be read."""
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise PlanError(str(file), (), error.strerror or "an error", "a file that can be read") from None
    if len(data) > FILE_BYTES_MAX:
        advice = "ranges, lists and wildcards say much in little"
        raise PlanError(str(file), (), "more", f"at most {FILE_BYTES_MAX} bytes", advice)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PlanError(f"{file}:{line}", (), "bytes that are no UTF-8", "text in UTF-8") from None
    return parse(text, str(file))


def parse(text: str, name: str = "plan.toml") -> Document:
    """A plan's text; ``name`` says its language and stands in errors."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LINE_MAX:
            expected = f"lines of at most {LINE_MAX} characters"
            raise PlanError(f"{name}:{number}", (), f"{len(line)} characters", expected, "break the line")
    if name.endswith(YAML_NAMES):
        return Document(name, *yaml_lines.load(text, name))
    return _toml(text, name)


def _toml(text: str, name: str) -> Document:
    try:
        data = tomllib.loads(text)
        return Document(name, data, locate(text))
    except tomllib.TOMLDecodeError as error:
        message, line = _toml_message(str(error))
        place = f"{name}:{line or len(text.splitlines())}"
        raise PlanError(
            place, (), f"no TOML ({message})", "a TOML document", "toml.io has the rules"
        ) from None
    except TooDeep as error:
        too_deep(f"{name}:{error.line}")
    except RecursionError:
        too_deep(name)


def _toml_message(message: str) -> tuple[str, int | None]:
    """tomllib says "... (at line 3, column 5)" or "... (at end of document)"."""
    text, _, tail = message.rpartition(" (at ")
    number = tail.removeprefix("line ").partition(",")[0]
    return (text or message), int(number) if number.isdigit() else None


def require_table(document: Document, path: Path, found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise document.error(path, shown(found), "a table")
    return found
