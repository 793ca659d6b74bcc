"""Virtual time: order of alarms, re-arming, late looks."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from vmm.clock import NEVER_NS, ManualClock, Timer


def logger(clock: ManualClock, log: list[tuple[str, int]], name: str) -> Callable[[], None]:
    return lambda: log.append((name, clock.now_ns))


def test_alarms_see_their_own_time() -> None:
    clock, log = ManualClock(), list[tuple[str, int]]()
    late = clock.timer("late", logger(clock, log, "late"))
    early = clock.timer("early", logger(clock, log, "early"))
    late.arm(70)
    early.arm(30)
    clock.advance(29)
    assert log == []
    clock.advance(100)
    assert log == [("early", 30), ("late", 70)]
    assert clock.now_ns == 129
    assert clock.next_deadline_ns == NEVER_NS


def test_ties_go_by_age_of_the_timer_not_by_order_of_arming() -> None:
    clock, log = ManualClock(), list[tuple[str, int]]()
    first = clock.timer("first", logger(clock, log, "first"))
    second = clock.timer("second", logger(clock, log, "second"))
    second.arm(10)
    first.arm(10)
    clock.advance(10)
    assert [name for name, _ in log] == ["first", "second"]


def test_arming_again_replaces_and_cancel_forgets() -> None:
    clock, log = ManualClock(), list[tuple[str, int]]()
    timer = clock.timer("t", logger(clock, log, "t"))
    timer.arm(10)
    timer.arm(20)
    assert clock.deadlines() == {"t": 20}
    clock.advance(15)
    assert log == []
    timer.cancel()
    timer.cancel()
    clock.advance(100)
    assert log == []
    assert clock.deadlines() == {}


def test_alarm_in_the_past_fires_at_the_next_look() -> None:
    clock, log = ManualClock(now_ns=1000), list[tuple[str, int]]()
    clock.timer("t", logger(clock, log, "t")).arm(10)
    assert log == []
    clock.advance(0)
    assert log == [("t", 1000)]


def test_periodic_alarm_that_rearms_itself() -> None:
    clock, seen = ManualClock(), list[int]()

    def fire() -> None:
        seen.append(clock.now_ns)
        timer.arm(clock.now_ns + 10)

    timer: Timer = clock.timer("t", fire)
    timer.arm(10)
    clock.advance(35)
    assert seen == [10, 20, 30]


def test_alarm_may_arm_another_for_the_same_instant() -> None:
    clock, log = ManualClock(), list[tuple[str, int]]()
    chained = clock.timer("chained", logger(clock, log, "chained"))
    clock.timer("first", lambda: chained.arm(clock.now_ns)).arm(5)
    clock.advance(5)
    assert log == [("chained", 5)]


def test_deadline_beyond_never_is_never() -> None:
    clock = ManualClock()
    clock.timer("t", lambda: None).arm(1 << 70)
    assert clock.deadlines() == {}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 100)), max_size=20), st.integers(1, 40))
def test_steps_of_any_size_fire_the_same(arms: list[tuple[int, int]], step: int) -> None:
    """Advancing in one leap or in small steps is the same history."""
    histories = []
    for leap in (200, step):
        clock, log = ManualClock(), list[tuple[str, int]]()
        timers = [clock.timer(str(i), logger(clock, log, str(i))) for i in range(5)]
        for index, at in arms:
            timers[index].arm(at)
        while clock.now_ns < 200:
            clock.advance(leap)
        histories.append(log)
    assert histories[0] == histories[1]
