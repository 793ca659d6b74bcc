"""tools/bench --only causes: which field makes two frames differ, which rule takes it; a short real run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.compare.packet import FIN, PSH, SYN, VNET_HEADER, parse
from colo.experiment import loadgen
from colo.experiment.outcome import Unusable
from tests.compare.frames import tcp, udp
from tools.benchmarks import causes
from tools.benchmarks.causes_rules import (
    CHECKPOINT_MS,
    RULES,
    Outcome,
    Said,
    checkpoints,
    differences,
    displaced,
    judged,
    paired,
    placed,
    replayed,
    without,
)
from vmm.guest import BuiltGuest

ROOT = Path(__file__).resolve().parents[2]
HEADER = bytes(VNET_HEADER)


def stamps(value: int, echo: int) -> bytes:
    return bytes.fromhex("0101080a") + value.to_bytes(4, "big") + echo.to_bytes(4, "big")


def said(*frames: bytes, step_ms: float = 1.0, begin_ms: float = 0.0) -> list[Said]:
    return placed((begin_ms + n * step_ms, HEADER + frame, b"") for n, frame in enumerate(frames))


END_MS = 10_000.0
"""Late enough for every limit."""


def left(ours: list[Said], theirs: list[Said]) -> list[Counter[str]]:
    """First differences under each of the rules that compare frames."""
    pairs = paired(ours, theirs)
    return [judged(pairs, rules).first for rules in RULES]


# Fields


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, []),
        ({"ident": 7}, ["ip.id", "ip.check"]),
        ({"ttl": 7}, ["ip.ttl", "ip.check"]),
        ({"tos": 4}, ["ip.tos", "ip.check"]),
        ({"seq": 101}, ["tcp.seq", "tcp.check"]),
        ({"ack": 6}, ["tcp.ack", "tcp.check"]),
        ({"window": 7}, ["tcp.window", "tcp.check"]),
        ({"flags": PSH}, ["tcp.flags", "tcp.check"]),
        ({"options": stamps(11, 20)}, ["tcp.check", "tcp.tsval"]),
        ({"options": stamps(10, 21)}, ["tcp.check", "tcp.tsecr"]),
        ({"payload": b"there"}, ["tcp.check", "payload"]),
    ],
)
def test_each_field_by_its_name(change: dict[str, object], names: list[str]) -> None:
    usual: dict[str, object] = {"seq": 100, "payload": b"hello", "ack": 5, "options": stamps(10, 20)}
    one, other = tcp(**usual), tcp(**usual | change)  # type: ignore[arg-type]
    assert differences(parse(one), parse(other)) == names


def test_another_length_and_other_options() -> None:
    assert "length" in differences(parse(tcp(1, b"ab")), parse(tcp(1, b"abc")))
    found = differences(parse(tcp(1, flags=SYN, options=b"\2\4\5\xb4")), parse(tcp(1, flags=SYN)))
    assert "tcp.options" in found
    assert "tcp.tsval" not in found


def test_an_initial_number_has_a_name_of_its_own() -> None:
    found = differences(parse(tcp(1, flags=SYN)), parse(tcp(2, flags=SYN)))
    assert found == ["tcp.isn", "tcp.check"]


def test_a_datagram_differs_in_what_it_says() -> None:
    assert "payload" in differences(parse(udp(b"ab")), parse(udp(b"ac")))


def test_the_virtio_header_is_not_looked_at() -> None:
    one, other = (parse(bytes([n] * VNET_HEADER) + tcp(1), VNET_HEADER) for n in (0, 1))
    assert differences(one, other) == []


# Counterparts


def test_counterparts_stand_at_the_same_distance_from_their_own_beginnings() -> None:
    ours = said(tcp(100, flags=SYN), tcp(101, b"hello"), tcp(106, flags=FIN))
    theirs = said(tcp(2**32 - 1, flags=SYN), tcp(0, b"hello"), tcp(5, flags=FIN))
    pairs = paired(ours, theirs)
    assert all(pair.ours is not None and pair.theirs is not None for pair in pairs)
    assert [outcome.differ for outcome in (judged(pairs, rules) for rules in RULES)] == [3, 3, 3, 3, 2]


def test_what_a_rewriter_moved_is_the_same() -> None:
    ours = said(tcp(100, flags=SYN), tcp(101, b"hello"))
    moved = [
        (0.0, HEADER + tcp(900, flags=SYN), b""),
        (1.0, HEADER + tcp(901, b"hello"), ours[1].packet.frame),
    ]
    assert left(ours, placed(moved))[3:] == [Counter({"tcp.isn": 1, "tcp.seq": 1}), Counter()]


def test_a_frame_that_only_one_of_them_sent() -> None:
    both, more = tcp(1, b"both"), tcp(5, b"alone")
    assert left(said(both, more), said(both))[-1] == {"missing": 1}
    assert left(said(both), said(both, more))[-1] == {"extra": 1}


def test_what_a_checkpoint_came_before_is_no_difference() -> None:
    data, bare = said(tcp(1, b"x")), said(tcp(2))
    assert [len(paired(data, [], end_ms)) for end_ms in (10.0, 30.0)] == [0, 1]
    assert [len(paired(bare, [], end_ms)) for end_ms in (30.0, 110.0)] == [0, 1]
    assert [len(paired([], data, end_ms)) for end_ms in (110.0, 600.0)] == [0, 1]


def test_cut_elsewhere_is_another_length_and_one_too_many() -> None:
    found = left(said(tcp(1, b"hello")), said(tcp(1, b"he"), tcp(3, b"llo")))[-1]
    assert found == {"length": 1, "extra": 1}


def test_ports_that_are_used_again_are_another_conversation() -> None:
    lives = [tcp(100, flags=SYN), tcp(101, b"x"), tcp(500, flags=SYN), tcp(501, b"x")]
    found = said(*lives)
    assert found[0].conversation == found[1].conversation != found[2].conversation == found[3].conversation
    assert left(found, said(*lives))[0] == Counter()


def test_late_is_the_last_difference_and_acknowledgements_may_be_later() -> None:
    data, bare = tcp(1, b"x"), tcp(2)
    assert left(said(data), said(data, begin_ms=50.0))[-1] == {"late": 1}
    assert left(said(bare), said(bare, begin_ms=50.0))[-1] == Counter()
    assert left(said(bare), said(bare, begin_ms=150.0))[-1] == {"late": 1}
    assert left(said(data, step_ms=1.0), said(data, begin_ms=-500.0))[-1] == Counter()


# Rules


def test_order_between_conversations_is_free_from_the_second_rule_on() -> None:
    one, other = tcp(1, b"one", ports=(80, 1)), tcp(1, b"other", ports=(80, 2))
    found = left(said(one, other), said(other, one))
    assert [each["order"] for each in found] == [1, 0, 0, 0, 0]
    first, second = tcp(1, b"one"), tcp(4, b"two")
    assert [each["order"] for each in left(said(first, second), said(second, first))] == [1] * 5


def test_each_rule_removes_its_own_cause() -> None:
    def frames(ident: int, clock: int, seq: int) -> list[bytes]:
        return [
            tcp(seq, flags=SYN, options=stamps(1, 1)),
            tcp(seq + 1, b"i", ident=ident, options=stamps(1, 1)),
            tcp(seq + 2, b"c", options=stamps(clock, 1)),
        ]

    ours = said(*frames(1, 1, 100))
    assert [sum(each.values()) for each in left(ours, said(*frames(2, 9, 100)))] == [2, 2, 1, 0, 0]


def test_each_rule_is_missed_where_its_own_cause_is_the_only_one() -> None:
    ours, theirs = said(tcp(1, b"x", ident=1)), said(tcp(1, b"x", ident=2))
    assert [judged(paired(ours, theirs), without(n)).differ for n in range(1, len(RULES))] == [0, 1, 0, 0]
    ours, theirs = said(tcp(1, b"x", options=stamps(1, 1))), said(tcp(1, b"x", options=stamps(2, 1)))
    assert [judged(paired(ours, theirs), without(n)).differ for n in range(1, len(RULES))] == [0, 0, 1, 0]
    ours, theirs = said(tcp(1, flags=SYN)), said(tcp(2, flags=SYN))
    assert [judged(paired(ours, theirs), without(n)).differ for n in range(1, len(RULES))] == [0, 0, 0, 1]
    frames = tcp(1, b"one", ports=(80, 1)), tcp(1, b"other", ports=(80, 2))
    ours, theirs = said(*frames), said(*reversed(frames))
    assert [judged(paired(ours, theirs), without(n)).differ for n in range(1, len(RULES))] == [1, 0, 0, 0]


@given(st.permutations(range(9)))
def test_what_is_not_displaced_rises(numbers: list[int]) -> None:
    places = set(displaced(numbers))
    kept = [number for at, number in enumerate(numbers) if at not in places]
    assert all(a < b for a, b in pairwise(kept))
    assert kept, "one number rises by itself"


def test_as_few_as_possible_are_displaced() -> None:
    assert displaced([]) == []
    assert displaced([0, 1, 2]) == []
    assert displaced([3, 0, 1, 2]) == [0]
    assert len(displaced([3, 2, 1, 0])) == 3


def test_one_checkpoint_ends_what_came_before_its_commit() -> None:
    assert checkpoints([]) == 0
    assert checkpoints([0.0, 1.0, CHECKPOINT_MS - 1]) == 1
    assert checkpoints([0.0, CHECKPOINT_MS]) == 2


# Streams


def test_strict_takes_other_segments_and_finds_other_bytes() -> None:
    whole = said(tcp(1, b"begin"), tcp(6, b"hello"))
    cut = said(tcp(1, b"begin"), tcp(6, b"he"), tcp(8, b"llo"))
    assert replayed("strict", whole, cut, END_MS).checkpoints == 0
    found = replayed("strict", whole, said(tcp(1, b"begin"), tcp(6, b"HELLO")), END_MS)
    assert (found.checkpoints, found.differ, found.conversations_differ) == (1, 1, 1)
    assert found.first["payload"] == 1


@pytest.mark.parametrize("mode", ["strict", "qemu"])
def test_what_the_secondary_never_says_costs_a_checkpoint(mode: str) -> None:
    both = [tcp(1, b"begin"), tcp(6, b"hello")]
    found = replayed(mode, said(*both), said(both[0]), END_MS)
    assert found.checkpoints == 1
    assert found.differ == 1


def test_nothing_said_is_nothing_different() -> None:
    assert replayed("strict", [], [], END_MS).checkpoints == 0
    assert judged(paired([], []), RULES[0]).frames == 0


# The table


def test_the_table_sums_rounds_and_says_what_each_rule_removed() -> None:
    records = [
        {
            "load": "x",
            "round": number,
            "seconds": 2.0,
            **causes.row(Outcome(rules, 10, differ, 2, 1, 4, first)),
        }
        for number in (1, 2)
        for rules, differ, first in (("0", 8, Counter({"ip.id": 8})), ("1", 3, Counter({"tcp.seq": 3})))
    ]
    head, first, second = causes.table(records)
    assert head.split()[0] == "load"
    assert first.split()[:5] == ["x", "0", "20", "16", "80.0"]
    assert first.endswith("ip.id 16")
    assert second.split()[:5] == ["1", "20", "6", "30.0", "10"]
    assert "2 of 4" in second
    assert "2.0" in second.split()


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a TAP interface needs root")
def test_two_real_machines(guest: Callable[[str], BuiltGuest], tmp_path: Path) -> None:
    guest("kv")
    try:
        loadgen.program()
    except Unusable as exc:
        pytest.skip(str(exc))
    out = tmp_path / "bench.json"
    words = ("--only", "causes", "--rounds", "1", "--quick", "--json", str(out), "--csv", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmarks", *words],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    if "namespace" in done.stdout and done.returncode == 1:
        pytest.skip(done.stdout[-500:])
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(out.read_text())["records"]["causes"]
    by_rules = {record["rules"]: record for record in records}
    whole, rewritten = by_rules[RULES[0].name], by_rules[RULES[-1].name]
    assert whole["frames"] > 10
    assert rewritten["differ"] < whole["differ"]
    assert "tcp.isn" in by_rules[causes.FIELDS]["first"], "each draws an initial number of its own"
    with (tmp_path / "causes.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(records)
