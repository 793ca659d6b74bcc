"""What has been seen: combinations of a protocol state, a message and a fault, and a table of the others.

A combination is that the protocol was in *state*, the next word was *message*, and *fault* was in effect.
Line coverage says little about a protocol, whose code is short and whose interleavings are many; what counts
is which situations were reached, and with which fault.  A row is a pair of state and message that was reached
at all, with or without a fault; so an empty cell is something that could have been tried and was not.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from colo.faults.bases import Bits, Effect
from colo.faults.errors import FaultError
from colo.faults.model import Fault

COMBINATIONS_MAX = 1_000_000
NO_FAULT = ""
"""In place of a fault when none is in effect: the golden run is made of these."""


class Combination(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One situation."""

    state: str
    message: str
    fault: str = NO_FAULT
    """As :func:`label` names it."""


def label(fault: Fault) -> str:
    """What a fault is called in a table: ``link:drop``, ``register:toggle``, ``clock-jump``."""
    kind = str(fault.__struct_config__.tag)
    if isinstance(fault, Effect):
        return f"{kind}:{fault.effect}"
    return f"{kind}:{fault.operation}" if isinstance(fault, Bits) else kind


class Coverage:
    """How often each combination was seen.  The order in which they are added does not matter."""

    def __init__(self, faults: Iterable[str] = ()) -> None:
        """``faults``: labels that are tried; any others that turn up are added."""
        self._faults = set(faults) - {NO_FAULT}
        self._seen: Counter[Combination] = Counter()

    def add(self, combinations: Iterable[Combination]) -> int:
        """What one trial went through; how many of these had not been seen."""
        before = len(self._seen)
        for each in combinations:
            if len(self._seen) >= COMBINATIONS_MAX and each not in self._seen:
                advice = "states and messages are names of the protocol, not values"
                raise FaultError((), "more combinations", f"at most {COMBINATIONS_MAX}", advice)
            self._seen[each] += 1
            if each.fault != NO_FAULT:
                self._faults.add(each.fault)
        return len(self._seen) - before

    def merge(self, other: Coverage) -> None:
        """What another process has seen."""
        self._seen.update(other._seen)
        self._faults |= other._faults

    def count(self, combination: Combination) -> int:
        return self._seen[combination]

    @property
    def faults(self) -> list[str]:
        return sorted(self._faults)

    @property
    def situations(self) -> list[tuple[str, str]]:
        """Pairs of state and message that were reached."""
        return sorted({(each.state, each.message) for each in self._seen})

    def unseen(self) -> Iterator[Combination]:
        """Faults that were not in effect where one could have been."""
        for state, message in self.situations:
            for fault in self.faults:
                if not self._seen[each := Combination(state, message, fault)]:
                    yield each

    def share(self) -> float:
        """Of the combinations that there could be, those that were seen."""
        possible = len(self.situations) * len(self._faults)
        return 1 - sum(1 for _ in self.unseen()) / possible if possible else 1.0

    def table(self) -> str:
        """A row for each situation, a column for each fault: how often, or a dot."""
        rows = [["state", "message", "none", *self.faults]]
        for state, message in self.situations:
            counts = [self._seen[Combination(state, message, fault)] for fault in (NO_FAULT, *self.faults)]
            rows.append([state, message, *(str(count or ".") for count in counts)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "".join(
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            + "\n"
            for row in rows
        )

    def chart(self) -> str:
        """The same for many faults: a letter for each, and a digit for how often; * is more than nine."""
        faults = (NO_FAULT, *self.faults)
        letters = (string.ascii_letters * (len(faults) // len(string.ascii_letters) + 1))[: len(faults)]
        names = [f"{letter}  {fault or 'none'}\n" for letter, fault in zip(letters, faults, strict=True)]
        width = max((len(state) for state, _ in self.situations), default=0)
        rows = [f"{'':{width}}  {letters}  message\n"]
        for state, message in self.situations:
            counts = [self._seen[Combination(state, message, fault)] for fault in faults]
            cells = "".join("." if not count else str(count) if count < 10 else "*" for count in counts)
            rows.append(f"{state:{width}}  {cells}  {message}\n")
        return "".join([*names, "\n", *rows])

    def __len__(self) -> int:
        """How many combinations were seen."""
        return len(self._seen)

    def pack(self) -> bytes:
        """For a file or another process, always in the same order."""
        counts = sorted(self._seen.items())
        return msgspec.json.encode({"faults": self.faults, "seen": counts})

    @classmethod
    def unpack(cls, data: bytes) -> Coverage:
        """What :meth:`pack` made."""
        try:
            packed = msgspec.json.decode(data, type=_Packed)
        except msgspec.DecodeError as error:
            raise FaultError((), f"no coverage ({error})", "what Coverage.pack makes") from None
        found = cls(packed.faults)
        found._seen.update(dict(packed.seen))
        return found


class _Packed(msgspec.Struct, forbid_unknown_fields=True):
    faults: list[str]
    seen: list[tuple[Combination, int]]
