"""The supervisor of a pair on one host: network, arbiter, nodes, and protection again after a failover.

It does nothing that could not be done by hand (:meth:`Pair.explain` prints it): it starts ``colo node``
processes and talks QMP to them.  It takes no part in a failover, which is between the nodes and the
arbiter; it hears of it, tells people, and starts a new secondary.  A supervisor that dies takes the
network with it, because it owns the namespace; the nodes can then only be stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo.errors import ColoError, ControlError
from colo.network.host import Network, Publish
from colo.network.hub import HubNetwork
from colo.pair import runtime, warm
from colo.pair.node import EXIT, PairNode

SYNCHRONISE_WAIT_S = 120.0
REPROTECT_TRIES = 3
SIDES = ("tap-a", "tap-b")

Say = Callable[[str, dict[str, Any]], None]
"""Told of every step: a name and facts."""


@dataclass(frozen=True)
class PairOptions:
    """What ``colo up`` is told."""

    guest: str
    name: str
    publish: Sequence[Publish] = ()
    network: str = "namespace"
    ram_mib: int | None = None
    append: str | None = None
    reprotect: bool = True
    node_words: tuple[str, ...] = ()
    """Passed on to ``colo node``: checkpoint delay, heartbeat, policy, ..."""
    trace: Path | None = None
    """A directory for one trace a node."""


@dataclass
class PairState:
    """Who is what now."""

    primary: PairNode | None = None
    secondary: PairNode | None = None
    protected: bool = False
    failovers: int = 0
    nodes_started: int = 0
    lost: list[PairNode] = field(default_factory=list)


class Pair:
    """Two nodes and what they need.  ``async with``, or ``start`` and ``stop``."""

    def __init__(self, options: PairOptions, say: Say = lambda event, facts: None) -> None:
        self.options = options
        self.state = PairState()
        self._say = say
        self._heard: asyncio.Queue[tuple[PairNode, str, dict[str, Any]]] = asyncio.Queue()
        self._snapshot: Path | None = None
        self._record, self.home = runtime.create(options.name, options.guest)
        self.network: Network | HubNetwork = _network(options)
        self.ended = asyncio.Event()
        """The guest has ended, or no node is left."""
        self.failure: str | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Pair:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Starting

    async def start(self) -> None:
        """From nothing to a protected guest; ColoError and nothing left behind when that fails."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        began = time.monotonic()
        options = self.options

        def building(text: str) -> None:
            self._say("guest", {"doing": text})

        self._snapshot = await asyncio.to_thread(
            warm.snapshot,
            options.guest,
            net=self.network.unplugged,
            ram_mib=options.ram_mib,
            append=options.append,
            say=building,
        )
        self._say("guest-ready", {"snapshot": str(self._snapshot), "seconds": time.monotonic() - began})
        self.network.start()
        self._say("network", {"name": options.name, "publish": [str(each) for each in options.publish]})
        (self.home / "arbiter").mkdir(mode=0o700, exist_ok=True)
        primary, secondary = await self._start_both()
        self._is_primary(primary)
        self._say_started(primary)
        self._watcher = asyncio.create_task(self._watch())
        await self._form(primary, secondary)

    async def _start_both(self) -> list[PairNode]:
        """Side by side; both or none."""
        starting = [asyncio.create_task(self._start_node(side, incoming=side != SIDES[0])) for side in SIDES]
        try:
            return await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            found = await asyncio.gather(*starting, return_exceptions=True)
            await asyncio.gather(*(node.stop() for node in found if isinstance(node, PairNode)))
            raise

    async def _start_node(self, tap: str, *, incoming: bool) -> PairNode:
        name = f"n{self.state.nodes_started}"
        self.state.nodes_started += 1
        node = PairNode(name, (), self.home, lambda *what: self._heard.put_nowait(what))
        node.tap = tap
        node.command = self._command(node, incoming=incoming)
        began = time.monotonic()
        await node.start()
        node.start_s = time.monotonic() - began
        return node

    def _say_started(self, node: PairNode) -> None:
        self._say("node", {"node": node.name, "pid": node.pid, "role": node.role, "seconds": node.start_s})

    def _command(self, node: PairNode, *, incoming: bool) -> list[str]:
        options = self.options
        words = ["node", options.guest, "--load", str(self._snapshot), "--net", self.network.nic(node.tap)]
        words += ["--pair", options.name, "--name", node.name, "--qmp", str(node.qmp)]
        words += ["--arbiter", f"file:{self.home / 'arbiter'}", *options.node_words]
        words += ["--console", str(self.home / f"{node.name}.console")]
        if options.append is not None:
            words += ["--append", options.append]
        if self.network.namespace is not None:
            words += ["--netns", self.network.namespace]
        if self.network.user_namespace is not None:
            words += ["--userns", self.network.user_namespace]
        if options.trace is not None:
            words += ["--trace", str(options.trace / f"{node.name}.jsonl")]
        return [*words, "--incoming", f"unix:{node.link}"] if incoming else words

    # Protection

    async def _protect(self) -> None:
        """Start a secondary and bring it up to date."""
        primary = self.state.primary
        assert primary is not None
        await self._form(primary, await self._start_node(self._free_tap(primary), incoming=True))

    async def _form(self, primary: PairNode, secondary: PairNode) -> None:
        """Bring the secondary up to date: a pair in COLO state."""
        secondary.role = "secondary"
        self._say_started(secondary)
        self.state.secondary = secondary
        self._write_record()
        began = time.monotonic()
        capability = {"capability": "x-colo", "state": True}
        await primary.execute("migrate-set-capabilities", capabilities=[capability])
        await primary.execute("migrate", uri=f"unix:{secondary.link}")
        await self._synchronised(primary, began)

    async def _synchronised(self, primary: PairNode, began: float) -> None:
        """Until the pair is in COLO state; the watcher hears of it."""
        deadline = time.monotonic() + SYNCHRONISE_WAIT_S
        while True:
            info = await primary.execute("query-migrate")
            facts = {"status": info.get("status"), **info.get("ram", {})}
            match info.get("status"):
                case "colo":
                    seconds = time.monotonic() - began
                    self.state.protected = True
                    self._say("protected", {**facts, "seconds": seconds, "downtime_ms": info.get("downtime")})
                    await self._notify()
                    return
                case "failed" | "cancelled" | "completed":
                    raise ColoError(
                        f"pair {self.options.name}: the synchronisation {info['status']}:"
                        f" {info.get('error-desc', 'no reason given')}"
                    )
            if time.monotonic() > deadline:
                raise ColoError(
                    f"pair {self.options.name}: not synchronised within {SYNCHRONISE_WAIT_S:.0f} s: {facts}"
                )
            self._say("synchronising", facts)
            await asyncio.sleep(0.05)

    def _free_tap(self, primary: PairNode) -> str:
        return next(side for side in SIDES if side != primary.tap)

    def _is_primary(self, node: PairNode) -> None:
        node.role = "primary"
        self.state.primary, self.state.secondary = node, None
        self._write_record()

    def _write_record(self) -> None:
        nodes = [each for each in (self.state.primary, self.state.secondary) if each is not None]
        records = [each.record() for each in nodes if each.alive]
        self._record = runtime.Pair(self._record.name, self._record.guest, self._record.supervisor, records)
        runtime.write(self._record)

    # Watching

    async def _watch(self) -> None:
        """Act on what nodes say, until the guest has ended."""
        try:
            while not self.ended.is_set():
                node, event, data = await self._heard.get()
                await self._heard_of(node, event, data)
        except (ColoError, ControlError) as exc:
            self._fail(str(exc))

    async def _heard_of(self, node: PairNode, event: str, data: dict[str, Any]) -> None:
        match event:
            case "SHUTDOWN":
                self._say("guest-ended", {"node": node.name, "reason": data.get("reason")})
                self.ended.set()
            case "COLO_EXIT":
                await self._left_colo(node, data)
            case _ if event == EXIT and node is self.state.primary:
                self._say("died", {"node": node.name, "role": "primary", "status": data["status"]})
                self._died(node, self.state.secondary)
            case _ if event == EXIT and node is self.state.secondary:
                self._say("died", {"node": node.name, "role": "secondary", "status": data["status"]})
                self._died(node, self.state.primary)
            case _:
                return
        await self._notify()

    def _died(self, node: PairNode, other: PairNode | None) -> None:
        """The other one goes on, if there is one and it can."""
        self.state.lost.append(node)
        if other is None or not other.alive:
            self._fail(f"node {node.name} died and no other one is alive: {node.last_words()}")
        elif node is self.state.primary and not self.state.protected:
            self._fail(f"node {node.name} died while nobody followed it: {node.last_words()}")

    async def _left_colo(self, node: PairNode, data: dict[str, Any]) -> None:
        """A node acts on its own now, or has been told that the other one does.

        One that lost may say so when it has been ended already, because the winner was heard first.
        """
        if node not in (self.state.primary, self.state.secondary):
            return
        status = await node.execute("query-status")
        self._say("colo-exit", {"node": node.name, **data, "running": status["running"]})
        if not status["running"]:
            await self._end_loser(node)
            return
        other = self.state.primary if node is self.state.secondary else self.state.secondary
        self.state.protected = False
        self.state.failovers += 1
        self._is_primary(node)
        if other is not None:
            await self._end_loser(other)
        if self.options.reprotect:
            await self._protect_again()

    async def _end_loser(self, node: PairNode) -> None:
        """A node that lost holds a TAP and nothing else."""
        if node.alive:
            node.kill()
        await node.stop()
        if node not in self.state.lost:
            self.state.lost.append(node)

    async def _protect_again(self) -> None:
        for attempt in range(1, REPROTECT_TRIES + 1):
            try:
                await self._protect()
                return
            except (ColoError, ControlError) as exc:
                self._say("unprotected", {"attempt": attempt, "reason": str(exc)})
                if self.state.secondary is not None:
                    await self._end_loser(self.state.secondary)
                    self.state.secondary = None
                if self.state.primary is None or not self.state.primary.alive:
                    raise

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._say("failed", {"reason": reason})
        self.ended.set()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # For people and tests

    async def until(self, happened: Callable[[PairState], bool], limit_s: float) -> None:
        """Wait for a state; ColoError when it does not come, or the pair has failed."""

        def over() -> bool:
            return happened(self.state) or self.failure is not None

        try:
            async with asyncio.timeout(limit_s), self._changed:
                await self._changed.wait_for(over)
        except TimeoutError:
            raise ColoError(f"pair {self.options.name}: {limit_s:g} s passed: {self.state}") from None
        if self.failure is not None:
            raise ColoError(self.failure)

    def explain(self) -> list[str]:
        """The commands that do by hand what ``start`` does."""
        return explain(self.options, self.home, self.network)

    # Stopping

    async def stop(self) -> None:
        """End everything, in an order in which nobody takes over; twice is once."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        for node in (self.state.secondary, self.state.primary):
            if node is not None:
                await node.stop()
        self.state = PairState(lost=self.state.lost, failovers=self.state.failovers)
        self.network.close()
        runtime.remove(self._record)


def _network(options: PairOptions) -> Network | HubNetwork:
    if options.network == "hub":
        return HubNetwork(options.name, options.publish)
    return Network(f"colo-{options.name}", options.publish)


def explain(options: PairOptions, home: Path, network: Network | HubNetwork) -> list[str]:
    """What ``colo up`` does, as commands for a shell."""
    boot = ["colo", "run", options.guest, "--free-running", "--net", network.unplugged]
    boot += ["--exit-on", f"'GUEST-READY {options.guest}'", "--save", f"{home}/booted.snapshot"]
    enter = f"ip netns exec {network.name} " if isinstance(network, Network) else ""
    node = [
        "colo", "node", options.guest, "--load", f"{home}/booted.snapshot", "--pair", options.name,
        "--arbiter", f"file:{home}/arbiter", *options.node_words,
    ]  # fmt: skip
    primary = [*node, "--name", "n0", "--qmp", f"{home}/n0.qmp", "--net", "tap=tap-a"]
    secondary = [*node, "--name", "n1", "--qmp", f"{home}/n1.qmp", "--net", "tap=tap-b"]
    secondary += ["--incoming", f"unix:{home}/n1.link"]
    capability = '[{"capability": "x-colo", "state": true}]'
    return [
        f"mkdir -p {home}/arbiter",
        " ".join(boot),
        *network.explain(),
        enter + " ".join(primary) + " &",
        enter + " ".join(secondary) + " &",
        f"# on {home}/n0.qmp (qmp-shell {home}/n0.qmp):",
        f'{{"execute": "migrate-set-capabilities", "arguments": {{"capabilities": {capability}}}}}',
        f'{{"execute": "migrate", "arguments": {{"uri": "unix:{home}/n1.link"}}}}',
        "# and after a failover: a new secondary, and migrate on the survivor's socket",
    ]
