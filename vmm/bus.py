"""Address to device: one bus for ports, one for memory-mapped registers.

Claims are made once, by the board.  A claim without a device documents what is known and absent
("COM2, not fitted"); it reads as all ones like anything unclaimed but is not a surprise.  Accesses
that nobody claimed are counted in ``surprises``, never raised: they are the guest's business.

Lookup is a dictionary of addresses for small ranges (ports), one of pages for ranges of whole pages
(most of memory), and a binary search for what is left.
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
"""Ranges up to this many addresses are found by a dictionary of addresses."""
PAGE = 4096


class Bus:
    """A map from address ranges to devices."""

    __slots__ = ("_at", "_bases", "_claims", "_pages", "name", "surprises")

    def __init__(self, name: str) -> None:
        self.name = name
        self._claims: list[Claim] = []
        self._bases: list[int] = []
        self._at: dict[int, Claim] = {}
        self._pages: dict[int, Claim] = {}
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
        self._index(made, made)
        return made

    def release(self, claim: Claim) -> None:
        """Take a claim back (a PCI function whose BAR moves)."""
        at = self._claims.index(claim)
        del self._claims[at], self._bases[at]
        self._index(claim, None)

    def _index(self, claim: Claim, found: Claim | None) -> None:
        """Let the dictionaries find ``found`` where ``claim`` lies, or no longer anything."""
        if claim.length <= SMALL:
            index, keys = self._at, range(claim.base, claim.end)
        elif not (claim.base | claim.length) % PAGE:
            index, keys = self._pages, range(claim.base // PAGE, claim.end // PAGE)
        else:
            return
        for key in keys:
            if found is None:
                del index[key]
            else:
                index[key] = found

    def find(self, address: int) -> Claim | None:
        """The claim that covers ``address``, or None."""
        claim = self._at.get(address) or self._pages.get(address // PAGE)
        if claim is not None:
            return claim
        at = bisect_right(self._bases, address) - 1
        if at >= 0 and address < self._claims[at].end:
            return self._claims[at]
        return None

    def read(self, address: int, size: int) -> int:
        claim = self._at.get(address) or self._pages.get(address >> 12) or self.find(address)
        if claim is None:
            self._surprised(address)
            return all_ones(size)
        if claim.device is None:
            return all_ones(size)
        return claim.device.read(address - claim.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        claim = self._at.get(address) or self._pages.get(address >> 12) or self.find(address)
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
