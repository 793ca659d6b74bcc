"""What happens next, and how far a guest may run before it does."""

from __future__ import annotations

from colo.sim.agenda import LOOKAHEAD_NS, Agenda
from vmm.clock import NEVER_NS


class Walker:
    """A guest that walks to its horizon, and says something at given times."""

    def __init__(self, agenda: Agenda, speaks: tuple[int, ...] = (), asleep_until_ns: int = 0) -> None:
        self.agenda = agenda
        self.local_ns = self.world_ns = 0
        self.may_run = True
        self.asleep_until_ns = asleep_until_ns
        self.horizons: list[int] = []
        self.heard: list[int] = []
        self._speaks = list(speaks)
        self._horizon_ns = 0
        self.others: list[Walker] = []

    @property
    def speaks_ns(self) -> int:
        return max(self.local_ns, self.asleep_until_ns) if self.may_run else NEVER_NS

    def interrupt(self, at_ns: int) -> None:
        self._horizon_ns = min(self._horizon_ns, max(at_ns, self.world_ns))

    def turn(self, horizon_ns: int) -> None:
        self.horizons.append(horizon_ns)
        self._horizon_ns = horizon_ns
        while self._speaks and self._speaks[0] < self._horizon_ns:
            self.world_ns = self._speaks.pop(0)
            for other in self.others:
                self.agenda.at(self.world_ns + LOOKAHEAD_NS, lambda other=other: other.hear())  # type: ignore[misc]
        self.local_ns = self.world_ns = self._horizon_ns

    def hear(self) -> None:
        assert self.local_ns == self.agenda.now_ns, "it ran past something that reaches it"
        self.heard.append(self.agenda.now_ns)


def test_events_in_the_order_of_their_times_and_of_their_entry() -> None:
    agenda = Agenda()
    seen: list[tuple[int, str]] = []
    for at_ns, name in ((5, "c"), (3, "a"), (3, "b"), (9, "d")):
        agenda.at(at_ns, lambda name=name: seen.append((agenda.now_ns, name)))  # type: ignore[misc]
    agenda.run(7, lambda: False)
    assert seen == [(3, "a"), (3, "b"), (5, "c")]
    assert agenda.now_ns == 7
    agenda.at(1, lambda: seen.append((agenda.now_ns, "late")))
    agenda.run(9, lambda: False)
    assert seen[3:] == [(7, "late"), (9, "d")]


def test_a_guest_alone_runs_to_the_next_event() -> None:
    agenda = Agenda()
    guest = Walker(agenda)
    agenda.guests.append(guest)
    agenda.at(1_000_000, lambda: None)
    agenda.run(3_000_000, lambda: False)
    assert guest.horizons == [1_000_000, 3_000_000]


def test_two_guests_stay_within_a_lookahead() -> None:
    agenda = Agenda()
    first, second = Walker(agenda, (7_000, 25_000)), Walker(agenda, (31_000,))
    first.others, second.others = [second], [first]
    agenda.guests += [first, second]
    agenda.run(100_000, lambda: False)
    assert second.heard == [17_000, 35_000]
    assert first.heard == [41_000]


def test_a_sleeping_guest_lets_the_other_one_run() -> None:
    agenda = Agenda()
    awake, asleep = Walker(agenda), Walker(agenda, asleep_until_ns=4_000_000)
    agenda.guests += [awake, asleep]
    agenda.run(4_000_000, lambda: False)
    assert awake.horizons[0] == 4_000_000


def test_a_run_ends_between_two_events() -> None:
    agenda = Agenda()
    seen: list[int] = []
    for at_ns in range(10):
        agenda.at(at_ns, lambda at_ns=at_ns: seen.append(at_ns))  # type: ignore[misc]
    agenda.run(100, lambda: len(seen) == 4)
    assert seen == [0, 1, 2, 3]
    assert agenda.now_ns == 3
