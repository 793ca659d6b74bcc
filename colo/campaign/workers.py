"""Workers on this host: one process a core, each with a machine of its own on the golden run's way.

Trials are handed out one by one in the order of their injection points, so every worker's walk goes forward
only, and nobody waits for a slow neighbour.  A worker that ends without being told to has lost the trial
that it was at, and nothing else: the trial is given to the next one, and another worker is started in its
place.  A trial that loses :data:`LOSSES_MAX` workers is the reason for it, and is reported as failed.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import msgspec

from colo.campaign.trial import Report
from colo.campaign.wire import Channel, Done, Job, Key, Numbered, Refused
from colo.errors import ColoError

COMMAND = (sys.executable, "-m", "colo.campaign.worker")
LOSSES_MAX = 3
"""Workers that one trial may lose: the first two may have been somebody's kill -9."""
END_S = 10.0
"""Patience with a worker that was told to go and is in the middle of a trial."""

Say = Callable[[str], None]


class Worker:
    """One process, and the trial that it is at."""

    def __init__(self, job: Job) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.at: Numbered | None = None
        self._send(job)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._channel.read

    def ask(self, trial: Numbered) -> None:
        self.at = trial
        self._send(trial)

    def hear(self) -> Done | None:
        """The result of what it was asked; None when it has gone.  ColoError when it cannot work."""
        data = self._channel.receive()
        if data is None:
            return None
        try:
            found = msgspec.msgpack.decode(data, type=Done)
        except msgspec.MsgspecError:
            raise ColoError(msgspec.msgpack.decode(data, type=Refused).reason) from None
        self.at = None
        return found

    def _send(self, message: Job | Numbered) -> None:
        try:
            self._channel.send(message)
        except BrokenPipeError:
            return  # it has gone, which hear() will say

    def close(self) -> None:
        """Let it go; a worker in the middle of a trial is not waited for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        if self.at is not None:
            self._process.kill()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class LocalWorkers:
    """So many worker processes."""

    def __init__(self, count: int, say: Say = lambda text: None) -> None:
        self.count = count
        self._say = say
        self.lost = 0
        """Workers that ended without being told to."""

    def run(self, job: Job, trials: Sequence[Numbered]) -> Iterator[Done]:
        """Every trial's result, in the order in which they end."""
        waiting = deque(trials)
        losses = Counter[Key]()
        with ExitStack() as opened, selectors.DefaultSelector() as selector:
            for _ in range(min(self.count, len(waiting))):
                self._start(job, selector, opened).ask(waiting.popleft())
            while selector.get_map():
                for key, _ in selector.select():
                    worker: Worker = key.data
                    done = worker.hear()
                    if done is None:
                        selector.unregister(worker)
                        yield from self._lose(worker, losses, waiting)
                        if waiting:
                            self._start(job, selector, opened).ask(waiting.popleft())
                        continue
                    yield done
                    if waiting:
                        worker.ask(waiting.popleft())
                    else:
                        selector.unregister(worker)
                        worker.close()

    def _start(self, job: Job, selector: selectors.BaseSelector, opened: ExitStack) -> Worker:
        worker = Worker(job)
        opened.callback(worker.close)
        selector.register(worker, selectors.EVENT_READ, worker)
        return worker

    def _lose(self, worker: Worker, losses: Counter[Key], waiting: deque[Numbered]) -> Iterator[Done]:
        """A worker has gone: its trial goes to another one, unless it is what ends workers."""
        lost, worker.at = worker.at, None
        worker.close()
        assert lost is not None, "a worker without a trial was told to go"
        self.lost += 1
        losses[lost.key] += 1
        if losses[lost.key] < LOSSES_MAX:
            self._say(f"worker {worker.pid} was lost; trial {lost.name} goes to another one")
            waiting.appendleft(lost)
        else:
            failure = f"{LOSSES_MAX} workers were lost at this trial"
            yield Done(lost.number, Report(failure=failure), "", lost.policy)
