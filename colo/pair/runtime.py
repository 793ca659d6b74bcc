"""Where running pairs are found: one directory each, with who they are and the sockets of their nodes.

::

    $COLO_RUNTIME                       if set; else
    /run/colo                           for root
    $XDG_RUNTIME_DIR/colo               for others
    TMPDIR/colo-UID                     where neither is there
     └── redis/                         a pair; only its owner may look inside
          ├── pair.json                 supervisor, guest, nodes (:class:`Pair`), replaced whole
          ├── a.qmp                     a node's QMP socket
          └── b.qmp

A process is named by its pid and by when it started, in the kernel's ticks (proc(5), stat, field 22): a
pid alone is soon somebody else's.  A record whose supervisor is dead is left for whoever finds it: its
nodes may live, and guests are not thrown away by a program that only looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from colo.errors import ControlError

RECORD = "pair.json"
RECORD_MAX = 64 << 10
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
"""A pair's or node's name; short, because a socket's path has at most 107 bytes."""
START_FIELD = 19
"""Field 22 of /proc/PID/stat, counted from the state, which is field 3."""


class Process(msgspec.Struct, frozen=True):
    """A process that can be told from a later one with the same pid."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """A living process; ``os.getpid()`` for one's own.  ControlError if there is none."""
        started = _started(pid)
        if started is None:
            raise ControlError(f"there is no process {pid}")
        return cls(pid, started)

    @property
    def alive(self) -> bool:
        return _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this process and no other; False if it is dead already."""
        with self._held() as descriptor:
            if descriptor is None:
                return False
            signal.pidfd_send_signal(descriptor, number)
            return True

    def wait_dead(self, limit_s: float) -> bool:
        """Whether it is dead, now or within ``limit_s``."""
        with self._held() as descriptor:
            if descriptor is None:
                return True
            watch = select.poll()
            watch.register(descriptor, select.POLLIN)  # which a pidfd is when its process has ended
            return bool(watch.poll(limit_s * 1000))

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        """A descriptor of the process, which stays that of this one whatever becomes of its pid."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield descriptor if self.alive else None
        finally:
            os.close(descriptor)


class Node(msgspec.Struct, frozen=True):
    """One of a pair, as its supervisor last knew it."""

    name: str
    process: Process
    socket: str
    """Path of its QMP socket."""
    role: str
    """primary, secondary, or what the supervisor calls it."""

    @property
    def path(self) -> Path:
        return Path(self.socket)


class Pair(msgspec.Struct, frozen=True):
    """What pair.json holds."""

    name: str
    guest: str
    supervisor: Process
    nodes: list[Node] = []

    @property
    def supervised(self) -> bool:
        return self.supervisor.alive

    @property
    def alive(self) -> bool:
        """Whether anything of it runs: nodes can outlive their supervisor."""
        return self.supervised or any(node.process.alive for node in self.nodes)


def directory() -> Path:
    """Where this user's pairs are."""
    if chosen := os.environ.get("COLO_RUNTIME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/colo")
    if (theirs := os.environ.get("XDG_RUNTIME_DIR")) and Path(theirs).is_dir():
        return Path(theirs) / "colo"
    return Path(tempfile.gettempdir()) / f"colo-{os.geteuid()}"


def create(name: str, guest: str) -> tuple[Pair, Path]:
    """A new pair of this process, and its directory.  ControlError if one of that name runs.

    What a dead pair of that name left is removed.
    """
    if not NAME.fullmatch(name):
        raise ControlError(f"{name!r} is no name for a pair: at most 32 letters, digits and . _ -")
    base = _private(directory())
    with _locked(base):
        found = _read(base / name)
        if found is not None and found.alive:
            raise ControlError(
                f"a pair {name!r} is running ({_who(found)}): colo stop {name}, or another name"
            )
        _clear(base / name)
        home = _private(base / name)
        pair = Pair(name, guest, Process.of(os.getpid()))
        write(pair)
    return pair, home


def write(pair: Pair) -> None:
    """Replace the record: a reader sees the old one or the new one."""
    path = directory() / pair.name / RECORD
    fresh = path.with_suffix(".new")
    with _worldly(path):
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(pair)) + b"\n")
        fresh.replace(path)


def remove(pair: Pair) -> None:
    """Forget a pair, unless another one has taken its name."""
    base = directory()
    if base.is_dir():
        with _locked(base):
            found = _read(base / pair.name)
            if found is None or found.supervisor == pair.supervisor:
                _clear(base / pair.name)


def pairs() -> list[Pair]:
    """Every pair of this user that has a record, dead ones too, by name."""
    base = directory()
    if not base.is_dir():
        return []
    _private(base)
    found = (_read(path) for path in sorted(base.iterdir()) if path.is_dir())
    return [pair for pair in found if pair is not None]


def find(name: str | None = None) -> Pair:
    """The pair of that name, dead or alive; without a name the only one that runs.

    ControlError, with the names to choose from, if that does not say which.
    """
    known = pairs()
    if name is not None:
        for pair in known:
            if pair.name == name:
                return pair
        raise ControlError(f"there is no pair {name!r}: {_listing(known)}")
    running = [pair for pair in known if pair.alive]
    if len(running) != 1:
        which = "which pair?" if running else "no pair is running:"
        raise ControlError(f"{which} {_listing(known)}")
    return running[0]


def _listing(known: list[Pair]) -> str:
    if not known:
        return f"none has a record in {directory()}"
    return ", ".join(f"{pair.name} ({_who(pair)})" for pair in known)


def _who(pair: Pair) -> str:
    """A pair's life in a few words."""
    if pair.supervised:
        return f"supervisor {pair.supervisor.pid}"
    alive = " and ".join(node.name for node in pair.nodes if node.process.alive)
    state = f"{alive} still running" if alive else f"colo stop {pair.name} clears it away"
    return f"supervisor {pair.supervisor.pid} is dead, {state}"


def _read(home: Path) -> Pair | None:
    """The record in a pair's directory; None where there is none yet, or none any more."""
    path = home / RECORD
    try:
        with _worldly(path), path.open("rb") as file:
            return msgspec.json.decode(file.read(RECORD_MAX), type=Pair)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ControlError(f"{path} is no record of a pair ({exc}): remove {home}") from exc


def _clear(home: Path) -> None:
    """Remove what a pair left in the file system."""
    with _worldly(home), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(home)


def _private(path: Path) -> Path:
    """A directory of ours; one that is made here only we may look into."""
    with _worldly(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ControlError(
                f"{path} is not a directory that only user {os.geteuid()} may change: set COLO_RUNTIME"
            )
    return path


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    """One at a time decides whether a name is free."""
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _worldly(path: Path) -> Iterator[None]:
    """What a file system does to us, as a ControlError; that a file is not there is the caller's."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ControlError(f"{path}: {exc.strerror}") from exc


def _started(pid: int) -> int | None:
    """When a process started; None if it is dead, or dead but for its parent's interest in it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in brackets and may hold anything, brackets too.
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[START_FIELD])
