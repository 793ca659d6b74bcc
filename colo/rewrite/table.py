"""Connections by their ports, from either side, within limits.

Two parts, each ordered by last use: those that could not go on without their translation, and the rest,
which only lose a guard, or a handshake that begins again, when they are forgotten.  When the table is full
the oldest of the rest makes room; a flood of new connections so costs only others of its kind.  Only when
those that are needed take up all but a share of the table is the oldest of them given up, and counted.

A checkpoint touches no connection: each notices it when it is next used.  Ageing goes round the table a
few at a time, so it costs the same whatever its size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from colo.rewrite.causes import Cause, Counts, Settings, Translation
from colo.rewrite.connection import Connection

SHARE = 8
"""One part of so many is kept for connections that begin."""
AGED_MAX = 64
"""Connections that one tick looks at."""
_PORTS = 4
_ADDRESSES = {12: 4, 16: 4, 20: 4, 36: 16, 40: 16, 44: 16}
"""Size of an address in a key of so many bytes: up to two tags, two addresses, two ports."""


def reversed_key(key: bytes) -> bytes:
    """Of the same connection, for frames in the other direction."""
    size = _ADDRESSES[len(key)]
    ports = len(key) - _PORTS
    second, first = ports - size, ports - 2 * size
    return b"".join(
        (key[:first], key[second:ports], key[first:second], key[ports + 2 :], key[ports : ports + 2])
    )


class Table:
    """``outward`` and ``inward`` have the same connections, by the keys of frames from and to the guest."""

    __slots__ = ("_counts", "_needed", "_rest", "_round", "_settings", "epoch", "given", "inward", "outward")

    def __init__(self, settings: Settings, counts: Counts) -> None:
        self._settings = settings
        self._counts = counts
        self.epoch = 0
        self.outward: dict[bytes, Connection] = {}
        self.inward: dict[bytes, Connection] = {}
        self.given: dict[bytes, Translation] = {}  # at the last checkpoint, to connections not used since
        self._needed: OrderedDict[bytes, Connection] = OrderedDict()
        self._rest: OrderedDict[bytes, Connection] = OrderedDict()
        self._round: list[Connection] = []  # those that ageing has still to look at

    def __iter__(self) -> Iterator[Connection]:
        """All, as they are since the last checkpoint."""
        for each in tuple(self.outward.values()):
            if each.epoch != self.epoch:
                self.rebase(each)
                self.settle(each)
            yield each

    def reset(self, translations: Iterable[Translation]) -> None:
        self.epoch += 1
        self.given = {each.key: each for each in translations}

    def rebase(self, connection: Connection) -> None:
        """Let it notice the last checkpoint."""
        connection.rebase(self.epoch, self.given.pop(connection.key, None))

    def find(self, key: bytes) -> Connection | None:
        """By the key of its frames from the guest; a record is made if the last checkpoint gave one."""
        found = self.outward.get(key)
        if found is None:
            return self.add(key) if key in self.given else None
        if found.epoch != self.epoch:
            self.rebase(found)
        return found

    def add(self, key: bytes) -> Connection:
        """A connection that has no record."""
        limit = self._settings.connections_max
        if len(self.outward) >= limit:
            self._make_room(limit)
        connection = Connection(key, reversed_key(key), self._counts)
        self.rebase(connection)
        self.outward[key] = self.inward[connection.reverse] = connection
        self.settle(connection)
        return connection

    def settle(self, connection: Connection) -> None:
        """To the part that it belongs to now, as the one used last."""
        home = self._needed if connection.translated else self._rest
        connection.unsettled = False
        if connection.home is not home:
            if connection.home is not None:
                del connection.home[connection.key]
            connection.home = home
            home[connection.key] = connection
        else:
            home.move_to_end(connection.key)

    def _make_room(self, limit: int) -> None:
        needed_max = limit - max(limit // SHARE, 1)
        while len(self._needed) > needed_max:
            oldest = next(iter(self._needed.values()))
            if oldest.epoch == self.epoch:
                break
            self.rebase(oldest)  # a checkpoint made it one of the rest
            self.settle(oldest)
        if len(self._needed) > needed_max:
            oldest, cause = next(iter(self._needed.values())), Cause.EVICTED_TRANSLATED
        else:
            oldest, cause = next(iter(self._rest.values())), Cause.EVICTED
        self._counts.all[cause] += 1
        self._remove(oldest)

    def _remove(self, connection: Connection) -> None:
        assert connection.home is not None
        del connection.home[connection.key]
        del self.outward[connection.key]
        del self.inward[connection.reverse]
        connection.home = None

    def age(self, now_ms: float) -> None:
        """Forget what ended or began without end, and what was not used for long."""
        if not self._round:
            self._round = list(self.outward.values())
        for _ in range(min(AGED_MAX, len(self._round))):
            connection = self._round.pop()
            if connection.home is None:
                continue
            short = connection.ended or connection.learning
            limit_ms = self._settings.linger_ms if short else self._settings.idle_ms
            if now_ms - connection.last_ms >= limit_ms:
                self._counts.all[Cause.FORGOTTEN] += 1
                self._remove(connection)
