"""Address to device: one bus for ports, one for memory-mapped registers.

Claims are made once, by the board.  A claim without a device documents what is known and absent
("COM2, not fitted"); it reads as all ones like anything unclaimed but is not a surprise.  Accesses
that nobody claimed are counted in ``surprises``, never raised: they are the guest's business.

Lookup is a dictionary for small ranges (ports) and a binary search for large ones (memory).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

from vmm.device import IoDevice, all_ones
from vmm.errors import ConfigError

SURPRISES_MAX = 1024
"""Distinct unclaimed addresses that are remembered: a scanning guest must not fill our memory."""


@dataclass(frozen=True)
class Claim:
    """``length`` addresses from ``base``, answered by ``device`` (None: known and absent)."""

    base: int
    length: int
    device: IoDevice | None
    what: str

    @property
    def end(self) -> int:
        return self.base + self.length


SMALL = 256
"""Ranges up to this many addresses are found by dictionary."""


class Bus:
    """A map from address ranges to devices."""

    __slots__ = ("_at", "_bases", "_claims", "name", "surprises")

    def __init__(self, name: str) -> None:
        self.name = name
        self._claims: list[Claim] = []
        self._bases: list[int] = []
        self._at: dict[int, Claim] = {}
        self.surprises: Counter[int] = Counter()

    def claim(self, base: int, length: int, device: IoDevice | None, what: str) -> Claim:
        """Give ``[base, base + length)`` to ``device``; an overlap raises ConfigError."""
        made = Claim(base, length, device, what)
        for other in self._claims:
            if made.base < other.end and other.base < made.end:
                raise ConfigError(
                    f"{self.name}: {what} at {base:#x}+{length:#x} overlaps {other.what}"
                    f" at {other.base:#x}+{other.length:#x}"
                )
        at = bisect_right(self._bases, base)
        self._bases.insert(at, base)
        self._claims.insert(at, made)
        if length <= SMALL:
            self._at.update(dict.fromkeys(range(base, base + length), made))
        return made

    def release(self, claim: Claim) -> None:
        """Take a claim back (a PCI function whose BAR moves)."""
        at = self._claims.index(claim)
        del self._claims[at], self._bases[at]
        if claim.length <= SMALL:
            for address in range(claim.base, claim.end):
                del self._at[address]

    def find(self, address: int) -> Claim | None:
        """The claim that covers ``address``, or None."""
        claim = self._at.get(address)
        if claim is not None:
            return claim
        at = bisect_right(self._bases, address) - 1
        if at >= 0 and address < self._claims[at].end:
            return self._claims[at]
        return None

    def read(self, address: int, size: int) -> int:
        claim = self._at.get(address) or self.find(address)
        if claim is None:
            self._surprised(address)
            return all_ones(size)
        if claim.device is None:
            return all_ones(size)
        return claim.device.read(address - claim.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        claim = self._at.get(address) or self.find(address)
        if claim is None:
            self._surprised(address)
        elif claim.device is not None:
            claim.device.write(address - claim.base, size, value)

    def claims(self) -> list[Claim]:
        """The map, by address."""
        return list(self._claims)

    def _surprised(self, address: int) -> None:
        if address in self.surprises or len(self.surprises) < SURPRISES_MAX:
            self.surprises[address] += 1
