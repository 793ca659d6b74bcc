"""A scenario: one guest, what is said to it and when, and what of its answers counts.

Everything that a trial does besides its faults is here, as plain values, so that two hosts that have the
same scenario and the same build make the same golden run.  Times are virtual nanoseconds from the start
state: the guest's booted snapshot (:mod:`colo.pair.warm`).

Inputs come at fixed times, whatever the guest does meanwhile.  A client that waits for answers is a part of
a world (:mod:`colo.sim`), not of a scenario.
"""

from __future__ import annotations

from typing import Any

import msgspec

from colo.errors import ColoError
from vmm.clock import NEVER_NS

INPUTS_MAX = 100_000
MARKS_MAX = 4096
SPAN_MAX_NS = 3_600_000_000_000
"""An hour of the guest's time: a campaign repeats it thousands of times."""

CRASH_TEXTS = ("Kernel panic - not syncing",)
DETECTED_TEXTS = (
    # the kernel's own checks (lib/bug.c, arch/x86/mm/fault.c, arch/x86/kernel/traps.c, kernel/watchdog.c)
    *("BUG: ", "Oops: ", "kernel BUG at", "general protection fault", "invalid opcode:", "WARNING: CPU:"),
    *("watchdog: ", "rcu_sched self-detected stall", "Bad page state", "list_add corruption", "segfault at"),
    # the shell's word for a program that ended by a signal (strsignal(3)), and C's assert(3)
    *("Segmentation fault", "Illegal instruction", "Bus error", "Aborted", "Assertion `"),
    *("REDIS BUG REPORT START", "GUEST-FAILED"),
)


class Input(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes that enter the machine at a time: typed text, or a frame for a card."""

    at_ns: int
    port: str = "com1"
    data: bytes


class Scenario(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happens in every run of a campaign, faults aside."""

    guest: str
    ram_mib: int | None = None
    append: str | None = None
    inputs: tuple[Input, ...] = ()
    span_ns: int
    """How long the golden run is observed."""
    limit_ns: int
    """How much longer a trial may take until it hangs."""
    marks: int = 32
    """How often, evenly spread over the span, the golden run's state is hashed."""
    observe: tuple[str, ...] = ("com1",)
    """The ports whose output is compared."""
    ignore: tuple[str, ...] = ()
    """Regular expressions of output that may differ, such as a line with a date in it."""
    detected: tuple[str, ...] = DETECTED_TEXTS
    """Console texts by which the guest or its service says that something is wrong."""
    crash: tuple[str, ...] = CRASH_TEXTS
    """Console texts by which the guest says that it ends."""

    def check(self) -> None:
        """ColoError for what cannot be run."""
        _within("span_ns", self.span_ns, 1, SPAN_MAX_NS)
        _within("limit_ns", self.limit_ns, 0, SPAN_MAX_NS)
        _within("marks", self.marks, 1, MARKS_MAX)
        _within("number of inputs", len(self.inputs), 0, INPUTS_MAX)
        times = [each.at_ns for each in self.inputs]
        if times != sorted(times):
            raise ColoError("scenario: inputs are not in the order of their times; sort them")
        for each in self.inputs:
            _within(f"time of an input for {each.port}", each.at_ns, 0, self.span_ns - 1)

    @property
    def last_ns(self) -> int:
        """The end of all patience."""
        return self.span_ns + self.limit_ns

    @property
    def interval_ns(self) -> int:
        """From one mark to the next."""
        return max(1, self.span_ns // self.marks)

    def mark_times(self) -> list[int]:
        """When the golden run is hashed: after each interval, the end of the span included."""
        return [*range(self.interval_ns, self.span_ns, self.interval_ns), self.span_ns]


def _within(what: str, found: Any, low: int, high: int) -> None:
    assert high < NEVER_NS
    if not low <= found <= high:
        raise ColoError(f"scenario: {what}: {found}: expected {low} to {high}")
