"""Where two machines differ: which device field, which page of RAM, which sixteen bytes.

Both sides are plain data, component states by name and RAM arrays, taken from two machines, two
snapshots, or a machine and a snapshot.  CPU registers are one more component.  This is what a
replay that departed, or a secondary that diverged, is explained with; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from vmm.ram import HIGH_BASE, LOW_MAX, MIB, PAGE_SIZE
from vmm.state import Difference as FieldDifference
from vmm.state import State, diff

PAGES_SHOWN_MAX = 16
FIELDS_SHOWN_MAX = 64
"""Of one component: a queue that slipped by one differs everywhere, and once is enough."""
ROW = 16
TEXT_MAX = 80

Bytes = npt.NDArray[np.uint8]


class Side(NamedTuple):
    """All that the guest of one machine could notice."""

    states: Mapping[str, State]
    ram: Bytes


class Difference(msgspec.Struct, frozen=True):
    """One place where two machines differ, or ``more``: how many places were not shown."""

    kind: Literal["component", "field", "ram", "more"]
    where: str
    left: str
    right: str

    def __str__(self) -> str:
        if self.kind == "more":
            return f"{self.where}: {self.left}"
        return f"{self.where}: {self.left} != {self.right}"


def differences(
    a: Side, b: Side, pages_max: int = PAGES_SHOWN_MAX, fields_max: int = FIELDS_SHOWN_MAX
) -> Iterator[Difference]:
    """Every difference, devices first; long runs are cut short by one ``more`` that counts the rest."""
    for name in [*a.states, *(name for name in b.states if name not in a.states)]:
        yield from _component(name, a.states.get(name), b.states.get(name), fields_max)
    yield from _ram(a.ram, b.ram, pages_max)


def report(found: Iterable[Difference]) -> str:
    """For people: one line each, or that there is nothing to tell."""
    return "\n".join(str(difference) for difference in found) or "no difference"


def jsonable(found: Iterable[Difference]) -> list[dict[str, Any]]:
    """For programs: a list of objects with ``kind``, ``where``, ``left`` and ``right``."""
    return [msgspec.structs.asdict(difference) for difference in found]


def _component(name: str, left: State | None, right: State | None, limit: int) -> Iterator[Difference]:
    if left is None or right is None or type(left) is not type(right):
        yield Difference("component", name, _kind(left), _kind(right))
        return
    count = 0
    for found in diff(left, right, name):
        count += 1
        if count <= limit:
            yield _field(found)
    if count > limit:
        yield Difference("more", name, f"... and {count - limit} more fields", "")


def _kind(state: State | None) -> str:
    return "absent" if state is None else type(state).__qualname__


def _field(found: FieldDifference) -> Difference:
    return Difference("field", found.path, _shown(found.left), _shown(found.right))


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value) if value > 9 else str(value)
    text = str(value)
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 3] + "..."


def _ram(left: Bytes, right: Bytes, limit: int) -> Iterator[Difference]:
    if left.size != right.size:
        yield Difference("ram", "ram", f"{left.size} bytes", f"{right.size} bytes")
        return
    count = 0
    for page in _pages_that_differ(left, right):
        count += 1
        if count <= limit:
            yield _page(left, right, page)
    if count > limit:
        yield Difference("more", "ram", f"... and {count - limit} more pages", "")


def _pages_that_differ(left: Bytes, right: Bytes) -> Iterator[int]:
    """Page numbers; a MiB at a time, so that nothing of RAM's size is allocated."""
    for start in range(0, left.size, MIB):
        one, other = left[start : start + MIB], right[start : start + MIB]
        if not np.array_equal(one, other):
            rows = (one != other).reshape(-1, PAGE_SIZE).any(axis=1)
            yield from (start // PAGE_SIZE + np.flatnonzero(rows)).tolist()


def _page(left: Bytes, right: Bytes, page: int) -> Difference:
    """The first row of sixteen bytes that differs, and how many bytes of the page do."""
    start = page * PAGE_SIZE
    unequal = np.flatnonzero(left[start : start + PAGE_SIZE] != right[start : start + PAGE_SIZE])
    row = start + int(unequal[0]) // ROW * ROW
    where = f"ram[{address_of(row):#x}] ({len(unequal)} bytes of page {address_of(start):#x})"
    return Difference("ram", where, _hex(left[row : row + ROW]), _hex(right[row : row + ROW]))


def address_of(offset: int) -> int:
    """What the guest calls this offset in RAM."""
    return offset if offset < LOW_MAX else offset - LOW_MAX + HIGH_BASE


def _hex(row: Bytes) -> str:
    return row.tobytes().hex(" ")
