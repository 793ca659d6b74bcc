"""Options of a TCP header: found, and where they stand, so that they can be compared or rewritten.

MSS (RFC 9293, section 3.7.1), window scale and timestamps (RFC 7323), SACK-permitted and SACK blocks
(RFC 2018).  Others are kept as bytes.  Options that contradict their lengths end the walk: what was
found before is kept and ``whole`` is False, which a receiver treats the same way.
"""

from __future__ import annotations

from typing import NamedTuple

from colo.compare.packet import Packet

END, NOP, MSS, WINDOW_SCALE, SACK_PERMITTED, SACK, TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8
OPTIONS_MAX = 40


class TcpOptions(NamedTuple):
    """Offsets are into the packet's frame; 0 stands for "not there"."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    sack_at: int = 0  # of the first block
    sack_count: int = 0
    timestamps_at: int = 0  # of the value; the echo follows
    others: tuple[bytes, ...] = ()
    whole: bool = True

    @property
    def profile(self) -> tuple[object, ...]:
        """What both ends of a connection go by for its whole life."""
        return (
            self.mss,
            self.window_scale,
            self.sack_permitted,
            bool(self.timestamps_at),
            tuple(each[0] for each in self.others),
        )


def options(packet: Packet) -> TcpOptions:
    """The options of a packet of kind TCP."""
    frame, at, end = packet.frame, packet.l4 + 20, packet.start
    found: dict[str, object] = {}
    others: list[bytes] = []
    while at < end and frame[at] != END:
        kind = frame[at]
        if kind == NOP:
            at += 1
            continue
        size = frame[at + 1] if at + 1 < end else 0
        if size < 2 or at + size > end:
            found["whole"] = False
            break
        _note(found, others, frame, at, kind, size)
        at += size
    return TcpOptions(**found, others=tuple(others))  # type: ignore[arg-type]


def _note(
    found: dict[str, object], others: list[bytes], frame: bytes, at: int, kind: int, size: int
) -> None:  # fmt: skip
    if kind == MSS and size == 4:
        found["mss"] = frame[at + 2] << 8 | frame[at + 3]
    elif kind == WINDOW_SCALE and size == 3:
        found["window_scale"] = frame[at + 2]
    elif kind == SACK_PERMITTED and size == 2:
        found["sack_permitted"] = True
    elif kind == SACK and size >= 10 and size % 8 == 2:
        found["sack_at"], found["sack_count"] = at + 2, size // 8
    elif kind == TIMESTAMPS and size == 10:
        found["timestamps_at"] = at + 2
    else:
        others.append(frame[at : at + size])


def timestamps(packet: Packet, found: TcpOptions) -> tuple[int, int] | None:
    """Value and echo."""
    at = found.timestamps_at
    if not at:
        return None
    return int.from_bytes(packet.frame[at : at + 4], "big"), int.from_bytes(
        packet.frame[at + 4 : at + 8], "big"
    )


def sack_blocks(packet: Packet, found: TcpOptions) -> list[tuple[int, int]]:
    """Left and right edges."""
    edges = [
        int.from_bytes(packet.frame[at : at + 4], "big")
        for at in range(found.sack_at, found.sack_at + 8 * found.sack_count, 4)
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
