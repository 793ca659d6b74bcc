"""The same campaign on a Dask cluster: ``colo campaign PLAN --scheduler tcp://HOST:PORT``.

Every worker of the cluster needs this package of the same build, and gets the guest's booted snapshot by
itself, from its own cache or by booting the guest once; a worker whose start state is not the golden run's
refuses the job.  A task is a batch of trials that follow each other along the golden run.  It is handed to a
worker process (:mod:`colo.campaign.worker`) which the cluster's worker keeps from one task to the next: a
process that forks machines cannot be one that runs an event loop.

A worker of the cluster that dies takes its batch with it, and the scheduler gives that to another one: a
trial is a function of its number, so doing it again does no harm.  The job travels as a task of its own and
not as scattered data, because data that a lost worker held is lost, and a task can be computed again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from colo.campaign.wire import Done, Job, Numbered
from colo.campaign.workers import Worker
from colo.errors import ColoError
from colo.experiment import optional
from vmm.errors import ConfigError

BATCH_MAX = 32
"""Trials of a task: what a lost worker costs, against a message to the scheduler for each."""
BATCHES_PER_THREAD = 8
"""At least, so that the end of a campaign is not the wait for one worker."""
CONNECT_S = 10
LOSSES_MAX = 3
"""Worker processes that a batch may lose."""

Say = Callable[[str], None]


class DaskWorkers:
    """The workers of a scheduler."""

    def __init__(self, address: str, say: Say = lambda text: None) -> None:
        self._address = address
        self._say = say

    def run(self, job: Job, trials: Sequence[Numbered]) -> Iterator[Done]:
        """Every trial's result, in the order in which batches end."""
        distributed = _distributed()
        with self._client(distributed) as client:
            threads = sum(client.nthreads().values())
            if threads == 0:
                raise ColoError(f"scheduler {self._address} has no workers: start some with 'dask worker'")
            self._say(f"{threads} threads of {len(client.nthreads())} workers at {self._address}")
            wanted = client.submit(_same, msgspec.msgpack.encode(job), pure=False)
            tasks = [
                client.submit(run_batch, wanted, msgspec.msgpack.encode(batch), pure=False)
                for batch in _batches(trials, threads)
            ]
            try:
                for task in distributed.as_completed(tasks, loop=client.loop):
                    yield from msgspec.msgpack.decode(_result(task), type=list[Done])
            finally:
                client.cancel(tasks)
                client.run(release)

    def _client(self, distributed: Any) -> Any:
        try:
            return distributed.Client(self._address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as exc:
            raise ColoError(
                f"scheduler {self._address}: {exc}: expected the address that 'dask scheduler' shows, such as"
                " tcp://127.0.0.1:8786"
            ) from None


def _distributed() -> Any:
    try:
        return optional.load("distributed", "--scheduler")
    except ConfigError as exc:
        raise ConfigError(str(exc).replace("[experiment]", "[dask]")) from None


def _batches(trials: Sequence[Numbered], threads: int) -> list[list[Numbered]]:
    size = max(1, min(BATCH_MAX, len(trials) // (threads * BATCHES_PER_THREAD)))
    return [list(trials[at : at + size]) for at in range(0, len(trials), size)]


def _result(task: Any) -> bytes:
    found: bytes = task.result()
    return found


# In the cluster's workers


def _same(data: bytes) -> bytes:
    return data


class _Kept:
    """Worker processes of one process of the cluster, idle ones by job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[bytes, list[Worker]] = {}

    def take(self, data: bytes) -> Worker:
        key = _key(data)
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if idle:
                return idle.pop()
        return Worker(msgspec.msgpack.decode(data, type=Job))

    def give_back(self, data: bytes, worker: Worker) -> None:
        with self._lock:
            self._idle.setdefault(_key(data), []).append(worker)

    def release(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
        for worker in (each for group in idle.values() for each in group):
            worker.close()


_KEPT = _Kept()


def _key(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def release() -> None:
    """Let the worker processes of this process go."""
    _KEPT.release()


def run_batch(job: bytes, batch: bytes) -> bytes:
    """Some trials, one after the other, by a worker process of this process."""
    found: list[Done] = []
    losses = 0
    worker = _KEPT.take(job)
    for trial in msgspec.msgpack.decode(batch, type=list[Numbered]):
        while True:
            worker.ask(trial)
            done = worker.hear()
            if done is not None:
                break
            worker.close()
            losses += 1
            if losses == LOSSES_MAX:
                raise ColoError(f"trial {trial.name}: {losses} worker processes ended at it or before it")
            worker = _KEPT.take(job)
        found.append(done)
    _KEPT.give_back(job, worker)
    return msgspec.msgpack.encode(found)
