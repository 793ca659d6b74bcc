"""What is known of the run without faults: what a wildcard in a plan stands for.

A campaign makes one golden run and fills this in; it is kept beside the results, because trial *n* of a
plan is a function of the plan and of these facts alone.  A part that is empty was not looked at: a wildcard
that needs it is refused, by name, rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from colo.faults.model import REGISTERS

SINGLE_REGISTERS = tuple(name for name in REGISTERS if name[0] == "r")
"""What ``register = "*"`` means unless the golden run says otherwise: general registers, rip and rflags."""

Span = tuple[int, int]
"""First and one past the last."""


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """One machine in the golden run, from the start state on."""

    instructions: int = 0
    """Executed."""
    registers: tuple[str, ...] = SINGLE_REGISTERS
    virtual: tuple[Span, ...] = ()
    """Virtual addresses of pages that were touched, in order and apart."""
    physical: tuple[Span, ...] = ()
    """Physical ones."""
    executed: tuple[tuple[int, int], ...] = ()
    """Virtual addresses of instructions and how often each was executed, by address; a sample will do."""
    lines: tuple[int, ...] = ()
    """Interrupt lines that were raised."""
    vectors: tuple[int, ...] = ()
    """Interrupt vectors that were delivered."""


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """The golden run.  Names are those of targets; the only machine of a campaign is ``""``."""

    end_ns: int
    """Virtual time that it took from the start state."""
    guests: dict[str, Guest] = {}
    links: tuple[str, ...] = ()
    disks: dict[str, int] = {}
    """Sectors, by name."""
    arbiters: tuple[str, ...] = ()
    steps: dict[str, dict[str, int]] = {}
    """By node, how often each protocol step was done."""


def spans(pages: Iterable[int], page_size: int = 4096) -> tuple[Span, ...]:
    """Ranges of addresses, from numbers of pages."""
    found: list[Span] = []
    for page in sorted(set(pages)):
        first = page * page_size
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], first + page_size)
        else:
            found.append((first, first + page_size))
    return tuple(found)
