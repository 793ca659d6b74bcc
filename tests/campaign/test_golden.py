"""The golden run repeats itself, and knows what wildcards need."""

from __future__ import annotations

import msgspec
import pytest

from colo.campaign import golden, kinds
from colo.campaign.golden import GoldenRun
from colo.campaign.scenario import Input, Scenario
from colo.campaign.subject import Subject
from colo.errors import ColoError
from tests.campaign.subjects import COUNTER, LINE_NS, REWRITTEN

SHORT = msgspec.structs.replace(COUNTER, span_ns=30_000_000, marks=4)


def test_a_second_golden_run_is_the_same() -> None:
    digests = set()
    for _ in range(2):
        with Subject(SHORT) as subject:
            digests.add(golden.record(subject).digest)
    assert len(digests) == 1


def test_it_does_not_matter_where_it_is_stopped() -> None:
    states = set()
    for step in (30_000_000, 7_000_001, 999_983):
        with Subject(SHORT) as subject:
            while subject.now_ns < 30_000_000:
                subject.advance(min(subject.now_ns + step, 30_000_000))
            states.add(subject.state())
    assert len(states) == 1


def test_it_knows_what_was_said_and_when(counter_run: GoldenRun) -> None:
    assert [(each.ns, each.data) for each in counter_run.said if each.ns > 100_000] == [
        (LINE_NS, b"second 1 rounds 1000\r\n")
    ]
    assert counter_run.ended is None


def test_it_knows_which_pages_were_written(counter_run: GoldenRun) -> None:
    area = range(REWRITTEN >> 12, (REWRITTEN >> 12) + 256)
    assert set(area) <= set(counter_run.pages)
    assert len(counter_run.pages) < 256 + 8, "its stack and its variables, and nothing else"
    facts = counter_run.facts()
    assert (REWRITTEN, REWRITTEN + (1 << 20)) in facts.guests[""].physical
    assert facts.end_ns == counter_run.span_ns


def test_it_knows_where_its_code_is(counter_run: GoldenRun) -> None:
    addresses = dict(counter_run.executed)
    assert 1024 <= sum(addresses.values()) <= 2048
    assert all(0x10_0000 <= address < 0x10_04A0 for address in addresses), "its text"
    inner_loop = range(0x10_0260, 0x10_0279)
    assert sum(count for address, count in addresses.items() if address in inner_loop) > 512


def test_it_survives_its_file(counter_run: GoldenRun, tmp_path) -> None:  # type: ignore[no-untyped-def]
    kinds.save(counter_run, tmp_path / "golden.run")
    assert kinds.load(tmp_path / "golden.run").digest == counter_run.digest


def test_a_file_that_is_none_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "golden.run").write_bytes(b"\x80")
    with pytest.raises(ColoError, match="make it again"):
        kinds.load(tmp_path / "golden.run")


def test_inputs_enter_at_their_times() -> None:
    arp = bytes.fromhex(
        "ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 0a4d0001 000000000000 0a4d0002"
    )
    scenario = Scenario(
        guest="udpecho",
        inputs=tuple(Input(at_ns=at_ns, port="net0", data=arp) for at_ns in (1_000_000, 2_000_000)),
        span_ns=3_000_000,
        limit_ns=0,
        observe=("net0",),
    )
    with Subject(scenario) as subject:
        run = golden.record(subject)
    replies = run.said_on(("net0",))["net0"]
    assert [each.ns // 1_000_000 for each in replies] == [1, 2]
    assert all(each.data[12:14] == b"\x08\x06" for each in replies)


def test_a_port_that_is_not_there_is_named() -> None:
    with pytest.raises(ColoError, match=r"no port 'net7': expected one of com1"):
        Subject(msgspec.structs.replace(SHORT, observe=("net7",)))
