"""Whether two nodes can be a pair, and how they tell each other.

The one that connects (the primary) says Hello, the one that listens answers Welcome, or Refusal with
the reason, which both report.  The listener compares; nothing is negotiated.  Two builds either
understand each other's every byte, which their digests say, or they refuse each other: there are no
version numbers (QEMU's version ladders are what this avoids).  The guests' hardware must be alike
too, since one machine's state is to run in the other.

``generation`` is not compared: the primary dictates it and the secondary adopts it.
"""

from __future__ import annotations

from itertools import islice

from colo.build import build
from colo.errors import ProtocolViolation, Refused
from colo.messages import TEXT_MAX, Channel, Hello, Refusal, Welcome
from colo.peer import Peer, expect
from colo.transport.wire import PROTOCOL_DIGEST
from vmm.config import PcConfig
from vmm.errors import StateError
from vmm.state import diff, unpack

INTERVAL_MS_MIN, INTERVAL_MS_MAX = 5, 10_000
"""Of heartbeats.  Faster than a host schedules its threads, or slower than anyone would wait."""
DIFFERENCES_SHOWN = 3
SHOWN_MAX = 80
"""Characters of a peer's text that a reason repeats."""


def hello(
    *, channel: Channel, pair: str, generation: int, layout: str, engine: str, config: bytes, interval_ms: int
) -> Hello:
    """Of this build."""
    return Hello(
        channel=channel,
        pair=pair,
        generation=generation,
        protocol=PROTOCOL_DIGEST,
        build=build(),
        layout=layout,
        engine=engine,
        config=config,
        interval_ms=interval_ms,
    )


def verdict(mine: Hello, theirs: Hello) -> str | None:
    """Why the two cannot be a pair, or None: they can.  Every reason says what was found and expected."""
    same_build = "start the same build of colo on both"
    alike = (
        ("protocol", theirs.protocol, mine.protocol, same_build),
        ("build", theirs.build, mine.build, same_build),
        ("CPU engine", theirs.engine, mine.engine, "install the same engine on both"),
    )
    for what, found, expected, remedy in alike:
        if found != expected:
            return f"{what} {_shown(found)}, this node has {_shown(expected)}: {remedy}"
    difference = _config_difference(mine.config, theirs.config)
    if difference is not None:
        return f"{difference}: start both with the same machine"
    if theirs.layout != mine.layout:
        return f"device layout {_shown(theirs.layout)}, this node has {_shown(mine.layout)}: {same_build}"
    if theirs.pair != mine.pair:
        return f"pair {_shown(theirs.pair)}, this node belongs to {_shown(mine.pair)}: check the address"
    if not INTERVAL_MS_MIN <= theirs.interval_ms <= INTERVAL_MS_MAX:
        return (
            f"heartbeats every {theirs.interval_ms} ms, this node takes {INTERVAL_MS_MIN} to"
            f" {INTERVAL_MS_MAX} ms: set another interval"
        )
    return None


def _config_difference(mine: bytes, theirs: bytes) -> str | None:
    """RAM first, in the unit in which it was asked for."""
    if mine == theirs:
        return None
    here = unpack(PcConfig, mine)
    try:
        there = unpack(PcConfig, theirs)
    except StateError as exc:
        return f"its configuration cannot be read ({_shown(str(exc))})"
    if there.ram_mib != here.ram_mib:
        return f"RAM {there.ram_mib} MiB, this node has {here.ram_mib} MiB"
    found = [
        f"{each.path}: {_shown(each.left)}, this node has {_shown(each.right)}"
        for each in islice(diff(there, here), DIFFERENCES_SHOWN)
    ]
    return "configuration " + "; ".join(found)


def _shown(value: object) -> str:
    """What a peer said, fit for a terminal and a log: printable, and not long."""
    text = value if isinstance(value, str) else repr(value)
    text = text if text.isprintable() and text else ascii(text)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."


async def introduce(peer: Peer, mine: Hello) -> Welcome:
    """The primary's half; Refused with the other's reason."""
    await peer.send(mine)
    return welcomed(await peer.receive())


def welcomed(answer: object) -> Welcome:
    """``answer`` to a Hello, if it is a Welcome that can be kept."""
    match answer:
        case Welcome(interval_ms=interval_ms) if INTERVAL_MS_MIN <= interval_ms <= INTERVAL_MS_MAX:
            return answer
        case Welcome(interval_ms=interval_ms):
            raise Refused(
                f"the other node's heartbeats come every {interval_ms} ms: set another interval there"
            )
        case Refusal(reason=reason):
            raise Refused(f"the other node refused: {_printable(reason)}")
        case _:
            raise ProtocolViolation(f"expected Welcome or Refusal, the peer sent {type(answer).__name__}")


async def examine(peer: Peer, mine: Hello, busy: str | None = None) -> Hello:
    """The secondary's half, up to its Welcome, which the caller sends.

    ``busy`` says why no peer at all is taken now.  Refused after the reason was sent.
    """
    theirs = await expect(peer, Hello)
    if theirs.channel is not Channel.PROTOCOL:
        raise ProtocolViolation(
            f"expected a Hello for the protocol, the peer sent one for {theirs.channel.value}"
        )
    reason = busy or verdict(mine, theirs)
    if reason is not None:
        await peer.send(Refusal(reason[:TEXT_MAX]))
        raise Refused(f"refused the other node: {reason}")
    return theirs


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
