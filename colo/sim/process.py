"""A process in the world: a loop that the world steps while the process lives and is not stopped.

Nodes and clients are processes.  What the outside does to one enters by :meth:`Process.act`; a process that
is stopped (SIGSTOP) gets it when it goes on, one that was killed never does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from colo.sim.agenda import Agenda
from colo.sim.loop import NodeLoop, WorldError


class Process:
    """``name`` on the world's agenda.  ``failed`` is told of an exception that nobody handled.

    ``late`` says by how much its scheduler is late this time, in nanoseconds.
    """

    late: Callable[[], int] = staticmethod(lambda: 0)

    def __init__(self, name: str, agenda: Agenda, failed: Callable[[BaseException], None]) -> None:
        self.name = name
        self.agenda = agenda
        self.alive = True
        self.stopped = False
        self._failed = failed
        self._deferred: deque[Callable[[], None]] = deque()
        self._next_ns = -1
        """When the world will step the loop; -1: it does not know that it should."""
        self._tasks: list[asyncio.Task[Any]] = []
        self.loop = NodeLoop(name, lambda: agenda.now_ns, self._schedule)
        self.loop.set_exception_handler(self._unhandled)

    # The loop

    def _schedule(self) -> None:
        next_s = self.loop.next_s
        if next_s is None or not self.alive or self.stopped:
            return
        next_ns = max(round(next_s * 1e9), self.agenda.now_ns)
        if self._next_ns < 0 or next_ns < self._next_ns:
            self._next_ns = next_ns + self.late()
            self.agenda.at(self._next_ns, self._step)

    def _step(self) -> None:
        if self.agenda.now_ns < self._next_ns:
            return  # another one comes
        self._next_ns = -1
        if self.alive and not self.stopped:
            if self.loop.step(lambda: self.alive and not self.stopped):
                self._schedule()
            else:
                self._next_ns = self.agenda.now_ns + 1
                self.agenda.at(self._next_ns, self._step)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What is made within belongs to this process's loop; coroutines do not run here."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(outer)

    def act(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in this process."""
        if not self.alive:
            return
        if self.stopped:
            self._deferred.append(callback)
        else:
            self.loop.call_soon(callback)

    def undertake(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do ``work`` beside everything else; what it raises is the end of the world."""
        self._tasks = [task for task in self._tasks if not task.done()]
        task = self.loop.create_task(work)
        task.add_done_callback(self._done)
        self._tasks.append(task)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failed(failure)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        self._failed(failure or WorldError(f"{self.name}: {context.get('message')}"))

    # Life

    def pause(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        self.stopped = False
        while self._deferred:
            self.loop.call_soon(self._deferred.popleft())
        self._next_ns = -1
        self._schedule()

    def die(self) -> None:
        """SIGKILL: from here on nothing of it is heard.  Between two events only."""
        self.alive = False

    def bury(self) -> None:
        """After :meth:`die`, between two events: what is left of it goes.  Twice is once."""
        if self.loop.is_closed():
            return
        for task in self._tasks:
            if not task.done():
                with suppress(RuntimeError):  # a coroutine that awaits on its way out
                    task.get_coro().close()
        self._tasks.clear()
        self.loop.abandon()
