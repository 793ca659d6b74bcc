"""A small node without a machine: it keeps the state that QMP asks for and tells, and obeys.

``python -m tests.qmp.small_node SOCKET MODE`` serves one until it is told to quit, or by SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from colo.errors import ColoError, ControlError
from colo.qmp import schema
from colo.qmp.commands import registry
from colo.qmp.schema import Capability, ColoExitReason, ColoMode, FailoverStatus, MigrationStatus, RunState
from colo.qmp.server import Server

LIMIT_S = 60


class SmallNode:
    """NodeControl over a handful of attributes."""

    def __init__(self, mode: ColoMode = ColoMode.NONE) -> None:
        self.emit: Callable[..., None] = lambda name, data=None: None
        self.mode, self.last_mode = mode, mode
        self.filters: dict[str, str] = {}
        self.failover = FailoverStatus.NONE
        self.run_state = RunState.RUNNING
        self.epoch = 7
        self.text = b"".join(b"line %d\r\n" % n for n in range(10_000)) + b"login: \xff"
        self.switched = {Capability.COLO: False, Capability.EVENTS: True}
        self.migration = schema.MigrateInfo()
        self.set = schema.Parameters(
            x_checkpoint_delay=200,
            x_heartbeat_interval=20,
            x_heartbeat_silence=100,
            x_policy="periodic",
            x_verify=False,
            x_pause_budget=5,
            x_dirty_source=schema.DirtySourceChoice.AUTO,
            x_compare=schema.CompareChoice.STRICT,
        )
        self.gate = asyncio.Event()
        """Checkpoints and failovers are completed while it is set."""
        self.gate.set()
        self.ended = asyncio.Event()

    def name(self) -> str:
        return "small"

    def status(self) -> schema.StatusInfo:
        return schema.StatusInfo(running=self.run_state is RunState.RUNNING, status=self.run_state)

    def colo_status(self) -> schema.ColoStatus:
        facts = schema.NodeFacts(
            node="a",
            epoch=self.epoch,
            generation=1,
            failover=self.failover,
            policy=self.set.x_policy,
            arbiter="manual",
            dirty_source="scan",
            dirty_reason="asked for",
            pause_ms=1.25,
            pages=42,
            bytes=4200,
        )
        reason = ColoExitReason.REQUEST if self.failover is FailoverStatus.COMPLETED else ColoExitReason.NONE
        return schema.ColoStatus(mode=self.mode, last_mode=self.last_mode, reason=reason, x_node=facts)

    def migrate_info(self) -> schema.MigrateInfo:
        return self.migration

    def capabilities(self) -> dict[Capability, bool]:
        return self.switched

    def parameters(self) -> schema.Parameters:
        return self.set

    def console(self, size_bytes: int) -> bytes:
        return self.text[-size_bytes:]

    async def set_capabilities(self, wanted: dict[Capability, bool]) -> None:
        self.switched |= wanted

    async def set_parameters(self, wanted: schema.Parameters) -> None:
        if wanted.x_heartbeat_silence <= wanted.x_heartbeat_interval:
            raise ControlError("x-heartbeat-silence must be longer than x-heartbeat-interval")
        self.set = wanted

    async def migrate(self, uri: str) -> None:
        if not uri.startswith(("unix:/", "tcp:")):
            raise ColoError(f"{uri}: neither unix:/path nor tcp:HOST:PORT")
        if uri == "tcp:mistake:1":
            raise AssertionError("a mistake of ours, for the test of mistakes")
        self.mode = ColoMode.PRIMARY
        for status in (MigrationStatus.SETUP, MigrationStatus.ACTIVE, MigrationStatus.COLO):
            self.emit("MIGRATION", schema.Migration(status=status))
        ram = schema.RamInfo(transferred=1 << 20, remaining=0, total=1 << 28, dirty_sync_count=2)
        self.migration = schema.MigrateInfo(status=MigrationStatus.COLO, ram=ram, total_time=12)

    async def migrate_incoming(self, uri: str) -> None:
        Path(uri.removeprefix("unix:")).read_bytes()

    async def migrate_cancel(self) -> None:
        self.migration = schema.MigrateInfo(status=MigrationStatus.CANCELLED)

    async def lost_heartbeat(self) -> None:
        if self.failover is not FailoverStatus.NONE:
            raise ControlError("COLO failover is already activated")
        self.failover = FailoverStatus.ACTIVE
        await self.gate.wait()
        self.failover = FailoverStatus.COMPLETED
        mode, self.mode = self.mode, ColoMode.NONE
        self.emit("COLO_EXIT", schema.ColoExit(mode=mode, reason=ColoExitReason.REQUEST))

    async def checkpoint(self) -> schema.CheckpointInfo:
        if self.mode is not ColoMode.PRIMARY:
            raise ControlError("a checkpoint is made by a primary")
        await self.gate.wait()
        self.epoch += 1
        return schema.CheckpointInfo(epoch=self.epoch, pause_ms=1.5, pages=3, bytes=300)

    async def add_filter(self, kind: str, properties: dict[str, Any]) -> None:
        if properties["id"] in self.filters:
            raise ControlError(f"attempt to add duplicate property '{properties['id']}'")
        self.filters[properties["id"]] = kind

    async def remove_filter(self, id: str) -> None:
        if self.filters.pop(id, None) is None:
            raise ControlError(f"object '{id}' not found")

    async def stop(self) -> None:
        if self.run_state is RunState.RUNNING:
            self.run_state = RunState.PAUSED
            self.emit("STOP")

    async def cont(self) -> None:
        if self.run_state is RunState.PAUSED:
            self.run_state = RunState.RUNNING
            self.emit("RESUME")

    async def reset(self) -> None:
        cause = schema.ShutdownCause.HOST_QMP_SYSTEM_RESET
        self.emit("RESET", schema.Shutdown(guest=False, reason=cause))

    async def powerdown(self) -> None:
        self.emit("POWERDOWN")

    async def quit(self) -> None:
        self.emit("SHUTDOWN", schema.Shutdown(guest=False, reason=schema.ShutdownCause.HOST_QMP_QUIT))
        self.ended.set()


@contextlib.asynccontextmanager
async def served(path: Path, mode: ColoMode = ColoMode.NONE) -> AsyncIterator[tuple[SmallNode, Server]]:
    node = SmallNode(mode)
    server = Server(registry(node))
    node.emit = server.emit
    await server.start(path)
    try:
        yield node, server
    finally:
        await server.close()


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An asynchronous test; what the loop had to complain about fails it."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(LIMIT_S):
                await test(*given, **named)

        asyncio.run(main())
        assert not complaints

    return run


async def until(happened: Callable[[], bool]) -> None:
    """The loop's other work goes on; a story has a limit."""
    while not happened():
        await asyncio.sleep(0.001)


async def _main(path: Path, mode: ColoMode) -> None:
    async with served(path, mode) as (node, _):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, node.ended.set)
        print(msgspec.json.encode(node.status()).decode(), flush=True)
        await node.ended.wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), ColoMode(sys.argv[2])))
