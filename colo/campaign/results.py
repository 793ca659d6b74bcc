"""The results of a campaign: one row a trial, in a file that only grows.

A trial that is run in the worlds of several policies has a row for each of them.

While a campaign runs, a finished trial is a line of JSON in ``trials.jsonl``, written at once: a campaign
that is killed at any moment has lost the trials in progress and nothing else.  A line that was cut short is
dropped when the file is opened again.  At the end the rows, by number, become ``results.parquet``, or
``results.csv`` where pyarrow is not installed.

Lines are in the order in which trials ended, which differs from run to run, and each tells the host's time
and which worker it was.  The digest is of the rows in the order of their numbers without those two: a
campaign that is run again has to come to the same one.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import importlib
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from colo.campaign.trial import Report
from colo.campaign.wire import Done, Key, Numbered
from colo.errors import ColoError
from colo.faults import text

HOST_FIELDS = ("wall_ms", "worker")
"""What differs between two runs of one campaign."""
DIGEST_SIZE = 16


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One trial."""

    trial: int
    """Its number in the campaign."""
    policy: str = ""
    """Of its world; of a machine alone, none."""
    seed: int
    faults: str
    """The whole trial as one line of JSON (:mod:`colo.faults.text`)."""
    outcome: str
    """Empty: there is none, see ``failure``."""
    why: str = ""
    difference: str = ""
    """The first output that is not the golden run's."""
    injected: int = 0
    """How many injections happened."""
    injected_ns: int | None = None
    """When the first one did, in virtual time from the start state."""
    changed: str = ""
    """What the injections changed."""
    forked_ns: int = 0
    """Where the trial left the golden run."""
    ended_ns: int = 0
    """When its outcome was known."""
    rejoined: bool = False
    """Its state became the golden run's again."""
    latent: bool = False
    """Masked, with an error that is still in the state."""
    digest: str = ""
    """Of a world's log: all that happened."""
    failure: str = ""
    wall_ms: float = 0.0
    worker: str = ""

    @property
    def key(self) -> Key:
        return self.trial, self.policy


def row(asked: Numbered, done: Done) -> Row:
    """What is kept of a trial."""
    report: Report = done.report
    happened = report.happened
    return Row(
        trial=asked.number,
        policy=asked.policy,
        seed=asked.trial.seed,
        faults=text.to_json(asked.trial),
        outcome="" if report.outcome is None else report.outcome.value,
        why=report.why,
        difference=report.difference,
        injected=sum(not each.failed for each in happened),
        injected_ns=happened[0].ns if happened else None,
        changed="; ".join(map(str, happened)),
        forked_ns=report.forked_ns,
        ended_ns=report.ended_ns,
        rejoined=report.rejoined,
        latent=report.latent,
        digest=report.digest,
        failure=report.failure,
        wall_ms=report.wall_ms,
        worker=done.worker,
    )


def read(path: Path) -> dict[Key, Row]:
    """The rows in a file, by number and policy, as far as they are whole; it may be growing."""
    try:
        with path.open("rb") as file:
            return _parsed(file, path)[0]
    except OSError as exc:
        raise ColoError(f"results {path}: {exc.strerror}") from None


def _parsed(file: BinaryIO, path: Path) -> tuple[dict[Key, Row], int]:
    """The rows, and where the last whole line ends."""
    rows: dict[Key, Row] = {}
    end = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            found = msgspec.json.decode(line, type=Row)
        except msgspec.MsgspecError as exc:
            raise ColoError(
                f"results {path}: line {len(rows) + 1} is not a trial of this build: {exc};"
                " start the campaign again in another directory"
            ) from None
        rows[found.key] = found
        end += len(line)
    return rows, end


class Results:
    """The rows so far, and the file that they are appended to.  Use it in a ``with`` statement."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run left at ``path``, if any, without what it did not end."""
        self.path = path
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as exc:
            raise ColoError(f"results {path}: {exc.strerror}") from None
        try:
            self._lock()
            self._file.seek(0)
            self.rows, end = _parsed(self._file, path)
            self._file.truncate(end)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Two campaigns at one file would do the same trials, and cut each other's lines."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ColoError(
                f"results {self.path}: another campaign is at work there: expected to be alone; wait for it,"
                " or choose another directory with --out"
            ) from None

    def add(self, new: Row) -> None:
        """Once a trial: a second report of one, by a worker that was thought lost, says the same."""
        if new.key not in self.rows:
            self.rows[new.key] = new
            self._file.write(msgspec.json.encode(new) + b"\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def in_order(self) -> list[Row]:
        return [self.rows[key] for key in sorted(self.rows)]

    @property
    def digest(self) -> str:
        """The same for every run of one campaign."""
        return digest(self.in_order())


def digest(rows: Iterable[Row]) -> str:
    """Of what the trials came to, host times excluded."""
    hasher = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for each in rows:
        plain = msgspec.to_builtins(each)
        for name in HOST_FIELDS:
            del plain[name]
        hasher.update(msgspec.json.encode(plain) + b"\n")
    return hasher.hexdigest()


def columns() -> dict[str, type]:
    """Their names and types."""
    plain = (bool, int, float, str)
    hints = typing.get_type_hints(Row)
    return {
        name: next(kind for kind in (hint, *typing.get_args(hint)) if kind in plain)
        for name, hint in hints.items()
    }


def export(rows: Sequence[Row], directory: Path, facts: dict[str, str]) -> Path:
    """The table as a file for other programs; ``facts`` are the schema's metadata."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        return _write_csv(rows, directory / "results.csv")
    kinds = {bool: arrow.bool_(), str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    # A seed has 64 bits, one more than int64.
    names = [(name, arrow.uint64() if name == "seed" else kinds[kind]) for name, kind in columns().items()]
    table = arrow.Table.from_pylist(msgspec.to_builtins(rows), arrow.schema(names, metadata=facts))
    path = directory / "results.parquet"
    parquet.write_table(table, path)
    return path


def _write_csv(rows: Sequence[Row], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns()))
        writer.writeheader()
        writer.writerows(msgspec.to_builtins(rows))
    return path
