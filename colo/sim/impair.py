"""What is wrong with a link or a wire, while it is: the link faults of :mod:`colo.faults.model`, applied.

An :class:`Impairments` belongs to one medium with two directions, ``to`` its target and ``from`` it.  For
each frame (or piece of a stream) it says what becomes of it.  Faults act in the order in which they began;
what is drawn is drawn from the fault's own generator, so that one fault more does not change another's luck.

Not modelled: damage that depends on the contents of a frame.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from colo.faults.model import LinkFault
from vmm.clock import NEVER_NS

TO, FROM = "to", "from"


@dataclass
class Fate:
    """Of one frame."""

    lost: str = ""
    """Why, if it is."""
    copies: int = 1
    late_ns: int = 0
    flips: tuple[int, ...] = ()
    """Random numbers, one for each bit that flips."""
    overtaken: int = 0
    """How many frames pass it."""


@dataclass
class _Active:
    """A fault that is under way."""

    fault: LinkFault
    until_ns: int
    left: int
    """Frames that it still hits; -1: any number."""
    rng: random.Random = field(repr=False)

    def hits(self, direction: str) -> bool:
        if self.fault.direction not in ("both", direction) or self.left == 0:
            return False
        if self.fault.probability < 1.0 and self.rng.random() >= self.fault.probability:
            return False
        self.left -= self.left > 0
        return True


class Impairments:
    """Of one medium."""

    def __init__(self) -> None:
        self._active: list[_Active] = []

    def begin(self, fault: LinkFault, now_ns: int, rng: random.Random) -> int:
        """The fault is there from now on; until when, or NEVER_NS."""
        lasts = bool(fault.for_ns) or fault.persistence == "permanent" or fault.effect in fault.conditions
        until_ns = now_ns + fault.for_ns if fault.for_ns else NEVER_NS
        left = fault.times or (-1 if lasts else 1)
        self._active.append(_Active(fault, until_ns, left, rng))
        return until_ns

    def clear(self) -> None:
        """All is well again."""
        self._active.clear()

    def _now(self, now_ns: int) -> list[_Active]:
        if self._active:
            self._active = [each for each in self._active if each.until_ns > now_ns and each.left]
        return self._active

    def blocked(self, direction: str, now_ns: int) -> str:
        """Why nothing passes in this direction, or nothing."""
        for each in self._now(now_ns):
            fault = each.fault
            if fault.effect in ("partition", "half-open") and fault.direction in ("both", direction):
                return fault.effect
        return ""

    def bytes_per_s(self, direction: str, now_ns: int) -> int:
        """The narrowest place; 0: none is narrow."""
        rates = [
            each.fault.bytes_per_s
            for each in self._now(now_ns)
            if each.fault.effect == "bandwidth" and each.fault.direction in ("both", direction)
        ]
        return min(rates, default=0)

    def fate(self, direction: str, now_ns: int) -> Fate:
        """What becomes of a frame that begins its way now."""
        fate = Fate(lost=self.blocked(direction, now_ns))
        for each in self._now(now_ns):
            fault = each.fault
            if fate.lost or fault.effect in fault.conditions or not each.hits(direction):
                continue
            match fault.effect:
                case "drop":
                    fate.lost = "drop"
                case "duplicate":
                    fate.copies += fault.copies
                case "reorder":
                    fate.overtaken = max(fate.overtaken, fault.overtaken)
                case "corrupt":
                    fate.flips += tuple(each.rng.getrandbits(31) for _ in range(fault.bits))
                case "delay":
                    assert fault.delay is not None
                    fate.late_ns += fault.delay.draw(each.rng)
        return fate


def damaged(data: bytes, flips: tuple[int, ...]) -> bytes:
    """``data`` with a bit flipped for each number."""
    if not flips or not data:
        return data
    changed = bytearray(data)
    for number in flips:
        bit = number % (8 * len(changed))
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
