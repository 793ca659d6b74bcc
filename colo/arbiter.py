"""Who may act alone: a test-and-set on (pair, generation), won by at most one node.

Losing the peer proves nothing about the peer: the link may be cut with both alive.  Before a node
takes over or goes on alone it wins here; the loser halts its guest and drops its output.  A node
that gets no answer has neither won nor lost, and may not act.

``file:DIRECTORY``   an atomic link(2) in a directory that both nodes see: this host, or storage that
                     both hosts mount (link is atomic on NFS, too: open(2), O_EXCL)
``manual``           nobody but a person: the node waits for ``x-colo-lost-heartbeat``, QEMU's way

Generations count the pairings of one machine.  A claim is never taken back, so a node that asks
again learns what it learned before: asking is idempotent.  A claim belongs to a process, not to a name:
a node that was started again has not won what it won before it died, because its machine died, too.

Another arbiter (``etcd:``, a lease and a compare-and-swap) is a class with :meth:`Arbiter.claim` and
a line in :data:`KINDS`.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from colo.errors import ArbiterError

NAME_MAX = 100
"""Of a pair or a node: it becomes part of a file name."""


class Arbiter(Protocol):
    """Where nodes claim a generation."""

    spec: str
    """As on the command line."""

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        """Has ``node`` won?  ArbiterError when there is no answer; asking again is harmless."""

    async def check(self, pair: str, generation: int) -> None:
        """Before a pair forms: could it be asked, and is the next generation still to be had?

        ArbiterError otherwise: neither node of such a pair could ever go on without the other.
        """

    def command(self) -> None:
        """A person said that the peer is lost (``x-colo-lost-heartbeat``)."""

    def forget(self) -> None:
        """A pairing begins: what a person said of an earlier peer says nothing of this one."""


class FileArbiter:
    """Claims as files: the first link to a generation's name stands.

    Two nodes may have been given one name, so what a claim says is the process's own.
    """

    __slots__ = ("_directory", "_process", "spec")

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._process = uuid.uuid4().hex
        self.spec = f"file:{directory}"

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        target = self._directory / f"{_checked(pair)}.{generation}"
        mine = f"{_checked(node)} {self._process}\n".encode()
        try:
            self._link(target, mine)
            return target.read_bytes() == mine
        except OSError as exc:
            raise ArbiterError(
                f"arbiter {self.spec}: claiming generation {generation} of pair {pair}: {exc.strerror}:"
                " expected a directory that this node may write; until it is there nobody acts alone"
            ) from None

    async def check(self, pair: str, generation: int) -> None:
        target = self._directory / f"{_checked(pair)}.{generation + 1}"
        if target.exists():
            raise ArbiterError(
                f"arbiter {self.spec}: generation {generation + 1} of pair {pair} was claimed already, by an"
                " earlier pair of this name: use another name, or an empty directory"
            )
        probe = self._directory / f".{pair}.{self._process}"
        try:
            self._link(probe, b"")
            probe.unlink()
        except OSError as exc:
            raise ArbiterError(
                f"arbiter {self.spec}: making a link there: {exc.strerror}: expected a directory that this"
                " node may write, on a file system with hard links"
            ) from None

    def command(self) -> None:
        """A person's word adds nothing: the file decides between two nodes that both have it."""

    def forget(self) -> None:
        """Nothing was remembered: see :meth:`command`."""

    def _link(self, target: Path, claim: bytes) -> None:
        """Make ``target`` with ``claim`` in it, whole and for good, unless it exists."""
        fd, part = tempfile.mkstemp(prefix=f".{target.name}.", dir=self._directory)
        try:
            os.write(fd, claim)
            os.fchmod(fd, 0o644)  # a loser under another user must be able to read that it lost
            os.fsync(fd)
            with suppress(FileExistsError):
                target.hardlink_to(part)
            self._sync()  # also when it exists: an earlier attempt of ours may have failed here
        finally:
            os.close(fd)
            Path(part).unlink()

    def _sync(self) -> None:
        """The name itself must outlive a crash of this host."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class ManualArbiter:
    """A person who looked at both nodes and tells the one that is to go on."""

    __slots__ = ("_told", "spec")

    def __init__(self, rest: str = "") -> None:
        if rest:
            raise ArbiterError(f"arbiter manual:{rest}: nothing follows manual")
        self.spec = "manual"
        self._told = False

    async def claim(self, pair: str, generation: int, node: str) -> bool:
        if self._told:
            return True
        raise ArbiterError(
            f"pair {pair}: the peer of {node} is lost, and the arbiter is a person: see whether it still"
            " runs, and then tell the node that is to go on: colo failover, or QMP x-colo-lost-heartbeat"
        )

    async def check(self, pair: str, generation: int) -> None:
        """A person can always be asked."""

    def command(self) -> None:
        self._told = True

    def forget(self) -> None:
        self._told = False


KINDS: dict[str, Callable[[str], Arbiter]] = {"file": FileArbiter, "manual": ManualArbiter}


def parse(spec: str) -> Arbiter:
    """The arbiter that ``spec`` names: ``file:DIRECTORY`` or ``manual``."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS or (kind == "file" and not rest):
        raise ArbiterError(f"arbiter {spec}: expected file:DIRECTORY or manual")
    return KINDS[kind](rest)


def _checked(name: str) -> str:
    """A name that is safe as part of a file name."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum() and len(name) <= NAME_MAX) or name.startswith("."):
        raise ArbiterError(f"arbiter: {name!r} is no name: expected letters, digits, '-', '_' and '.'")
    return name
