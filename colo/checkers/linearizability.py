"""Is a history linearizable: could each operation have taken effect at one instant between its two events?

The search is the just-in-time linearization of G. Lowe ("Testing for linearizability", Concurrency and
Computation 29(4), 2017), a descendant of J. Wing and C. Gong's ("Testing and verifying concurrent objects",
JPDC 17, 1993).  It goes along the returns of the history.  At each, the operation that returns must take
effect, unless it has already; other open operations are tried in front of it, and only there, because whoever
takes effect later has more to choose from.  Where that leads is a *configuration*: the object's state and
which open operations have taken effect.  Depth first: a right history is mostly walked straight through.  A
configuration that led nowhere is remembered.

Each key is an object of its own and is searched alone: linearizability is local (Herlihy and Wing, theorem
1), and A. Horn and D. Kroening ("Faster linearizability checking via P-compositionality", FORTE 2015) show
what that saves.  Three more things keep the search small:

- *An operation of unknown outcome* never has to take effect.  A configuration that has used it can do nothing
  that the same one without it cannot, so it is not followed when that one has failed.  One that would change
  nothing is not tried; of several that ask the same, only the oldest is.
- *A read* that fits takes effect at once: whatever order there is, there is one with this read moved to the
  front.  (Not so a write that happens to change nothing, which is another thing elsewhere.)
- *A limit*, on configurations looked at: deterministic, unlike a limit in seconds.  Past it the verdict is
  UNKNOWN.  The problem is NP-complete (P. Gibbons and E. Korach, SIAM J. Comput. 26, 1997); what makes a
  history hard is many operations of unknown outcome on one key.

A wrong history is explained by its shortest prefix that is wrong, in which what has not returned yet is of
unknown outcome.  A prefix of a linearizable history is linearizable, so bisection finds it.

Not checked: whether operations on several keys took effect together (a transaction).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from colo.checkers.history import Event, Failed, History, Invoked, Returned
from colo.checkers.models import Model
from colo.checkers.verdict import Verdict, right, unknown, wrong

LIMIT = 500_000
"""Configurations of one key: some seconds, and far from filling the memory."""
ANSWERS_SHOWN = 8


class _Limit(Exception):
    """More configurations than allowed."""


class _Configuration(NamedTuple):
    state: Hashable
    placed: frozenset[int]
    """Operations that have taken effect and will return."""
    used: int
    """Operations of unknown outcome that have taken effect, as bits."""


class _Known:
    """Configurations that were looked at."""

    def __init__(self) -> None:
        self._used: dict[tuple[Hashable, frozenset[int]], list[int]] = {}

    def add(self, one: _Configuration) -> bool:
        """Is it new, and can it do anything that those before it could not?"""
        known = self._used.setdefault((one.state, one.placed), [])
        if any(used & ~one.used == 0 for used in known):
            return False
        known.append(one.used)
        return True


class _Point(NamedTuple):
    """A return, and what is open there."""

    at: int
    operation: int
    open: tuple[int, ...]
    """Other operations that will return."""
    lost: int
    """How many operations of unknown outcome have been invoked."""


def linearizable(history: History, model: Model, *, limit: int = LIMIT) -> Verdict:
    """WRONG with the shortest bad prefix of the first bad key; UNKNOWN when a key met the limit."""
    judge = f"linearizable as a {model.name}"
    unsure = ""
    parts = history.by_key()
    for key, part in parts.items():
        events = _without_failed(part)
        search = _Search(events, model, limit)
        try:
            if not search.run():
                return _explained(judge, history, events, model, limit, search.reached)
        except _Limit:
            unsure = unsure or (
                f"key {key!r}: more than {limit} configurations: raise the limit, use more keys, or let fewer"
                " clients ask at once"
            )
    if unsure:
        return unknown(judge, unsure)
    return right(judge, f"{len(history.events)} events, {len(parts)} keys")


def _without_failed(events: Sequence[Event]) -> list[Event]:
    """What certainly had no effect constrains nobody, in any prefix."""
    failed = {event.operation for event in events if isinstance(event, Failed)}
    return [event for event in events if event.operation not in failed]


def _explained(
    judge: str, history: History, events: Sequence[Event], model: Model, limit: int, good: int
) -> Verdict:
    """The shortest prefix, if the limit allows to find it; an order of the first ``good`` events exists."""
    which, end = "the shortest prefix without an order", len(events) - 1
    while good < end:
        middle = (good + end) // 2
        try:
            if _Search(events[: middle + 1], model, limit).run():
                good = middle + 1
            else:
                end = middle
        except _Limit:
            which, good = (
                "a prefix without an order (a shorter one may be wrong, too: the limit was met)",
                end,
            )
    last = events[end]
    answers = sorted(map(repr, _right_answers(events[:end], last, model, limit)))
    shown = " or ".join(answers[:ANSWERS_SHOWN]) + (" or ..." if len(answers) > ANSWERS_SHOWN else "")
    reason = f"key {history.operation(last.operation).key!r}: {which} ends with {history.told(last)}"
    reason += f"; right there would have been {shown}" if shown else ""
    part = history.by_key()[history.operation(last.operation).key]
    return wrong(judge, reason, tuple(history.line(event) for event in part[: part.index(last) + 1]))


def _right_answers(before: Sequence[Event], last: Event, model: Model, limit: int) -> list[Any]:
    """Answers with which the prefix would have an order: those that occur in one without ``last``."""
    search = _Search(before, model, limit, watched=last.operation)
    right_ones = []
    try:
        search.run()
        for answer in search.answers:
            final = Returned(last.operation, answer, last.at_ns)
            if _Search([*before, final], model, limit).run():
                right_ones.append(answer)
    except _Limit:
        return right_ones
    return right_ones


class _Search:
    """Events of one key, without operations that failed; they may end anywhere.

    With ``watched``, an operation that does not return in them, the search does not end at the first order,
    but collects what this operation would answer.
    """

    def __init__(self, events: Sequence[Event], model: Model, limit: int, watched: int | None = None) -> None:
        self._model = model
        self._watched = watched
        self._left = limit
        self._asked = {event.operation: event for event in events if isinstance(event, Invoked)}
        self._results = {
            event.operation: model.heard(self._asked[event.operation].action, event.result)
            for event in events
            if isinstance(event, Returned)
        }
        self._lost: list[int] = []
        """Operations of unknown outcome, oldest first: bit n of a configuration is the n-th."""
        self._points = [*self._walk(events)]
        self.reached = 0
        """The first event for which no order was found, if that is so."""
        self.answers: set[Any] = set()

    def _walk(self, events: Sequence[Event]) -> Iterator[_Point]:
        open_: list[int] = []
        for at, event in enumerate(events):
            if isinstance(event, Returned):
                open_.remove(event.operation)
                yield _Point(at, event.operation, tuple(open_), len(self._lost))
            elif event.operation in self._results:
                open_.append(event.operation)
            else:
                self._lost.append(event.operation)

    def run(self) -> bool:
        """Is there an order?  _Limit when it takes too long to say."""
        known = [_Known() for _ in range(len(self._points) + 1)]
        start = _Configuration(self._model.initial(), frozenset(), 0)
        path: list[Iterator[_Configuration]] = [iter([start])]
        while path:
            one = next(path[-1], None)
            depth = len(path) - 1
            if one is None:
                path.pop()
            elif depth == len(self._points):
                if self._watched is None:
                    return True
                self.answers.add(self._apply(one.state, self._watched)[1])
            elif known[depth].add(one):
                point = self._points[depth]
                self.reached = max(self.reached, point.at)
                path.append(self._after(one, point))
        return False

    def _after(self, before: _Configuration, point: _Point) -> Iterator[_Configuration]:
        """The configurations behind a return."""
        if point.operation in before.placed:
            yield before._replace(placed=before.placed - {point.operation})
            return
        seen = _Known()
        queue = deque([before])
        while queue:
            one = queue.popleft()
            if not seen.add(one):
                continue
            self._left -= 1
            if self._left < 0:
                raise _Limit
            reads, writes = self._open_ones(one, point)
            if reads:
                queue.append(reads[0])
                continue
            state, answer = self._apply(one.state, point.operation)
            if answer == self._results[point.operation]:
                yield one._replace(state=state)
                if self._asked[point.operation].action in self._model.reads:
                    continue
            queue += writes
            queue += self._lost_ones(one, point)

    def _open_ones(
        self, one: _Configuration, point: _Point
    ) -> tuple[list[_Configuration], list[_Configuration]]:
        """What open operations make of ``one`` that answer here what they will answer."""
        reads: list[_Configuration] = []
        writes: list[_Configuration] = []
        for number in point.open:
            if number in one.placed:
                continue
            state, answer = self._apply(one.state, number)
            if answer == self._results[number]:
                new = _Configuration(state, one.placed | {number}, one.used)
                (reads if self._asked[number].action in self._model.reads else writes).append(new)
        return reads, writes

    def _lost_ones(self, one: _Configuration, point: _Point) -> list[_Configuration]:
        tried: set[tuple[str, tuple[Any, ...]]] = set()
        new = []
        for bit, number in enumerate(self._lost[: point.lost]):
            asked = self._asked[number]
            what = (asked.action, asked.arguments)
            if one.used >> bit & 1 or what in tried:
                continue
            tried.add(what)
            state, answer = self._apply(one.state, number)
            if number == self._watched:
                self.answers.add(answer)
            if state != one.state:
                new.append(_Configuration(state, one.placed, one.used | 1 << bit))
        return new

    def _apply(self, state: Hashable, number: int) -> tuple[Hashable, Any]:
        asked = self._asked[number]
        return self._model.apply(state, asked.action, asked.arguments)
