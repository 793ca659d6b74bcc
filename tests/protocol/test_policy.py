"""When a checkpoint is due: the rule of Remus as :mod:`colo.policy` words it, over all facts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo import policy
from colo.policy import DELAY_MS_DEFAULT, DELAY_MS_MAX, DELAY_MS_MIN, IDLE_FACTOR, Facts, Periodic

DELAYS = st.integers(DELAY_MS_MIN, DELAY_MS_MAX)
TIMES = st.floats(0, 10.0 * DELAY_MS_MAX, allow_nan=False)
FACTS = st.builds(
    Facts,
    since_ms=TIMES,
    held_packets=st.integers(0, 1 << 20),
    over_limit=st.booleans(),
    requested=st.none() | st.just("request"),
)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(0), None),
        (Facts(19.9, held_packets=1), None),
        (Facts(20, held_packets=1), "period"),
        (Facts(20), None),
        (Facts(99.9), None),
        (Facts(100), "period"),
        (Facts(0, held_packets=1, over_limit=True), "held output"),
        (Facts(0, requested="request"), "request"),
        (Facts(1e6, 1, True, "shutdown"), "shutdown"),
    ],
)
def test_a_checkpoint_is_due(facts: Facts, reason: str | None) -> None:
    """Every 20 ms while something is held, five times more rarely when nobody waits, at once on request."""
    assert Periodic(20).decide(facts).reason == reason


@given(DELAYS, FACTS)
def test_a_decision_is_a_reason_or_a_wait(delay_ms: int, facts: Facts) -> None:
    decision = Periodic(delay_ms).decide(facts)
    if decision.reason is None:
        assert 0 < decision.wait_ms <= delay_ms * IDLE_FACTOR
    else:
        assert decision.reason


@given(DELAYS, FACTS)
def test_after_the_wait_it_is_due_if_nothing_else_changed(delay_ms: int, facts: Facts) -> None:
    """Nobody asks for ever: what decides is the wait that was named."""
    rule = Periodic(delay_ms)
    decision = rule.decide(facts)
    later = Facts(
        facts.since_ms + decision.wait_ms + 0.001, facts.held_packets, facts.over_limit, facts.requested
    )
    assert rule.decide(later).reason is not None


@given(DELAYS, FACTS, TIMES)
def test_more_reason_never_makes_it_later(delay_ms: int, facts: Facts, more_ms: float) -> None:
    rule = Periodic(delay_ms)
    if rule.decide(facts).reason is None:
        return
    assert rule.decide(
        Facts(facts.since_ms + more_ms, facts.held_packets, facts.over_limit, facts.requested)
    ).reason
    assert rule.decide(
        Facts(facts.since_ms, facts.held_packets + 1, facts.over_limit, facts.requested)
    ).reason
    assert rule.decide(Facts(facts.since_ms, facts.held_packets, True, facts.requested)).reason


@given(DELAYS, FACTS)
def test_the_same_facts_give_the_same_decision(delay_ms: int, facts: Facts) -> None:
    rule = Periodic(delay_ms)
    assert rule.decide(facts) == rule.decide(facts) == Periodic(delay_ms).decide(facts)


def test_output_is_never_held_for_longer_than_the_delay() -> None:
    """A pair that was idle checkpoints as soon as something has to wait and the delay is over."""
    rule = Periodic(20)
    assert rule.decide(Facts(60)).reason is None
    assert rule.decide(Facts(60, held_packets=1)).reason == "period"


def test_policies_are_chosen_by_name() -> None:
    rule = policy.choose("periodic", 7)
    assert (rule.name, rule.delay_ms) == ("periodic", 7)
    assert Periodic().delay_ms == DELAY_MS_DEFAULT
    assert all(name == make(1).name for name, make in policy.POLICIES.items())
    with pytest.raises(KeyError):
        policy.choose("never", 1)
