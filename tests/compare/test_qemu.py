"""Mode ``qemu`` against a table of its rules, written by hand from what is known of QEMU's behaviour.

A step is P or S (whose frame), the frame, and what must come of it: + and the frames released, - and those
dropped, ! for a request for a checkpoint.  Frames are named by the letters of a table.
"""

from __future__ import annotations

import pytest

from colo.compare.comparison import Settings, open_comparison
from colo.compare.packet import FIN, RST, SYN
from colo.compare.qemu import QemuComparison
from colo.compare.verdict import Decision, Diverged, Reason, Release
from tests.compare import frames
from tests.compare.frames import CLIENT6, GUEST6, tcp, udp

FRAMES = {
    "a": tcp(100, b"abcd", ack=5),
    "b": tcp(100, b"abcd", ack=5, options=b"\1\1\1\1", window=3, ident=8),
    "c": tcp(100, b"abcX", ack=5),
    "d": tcp(104, b"efgh", ack=5),
    "e": tcp(100, b"ab", ack=5),
    "f": tcp(102, b"cdefgh", ack=5),
    "g": tcp(100, b"abcdefgh", ack=5),
    "h": tcp(100, b"ab", ack=9),
    "i": tcp(102, b"cdef", ack=5),
    "j": tcp(0xFFFF_FFFE, b"wrap", ack=5),
    "k": tcp(102, b"abcdef", ack=5),
    "0": tcp(104, ack=5),
    "s": tcp(99, ack=5, flags=SYN),
    "n": tcp(108, ack=5, flags=FIN),
    "r": tcp(108, ack=5, flags=RST),
    "u": udp(b"one"),
    "v": udp(b"two"),
    "w": udp(b"one", ident=77, ttl=3),
    "x": udp(b"one", check=7),
    "y": udp(b"longer"),
    "m": frames.echo(1, 2),
    "q": frames.echo(1, 2, source="10.77.0.9"),
    "G": frames.ip(47, b"gre"),
    "H": frames.ip(47, b"gre", ident=9),
    "A": frames.arp(),
    "V": tcp(100, b"abcd", vlans=[5]),
    "6": udp(b"six", source=GUEST6, destination=CLIENT6),
    "T": frames.ethernet(0x0800, b"\x45"),
}

TABLE = [
    ("1: what is no untagged IPv4 is not compared", "PA +A, P6 +6, PV +V, PT +T, SA -A, S6 -6, SV -V, ST -T"),
    ("7: without payload, released once the secondary sent anything", "P0, Sd +0, Pd +d-d"),
    ("7: flags are not compared", "Ps, Pn, Pr, Sa +s+n+r, Pb +b-a"),
    ("7: without payload the secondary's is dropped", "Pa, S0 -0, Sn -n, Sb +a-b"),
    ("9: same range, same bytes; the rest is ignored", "Pa, Sb +a-b"),
    ("9: either may be first", "Sb, Pa +a-b"),
    ("13: another byte", "Pa, Sc !"),
    ("13: and again at each frame", "Pa, Sc !, Pd !"),
    ("8: what was compared is not looked at again", "Pa, Sb +a-b, Pc, Sd +c, Pd +d-d"),
    ("8: of the secondary neither", "Pa, Sb +a-b, Sc, Pd -c, Sd +d-d"),
    ("10: the secondary's segment is longer", "Pe, Sg +e, Pf +f, Pd +d"),
    ("12: the primary's is longer", "Pg, Se -e, Sf +g"),
    ("10: an acknowledgement beyond the secondary's is a difference", "Sg, Ph !"),
    ("11: rule 9 does not look at acknowledgements", "Ph, Se +h-e"),
    ("6: sorted by number", "Pd, Pa, Sa +a-a, Sd +d-d"),
    ("6: across the wrap", "Pe, Pj, Sj +j-j"),
    ("10: from the start of each, wherever they start", "Pe, Sk +e"),
    ("15: UDP without its IP header", "Pu, Sw +u-w"),
    ("15: UDP with its checksum", "Pu, Sx !"),
    ("15: another length", "Pu, Sy !"),
    ("15: any of the secondary's", "Su, Sv, Pv +v-v, Pu +u-u"),
    ("16: no match asks at once", "Pu, Sv !, Su +u-u"),
    ("15: ICMP without its IP header", "Pm, Sm +m-m"),
    ("3: all ICMP is one conversation", "Pm, Sq +m-q"),
    ("15: another protocol as a whole", "PG, SG +G-G, PG, SH !"),
]  # fmt: skip


