"""What the tests of campaigns run: the counter guest, and faults whose outcome is known beforehand.

The counter (guests/bare/counter.c) rewrites one word of each page of a MiB at 4 MiB every millisecond, and
prints a line a second.  It is linked at 1 MiB without paging, so a physical address is where its code is.
"""

from __future__ import annotations

from colo.campaign.scenario import Scenario
from colo.faults.model import AtTime, DataFault, Fault, Trial

TIMER_LOOP = 0x100251
"""``sti; hlt; cli``: where it waits for the next tick."""
WORD_SECOND = 0x100537
"""The text "second ", which begins a line."""
REWRITTEN, UNUSED = 0x40_0000, 0x40_0010
LINE_NS = 998_857_560
"""When the line of the first second is complete."""

COUNTER = Scenario(guest="counter", append="mib=1 ms=1", span_ns=1_005_000_000, limit_ns=20_000_000, marks=67)
"""A mark every 15 ms."""


def flip(at_ns: int, address: int, mask: int = 1, width: int = 4) -> DataFault:
    when = AtTime(ns=at_ns)
    return DataFault(when=when, address=address, space="physical", width=width, mask=mask)


def overwrite(at_ns: int, address: int, data: bytes) -> DataFault:
    """``data`` in place of what is there."""
    return DataFault(
        when=AtTime(ns=at_ns),
        address=address,
        space="physical",
        width=len(data),
        operation="overwrite",
        mask=(1 << 8 * len(data)) - 1,
        value=int.from_bytes(data, "little"),
    )


def alone(*faults: Fault) -> Trial:
    return Trial(seed=1, faults=faults)
