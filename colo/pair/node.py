"""One node of a pair, as its supervisor has it: a process, its control socket, and what it says there."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colo.errors import ColoError, ControlError
from colo.pair import runtime
from colo.qmp.client import AsyncClient
from colo.qmp.schema import Event

READY_WAIT_S = 60.0
"""A first start compiles the engine's callbacks; every other one takes half a second."""
CONNECT_RETRY_S = 0.02
EXIT_WAIT_S = 5.0
WORDS_MAX = 600
"""Characters of a node's last words that an error repeats."""

EXIT = "EXIT"
"""The event that we add to QMP's: the process has ended."""

Hear = Callable[["PairNode", str, dict[str, Any]], None]


class PairNode:
    """A started ``colo node``; ``hear`` is told of its QMP events, and of its end."""

    def __init__(self, name: str, command: Sequence[str], home: Path, hear: Hear) -> None:
        self.name = name
        self.command = list(command)
        self.qmp = home / f"{name}.qmp"
        self.link = home / f"{name}.link"
        self.log = home / f"{name}.log"
        self.role = "starting"
        self.tap = ""
        self.start_s = 0.0
        """What its start took."""
        self.status: int | None = None
        self._hear = hear
        self._process: asyncio.subprocess.Process | None = None
        self._client: AsyncClient | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def record(self) -> runtime.Node:
        return runtime.Node(self.name, runtime.Process.of(self.pid), str(self.qmp), self.role)

    async def start(self) -> None:
        """Start the process and wait until its control socket answers."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "colo.cli",
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends its nodes in order
            )
        self._tasks.append(asyncio.create_task(self._wait()))
        try:
            self._client = await self._answering()
        except BaseException:
            await self.stop()  # nobody else knows of this process yet
            raise
        self._tasks.append(asyncio.create_task(self._listen(self._client)))

    async def _answering(self) -> AsyncClient:
        try:
            async with asyncio.timeout(READY_WAIT_S):
                return await self._connect()
        except TimeoutError:
            raise ColoError(
                f"node {self.name}: its control socket {self.qmp} did not answer within {READY_WAIT_S:.0f} s:"
                f" {self.last_words()}"
            ) from None

    async def _connect(self) -> AsyncClient:
        while True:
            if not self.alive:
                raise ColoError(f"node {self.name} ended while it started: {self.last_words()}")
            if self.qmp.exists():
                with contextlib.suppress(ControlError):  # it binds its socket before it answers
                    return await AsyncClient.connect(self.qmp)
            await asyncio.sleep(CONNECT_RETRY_S)

    async def _wait(self) -> None:
        assert self._process is not None
        self.status = await self._process.wait()
        self._hear(self, EXIT, {"status": self.status})

    async def _listen(self, client: AsyncClient) -> None:
        with contextlib.suppress(ControlError):  # the connection ended, and so will the process
            async for event in client.events():
                self._tell(event)

    def _tell(self, event: Event) -> None:
        self._hear(self, event.event, event.data)

    async def execute(self, command: str, /, **arguments: Any) -> Any:
        assert self._client is not None, f"node {self.name} has not started"
        return await self._client.execute(command, **arguments)

    def last_words(self) -> str:
        """What it printed last, on one line."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError as exc:
            return f"(no log: {exc.strerror})"
        return " | ".join(text.strip().splitlines()[-4:])[-WORDS_MAX:] or "(it said nothing)"

    def kill(self) -> None:
        """``kill -9``: what a pair is for."""
        if self.alive:
            assert self._process is not None
            self._process.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        """End it in order, or else by force."""
        if self.alive:
            assert self._process is not None
            self._process.terminate()
            try:
                async with asyncio.timeout(EXIT_WAIT_S):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
                await self._process.wait()
        if self._client is not None:
            await self._client.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