def marks(decisions: list[Decision]) -> str:
    names = {frame: name for name, frame in FRAMES.items()}
    said = ""
    for each in decisions:
        if isinstance(each, Diverged):
            said += "!"
        else:
            said += ("+" if isinstance(each, Release) else "-") + names[each.frame]
    return said


def comparison(**limits: int) -> QemuComparison:
    made = open_comparison("qemu", Settings(**limits))  # type: ignore[arg-type]
    assert isinstance(made, QemuComparison)
    return made


@pytest.mark.parametrize(("rule", "script"), TABLE, ids=[rule for rule, _ in TABLE])
def test_the_table(rule: str, script: str) -> None:
    made = comparison()
    for step in script.split(", "):
        what, _, expected = step.partition(" ")
        feed = made.feed_primary if what[0] == "P" else made.feed_secondary
        assert marks(feed(FRAMES[what[1]], 0.0)) == expected, f"{rule}, at {step}"


def test_4_a_full_table_is_cleared_with_all_that_waits() -> None:
    made = comparison(connections_max=2)
    waiting = [tcp(1, b"x", ports=(80, port)) for port in (1, 2)]
    for frame in waiting:
        made.feed_primary(frame, 0.0)
    said = made.feed_primary(tcp(1, b"x", ports=(80, 3)), 0.0)
    assert [(each.frame, each.reason) for each in said if not isinstance(each, Diverged)] == [
        (frame, Reason.TABLE_FULL) for frame in waiting
    ]


def test_5_a_full_queue_drops_what_comes() -> None:
    made = comparison(queue_max=3)
    said = [each for n in range(6) for each in made.feed_primary(tcp(n, b"x"), 0.0)]
    assert [each.reason for each in said] == [Reason.QUEUE_FULL] * 2
    assert len(made.checkpoint()) == 4


def test_11_the_latest_acknowledgement_counts_not_the_highest() -> None:
    made = comparison()
    made.feed_secondary(tcp(100, b"abcd", ack=50), 0.0)
    made.feed_secondary(tcp(104, b"efgh", ack=20), 0.0)
    said = made.feed_primary(tcp(100, b"ab", ack=30), 0.0)
    assert [each.reason for each in said] == [Reason.ACK_BEYOND]


def test_11_the_smaller_acknowledgement_ignores_the_wrap() -> None:
    """So this one goes out although the secondary has not acknowledged as much."""
    made = comparison()
    made.feed_secondary(tcp(100, b"abcd", ack=0xFFFF_FFF0), 0.0)
    said = made.feed_primary(tcp(100, b"ab", ack=3), 0.0)
    assert [each.reason for each in said] == [Reason.MATCHED]


def test_17_one_look_a_second_finds_one_of_either_side() -> None:
    made = comparison()
    assert made.tick(0.0) == []
    made.feed_secondary(FRAMES["u"], 0.0)
    made.feed_primary(FRAMES["a"], 0.0)
    assert made.tick(3000.0) == []
    assert made.tick(3999.0) == []
    assert [each.reason for each in made.tick(4000.0)] == [Reason.TIMEOUT]
    assert made.held_age_ms(4000.0) == 4000.0


def test_18_a_checkpoint_empties_the_queues_and_forgets_nothing() -> None:
    made = comparison()
    for what in ("Pa", "Sb", "Pd", "Su"):
        (made.feed_primary if what[0] == "P" else made.feed_secondary)(FRAMES[what[1]], 0.0)
    assert marks(made.checkpoint()) == "+d-u"
    made.feed_primary(FRAMES["c"], 0.0)
    assert marks(made.feed_secondary(FRAMES["i"], 0.0)) == "+c"


def test_status() -> None:
    made = comparison()
    made.feed_primary(FRAMES["a"], 0.0)
    made.feed_secondary(FRAMES["c"], 0.0)
    made.feed_primary(FRAMES["m"], 0.0)
    names = {status.name: status.counts for status in made.conversations()}
    assert names == {"protocol 6 10.77.0.2:80 > 10.77.0.1:40000": {"payload": 1}, "protocol 1": {}}
    assert made.counts == {"diverged_payload": 1}
