"""The smallest trial that still fails: fewest faults first, then simplest parameters.

Faults are removed by *ddmin* (Zeller and Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*,
IEEE TSE 28(2), 2002, section 3): parts of the list, then complements of parts, ever finer.  What is left is
1-minimal: without any one of its faults the trial does not fail.  Then each number goes down as far as it
can by ever smaller steps, masks lose bits (ddmin again, over bits), and what lasts becomes what happens
once.  The two alternate until neither changes anything.

The failure is whatever the caller's predicate says, which runs the trial again; trials are deterministic, so
each is asked about once.  The order of questions depends on the trial alone.  ``runs_max`` bounds them: the
answer is then the smallest that was found, and says that it may not be minimal.

Not tried: other triggers, addresses, registers, names and effects, which say where and what but not how
much; another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from colo.faults.errors import FaultError
from colo.faults.fields import Whole, hints, infos, limit
from colo.faults.model import Trial

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

RUNS_MAX = 500
"""Enough for a dozen faults; each run is a trial."""
IDENTITIES = frozenset({"address", "line", "vector", "first_sector", "value", "width", "factor"})
"""Numbers that say where or what: a smaller one is not less of it."""
AMOUNTS = frozenset({"persistence", "distribution"})
"""Words that say how much."""


@dataclass(frozen=True)
class Progress:
    """After each run: how many there were, whether this one failed too, the smallest failing trial so far."""

    runs: int
    failed: bool
    smallest: Trial


@dataclass(frozen=True)
class Shrunk:
    """The smallest failing trial that was found; ``minimal`` unless the runs were spent before the end."""

    trial: Trial
    runs: int
    minimal: bool


def shrink(
    trial: Trial,
    fails: Callable[[Trial], bool],
    runs_max: int = RUNS_MAX,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Shrunk:
    """The smallest trial for which ``fails`` is true, starting from one for which it is.

    Raises :class:`FaultError` when the trial that it is given does not fail: nothing could be learnt from it.
    """
    search = _Search(trial, fails, runs_max, progress)
    if not search.holds(trial):
        advice = "run it again: a predicate that forgets something, or another build?"
        raise FaultError((), "a trial that does not fail", "one that does", advice)
    before = None
    while before != search.smallest and not search.spent:
        before = search.smallest
        search.fewer()
        for index in range(len(search.smallest.faults)):
            search.simpler(index)
    return Shrunk(search.smallest, search.runs, not search.spent)


def ddmin(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """A part of ``items``, in order, for which ``fails`` is true and of which every item is needed.

    ``fails(items)`` is taken to be true, as in the paper.
    """
    kept = tuple(items)
    if kept and fails(()):
        return ()
    parts = 2
    while len(kept) >= 2:
        chunks = _split(kept, parts)
        complements = [tuple(x for other in chunks if other is not chunk for x in other) for chunk in chunks]
        smaller = next((chunk for chunk in chunks if fails(chunk)), None)
        if smaller is not None:
            kept, parts = smaller, 2
            continue
        smaller = next((rest for rest in complements if fails(rest)), None) if parts > 2 else None
        if smaller is not None:
            kept, parts = smaller, max(parts - 1, 2)
        elif parts < len(kept):
            parts = min(2 * parts, len(kept))
        else:
            break
    return kept


def _split(items: tuple[T, ...], parts: int) -> list[tuple[T, ...]]:
    """Parts whose sizes differ by one at most."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[first:end] for first, end in pairwise(edges)]


class _Search:
    def __init__(
        self,
        trial: Trial,
        fails: Callable[[Trial], bool],
        runs_max: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.smallest = trial
        self.runs = 0
        self.spent = False
        self._fails, self._runs_max, self._progress = fails, runs_max, progress
        self._known: dict[Trial, bool] = {}

    def holds(self, trial: Trial) -> bool:
        """Whether this one fails as well, and then it is the smallest; no, when there are no runs left."""
        if trial not in self._known:
            if self.runs >= self._runs_max:
                self.spent = True
                return False
            self.runs += 1
            failed = self._known[trial] = self._fails(trial)
            self._progress(Progress(self.runs, failed, trial if failed else self.smallest))
        if self._known[trial]:
            self.smallest = trial
        return self._known[trial]

    def fewer(self) -> None:
        """Only the faults that are needed."""
        whole = self.smallest
        ddmin(whole.faults, lambda faults: self.holds(Trial(seed=whole.seed, faults=faults)))

    def simpler(self, index: int) -> None:
        """Every parameter of one fault as simple as it can be."""
        self._simpler_part(lambda: self.smallest.faults[index], lambda fault: self._with(index, fault))

    def _with(self, index: int, fault: Any) -> bool:
        faults = self.smallest.faults
        changed = (*faults[:index], fault, *faults[index + 1 :])
        return self.holds(Trial(seed=self.smallest.seed, faults=changed))

    def _simpler_part(self, now: Callable[[], S], works: Callable[[S], bool]) -> None:
        """``now`` gives the struct as it is, ``works`` tries another in its place."""
        for name, hint in hints(type(now())).items():

            def attempt(value: Any, name: str = name) -> bool:
                try:
                    changed = msgspec.structs.replace(now(), **{name: value})
                except FaultError:  # it does not go with the other parameters
                    return False
                return changed != now() and works(changed)

            value = getattr(now(), name)
            if isinstance(value, msgspec.Struct) and name != "when" and attempt(_default(now(), name)):
                continue
            if isinstance(value, msgspec.Struct):
                self._simpler_part(lambda name=name: getattr(now(), name), attempt)  # type: ignore[misc]
            elif name == "mask":
                self._fewer_bits(value, attempt)
            elif name in AMOUNTS or (name not in IDENTITIES and not isinstance(value, str)):
                _descend(value, _simplest(now(), name, hint), attempt)

    def _fewer_bits(self, mask: int, attempt: Callable[[int], bool]) -> None:
        bits = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
        if len(bits) > 1:
            ddmin(bits, lambda some: attempt(sum(1 << bit for bit in some)))


def _default(struct: msgspec.Struct, name: str) -> Any:
    info = next(info for info in infos(type(struct)) if info.name == name)
    return getattr(struct, name) if info.required else info.default


def _simplest(struct: msgspec.Struct, name: str, hint: Any) -> Any:
    """What a field is to become if it can: its default, or, when it has none, 0 or the least there is."""
    value, limits = getattr(struct, name), limit(hint)
    if value != _default(struct, name) or not isinstance(limits, Whole):
        return _default(struct, name)
    return min(max(limits.low, 0), value) if value >= 0 else -1


def _descend(value: Any, simplest: Any, attempt: Callable[[Any], bool]) -> None:
    """Try the simplest; a number that cannot be that goes towards it by ever smaller steps."""
    if value == simplest or attempt(simplest):
        return
    if not isinstance(value, int) or isinstance(value, bool) or not isinstance(simplest, int):
        return
    for step in _steps(abs(value - simplest)):
        closer = value - step if value > simplest else value + step
        while closer != simplest and (closer > simplest) == (value > simplest) and attempt(closer):
            value = closer
            closer = value - step if value > simplest else value + step


def _steps(distance: int) -> Iterator[int]:
    while distance > 1:
        distance //= 2
        yield distance
