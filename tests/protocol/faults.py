"""What the world does to a pair, and when: a plan is data, so that a seed can be replayed."""

from __future__ import annotations

import itertools
from enum import Enum
from random import Random
from typing import NamedTuple

HORIZON = 900
"""Steps over which a random plan is spread: two to five pairings, by experience."""
SYNCHRONISED = 100
"""Steps in which the first pairing gets its first epoch, by experience: half of the plans begin here."""
FAULTS_MAX = 7
CHAINS, CHAIN_MAX = 0.25, 6
"""The share of plans that are chains, and how many faults one has."""
LATE = 0.15
"""The share of those in which a secondary that stands still loses its primary."""


class Fault(Enum):
    """One kind of misfortune."""

    KILL = "kill -9"
    """Sockets are closed by the kernel; what flies still arrives, or is reset."""
    VANISH = "host lost"
    """Nothing is closed: silence."""
    PAUSE = "SIGSTOP"
    DEAF = "one direction cut"
    """Nothing reaches this node any more; what it sends arrives."""
    CUT = "link cut"
    SUSPECT = "heartbeat lost"
    """With both alive."""
    STRAY = "a word out of turn"
    """This node says something that the protocol does not expect there: that it is told to quit."""
    COMMAND = "x-colo-lost-heartbeat"
    LAST_WORDS = "kill -9 between two words"
    """Dies after so many more pieces were heard of it: between a release, or a log, and the next saying."""
    GASP = "SIGSTOP between two words"
    """The same, but it stands still for a while and then says what it was about to say."""
    ARBITER = "arbiter out of reach"
    POWER_OFF = "guest powers off"
    SNAP = "companion lost"
    """The connection between the guests' threads, and no other."""
    SWITCH = "another policy"
    FLIP = "a bit flips"
    """In a secondary's guest that follows or runs; a second fault before that is mended is one too many."""


class Event(NamedTuple):
    """``fault`` befalls ``who`` (primary, secondary, or nobody in particular) at ``step``."""

    step: int
    fault: Fault
    who: str = ""
    length: int = 0
    """Steps it lasts, or words."""


Plan = tuple[Event, ...]

LENGTHS = {
    Fault.PAUSE: (5, 600),
    Fault.ARBITER: (10, 200),
    Fault.LAST_WORDS: (0, 5),
    Fault.GASP: (0, 5),
    Fault.FLIP: (0, 1 << 16),
}
FATAL = (Fault.KILL, Fault.KILL, Fault.VANISH, Fault.LAST_WORDS, Fault.PAUSE, Fault.CUT)
WEIGHTS = {
    Fault.KILL: 6,
    Fault.VANISH: 3,
    Fault.PAUSE: 5,
    Fault.DEAF: 4,
    Fault.CUT: 4,
    Fault.SUSPECT: 5,
    Fault.STRAY: 2,
    Fault.COMMAND: 3,
    Fault.LAST_WORDS: 4,
    Fault.ARBITER: 3,
    Fault.POWER_OFF: 1,
    Fault.GASP: 4,
    Fault.SNAP: 2,
    Fault.SWITCH: 3,
}
MILD = (Fault.FLIP, Fault.FLIP, Fault.SWITCH)
"""What no node ends by."""


def random_plan(rng: Random) -> Plan:
    """A few faults, often close together, for two at once are worth more than two apart; or a pattern."""
    kind = rng.random()
    if kind < CHAINS:
        return _chain(rng)
    if kind < CHAINS + LATE:
        return _late(rng)
    events, step = [], rng.choice((rng.randrange(SYNCHRONISED), rng.randrange(HORIZON // 2)))
    for _ in range(rng.randint(1, FAULTS_MAX)):
        events.append(_event(rng, step, rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]))
        step += rng.choice((rng.randrange(8), rng.randrange(60), rng.randrange(HORIZON // 3)))
    return tuple(event for event in events if event.step < HORIZON)


def mild_plan(rng: Random) -> Plan:
    """Bits flip and policies change, each when what came before may be mended."""
    steps = itertools.accumulate(rng.randint(60, 400) for _ in range(rng.randint(1, CHAIN_MAX)))
    return tuple(_event(rng, step, rng.choice(MILD), "secondary") for step in steps)


def _chain(rng: Random) -> Plan:
    """One primary after another is lost, each when it may have a secondary again."""
    steps = itertools.accumulate(rng.randint(60, 350) for _ in range(rng.randint(2, CHAIN_MAX)))
    return tuple(_event(rng, step, rng.choice(FATAL), "primary") for step in steps)


def _late(rng: Random) -> Plan:
    """The secondary stands still, the primary is lost meanwhile: what it said early nobody has looked at."""
    step = rng.randrange(HORIZON // 2)
    pause = Event(step, Fault.PAUSE, "secondary", rng.randint(20, 80))
    return pause, _event(rng, step + rng.randrange(1, pause.length), rng.choice(FATAL), "primary")


def _event(rng: Random, step: int, fault: Fault, who: str = "") -> Event:
    length = rng.randint(*LENGTHS[fault]) if fault in LENGTHS else 0
    return Event(step, fault, who or rng.choice(("primary", "secondary")), length)


def shown(plan: Plan) -> str:
    """A plan in one line, which :func:`parsed` reads."""
    return "; ".join(f"{each.step} {each.fault.name} {each.who or '-'} {each.length}" for each in plan)


def parsed(text: str) -> Plan:
    """ValueError when ``text`` is no plan."""
    words = [each.split() for each in text.split(";") if each.strip()]
    by_name = {fault.name: fault for fault in Fault}
    if any(len(each) != 4 or each[1] not in by_name for each in words):
        raise ValueError(f"{text!r}: expected STEP FAULT WHO LENGTH; ... with FAULT of {', '.join(by_name)}")
    return tuple(Event(int(step), by_name[name], who, int(length)) for step, name, who, length in words)
