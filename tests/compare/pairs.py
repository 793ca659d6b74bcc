"""A comparison with a clock, and a connection that both machines answered."""

from __future__ import annotations

from colo.compare.comparison import Comparison, Settings
from colo.compare.packet import SYN
from colo.compare.verdict import Decision
from tests.compare.frames import released, tcp

LINUX = bytes.fromhex("020405b4 0402 080a 00000001 00000002 01 030307")
MASK = 0xFFFF_FFFF
ISN = 0xFFFF_FFF0
"""So that everything here wraps."""


class Pair:
    """A comparison, and a clock."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.comparison = Comparison(settings)
        self.now_ms = 0.0

    def primary(self, *frames: bytes) -> list[Decision]:
        return [each for frame in frames for each in self.comparison.feed_primary(frame, self.now_ms)]

    def secondary(self, *frames: bytes) -> list[Decision]:
        return [each for frame in frames for each in self.comparison.feed_secondary(frame, self.now_ms)]

    def later(self, ms: float) -> list[Decision]:
        self.now_ms += ms
        return self.comparison.tick(self.now_ms)

    def opened(self) -> Pair:
        """Both answered a client's SYN."""
        syn_ack = tcp(ISN, ack=5, flags=SYN, options=LINUX)
        self.primary(syn_ack)
        assert released(self.secondary(tcp(ISN + 77, ack=5, flags=SYN, options=LINUX))) == [syn_ack]
        return self
