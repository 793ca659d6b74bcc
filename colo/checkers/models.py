"""Objects as they would behave if one client at a time used them: the sequential specifications.

A model says what an object is at first, and what an action makes of it and answers.  States are values that
can be hashed and are never changed.  Every model here is deterministic: one state and one action give one
answer, so actions that choose (Redis's SPOP, SRANDMEMBER) are in none of them.

Actions and answers are those of the Redis commands (redis.io/commands) in lower case, so that what a client
got can be noted as it came: counters answer numbers whether they came as text or not, the members of a set
come in any order.  A key that was never written is nil, zero, or empty, as in Redis, and a list or set that
became empty is gone, which cannot be told from empty.

Not modelled: expiry, transactions over several keys (linearizability is checked key by key), errors of type.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Protocol

from colo.checkers.history import HistoryError, plain

_NUMBER = re.compile(r"-?[0-9]+")

Effect = tuple[Hashable, Any]
"""The state after, and the answer."""


class Model(Protocol):
    """One kind of object.  ``name`` is for people."""

    name: str
    reads: frozenset[str]
    """Actions that change no state whatsoever."""

    def initial(self) -> Hashable: ...

    def apply(self, state: Any, action: str, arguments: tuple[Any, ...]) -> Effect: ...

    def heard(self, action: str, result: Any) -> Any:
        """A client's result in the form that ``apply`` answers in."""
        ...


class Register:
    """One value.  ``cas(old, new)`` answers whether it replaced; the rest is Redis's string."""

    name = "register"
    reads = frozenset({"get"})

    def __init__(self, first: Any = None) -> None:
        self._first = plain(first)

    def initial(self) -> Hashable:
        first: Hashable = self._first
        return first

    def apply(self, state: Any, action: str, arguments: tuple[Any, ...]) -> Effect:
        match action, arguments:
            case "get", ():
                return state, state
            case "set", (value,):
                return value, "OK"
            case "getset", (value,):
                return value, state
            case "setnx", (value,):
                return (value, 1) if state is None else (state, 0)
            case "cas", (old, new):
                return (new, True) if state == old else (state, False)
            case "del", ():
                return None, int(state is not None)
        raise _no_such(self, action, arguments)

    def heard(self, action: str, result: Any) -> Any:
        return _accepted(action, result)


class Counter:
    """A number that is added to."""

    name = "counter"
    reads = frozenset({"get"})

    def initial(self) -> Hashable:
        return 0

    def apply(self, state: Any, action: str, arguments: tuple[Any, ...]) -> Effect:
        match action, arguments:
            case "get", ():
                return state, state
            case "incr", ():
                return state + 1, state + 1
            case "decr", ():
                return state - 1, state - 1
            case "incrby", (by,):
                return state + int(by), state + int(by)
            case "decrby", (by,):
                return state - int(by), state - int(by)
            case "set", (value,):
                return int(value), "OK"
        raise _no_such(self, action, arguments)

    def heard(self, action: str, result: Any) -> Any:
        if action == "set":
            return _accepted(action, result)
        if result is None:
            return 0  # nobody has counted yet
        return int(result) if isinstance(result, str) and _NUMBER.fullmatch(result) else result


class Set:
    """Members without order."""

    name = "set"
    reads = frozenset({"sismember", "smembers", "scard"})

    def initial(self) -> Hashable:
        return frozenset()

    def apply(self, state: Any, action: str, arguments: tuple[Any, ...]) -> Effect:
        match action, arguments:
            case "sadd", (_, *_):
                return state | {*arguments}, len({*arguments} - state)
            case "srem", (_, *_):
                return state - {*arguments}, len({*arguments} & state)
            case "sismember", (member,):
                return state, int(member in state)
            case "smembers", ():
                return state, state
            case "scard", ():
                return state, len(state)
            case "del", ():
                return frozenset(), int(bool(state))
        raise _no_such(self, action, arguments)

    def heard(self, action: str, result: Any) -> Any:
        return frozenset(result) if action == "smembers" and isinstance(result, tuple) else result


class RedisList:
    """A list with two ends; indices count from 0, negative ones from the end."""

    name = "list"
    reads = frozenset({"llen", "lindex", "lrange"})

    def initial(self) -> Hashable:
        return ()

    def apply(self, state: Any, action: str, arguments: tuple[Any, ...]) -> Effect:
        match action, arguments:
            case "rpush", (_, *_):
                return (*state, *arguments), len(state) + len(arguments)
            case "lpush", (_, *_):  # one after the other: the last argument ends up in front
                return (*reversed(arguments), *state), len(state) + len(arguments)
            case "lpop", ():
                return state[1:], state[0] if state else None
            case "rpop", ():
                return state[:-1], state[-1] if state else None
            case "llen", ():
                return state, len(state)
            case "lindex", (index,):
                return state, state[index] if -len(state) <= index < len(state) else None
            case "lrange", (first, last):
                return state, _range(state, first, last)
            case "del", ():
                return (), int(bool(state))
        raise _no_such(self, action, arguments)

    def heard(self, action: str, result: Any) -> Any:
        return result


def _accepted(action: str, result: Any) -> Any:
    """Several client libraries say True for Redis's OK."""
    return "OK" if action == "set" and result is True else result


def _range(items: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...]:
    """LRANGE: both ends belong to it, and what lies outside is cut off."""
    start, stop = (index + len(items) if index < 0 else index for index in (first, last))
    return items[max(start, 0) : max(stop + 1, 0)]


def _no_such(model: Model, action: str, arguments: tuple[Any, ...]) -> HistoryError:
    return HistoryError(
        f"a {model.name} has no action {action}{arguments!r}: expected one of colo/checkers/models.py, or a"
        " model of your own with that action"
    )
