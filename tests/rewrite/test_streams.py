"""Whole connections through a pair that fails at any moment: every byte arrives, nobody complains.

The comparison in between is the real one.  That the world would notice what is wrong is tested as well, by
leaving out of the rewriter what QEMU's leaves out.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from colo.rewrite import connection
from tests.rewrite.world import Plan, World

WRAP = (0xFFFF_FF00, 0x7FFF_FF00, 0xFFFF_FE00)
"""Everything wraps, and primary and secondary are half the space apart."""
CLOCKS = (0xFFFF_FF00, 0x1234_5678)

CLIENT_OPENS = Plan(1, numbers=WRAP, clocks=CLOCKS)
GUEST_OPENS = Plan(2, numbers=WRAP, clocks=CLOCKS, guest_opens=True)
BOTH_OPEN = Plan(3, numbers=WRAP, clocks=CLOCKS, both_open=True)
PLANS = {
    "client opens": CLIENT_OPENS,
    "guest opens": GUEST_OPENS,
    "both open": BOTH_OPEN,
    "no time stamps": replace(CLIENT_OPENS, stamps=False),
    "the same numbers": replace(CLIENT_OPENS, numbers=(5, 5, 5), clocks=(7, 7)),
    "no bytes": replace(CLIENT_OPENS, size=0, rounds=3),
    "a bad network": replace(GUEST_OPENS, loss=0.2, delay_ms=60, size=600),
    "many checkpoints": replace(CLIENT_OPENS, checkpoint=0.03),
}
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@plans
def test_nothing_fails(plan: Plan) -> None:
    world = World(plan)
    world.play()
    assert world.fails == []
    assert world.rewriter.active


@plans
def test_the_primary_fails_at_any_word_of_a_handshake(plan: Plan) -> None:
    for word in range(1, 16):
        World(replace(plan, fails=(word,), size=min(plan.size, 300))).play()


@plans
def test_the_primary_fails_at_any_moment_of_a_stream(plan: Plan) -> None:
    quiet = World(plan)
    quiet.play()
    for word in range(16, quiet.spoken, max(quiet.spoken // 8, 1)):
        World(replace(plan, fails=(word,))).play()


@plans
def test_one_failover_after_the_other(plan: Plan) -> None:
    """Each survivor is protected again, and fails in its turn."""
    for seed in range(3):
        words, fails = random.Random(seed), [0]
        for _ in range(4):
            fails.append(fails[-1] + words.randrange(1, 60))
        world = World(replace(plan, seed=seed, fails=tuple(fails[1:])))
        world.play()


@pytest.mark.long
def test_any_plan() -> None:
    draw = random.Random(20)
    for _ in range(200):
        fails = [draw.randrange(1, draw.choice((40, 350)))]
        while draw.random() < 0.5:
            fails.append(fails[-1] + draw.randrange(1, draw.choice((20, 150))))
        opens = draw.randrange(3)
        World(
            Plan(
                draw.randrange(1 << 30),
                fails=tuple(fails),
                guest_opens=opens == 1,
                both_open=opens == 2,
                stamps=draw.random() < 0.8,
                loss=draw.choice((0, 0.05, 0.15)),
                delay_ms=draw.choice((1, 12, 40)),
                checkpoint=draw.choice((0, 0.002, 0.02)),
                size=draw.choice((0, 300, 2500)),
                rounds=draw.choice((1, 2, 3)),
                clocks=(draw.randrange(1 << 32), draw.randrange(1 << 32)),
                numbers=draw.choice((None, WRAP, (5, 5, 5))),
            )
        ).play()


# The world notices


STUCK = replace(CLIENT_OPENS, fails=(60,), checkpoint=0, clocks=(2_433_102_356, 330_741_431), limit_ms=4000)


def test_time_stamps_left_alone_stop_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's rewriter, and what a client's PAWS makes of the survivor; ours brings the same plan through."""
    World(STUCK).play()
    monkeypatch.setattr(connection, "stamps_at", lambda packet: 0)
    with pytest.raises(AssertionError, match="stuck"):
        World(STUCK).play()
    World(replace(STUCK, stamps=False)).play()


def test_blocks_left_alone_are_complained_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "sack_at", lambda packet: (0, 0))
    with pytest.raises(AssertionError, match="block"):
        World(replace(STUCK, numbers=None)).play()


def test_a_difference_that_is_not_learned_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.Connection, "_learn", lambda *_: None)
    with pytest.raises(AssertionError, match=r"stuck|acknowledged"):
        World(STUCK).play()


def test_a_secondary_that_forgets_what_a_survivor_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(STUCK, fails=(60, 110))
    World(plan).play()
    monkeypatch.setattr("colo.rewrite.rewriter.Rewriter.translations", lambda _: [])
    with pytest.raises(AssertionError, match=r"stuck|expect"):
        World(plan).play()


def verdict(plan: Plan) -> str:
    try:
        World(plan).play()
    except AssertionError as exc:
        return str(exc)
    return ""


def test_a_survivor_that_takes_no_care_of_what_was_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary's clock is ahead, and the client has a time stamp that it did not echo yet."""
    plans = [replace(CLIENT_OPENS, seed=seed, fails=(80,), loss=0, delay_ms=40) for seed in range(8)]
    assert [verdict(plan) for plan in plans] == [""] * 8
    monkeypatch.setattr("colo.rewrite.timestamps.Stamps.take_over", lambda _: None)
    assert any("time stamp of" in verdict(plan) for plan in plans)
