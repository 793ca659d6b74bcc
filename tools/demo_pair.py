"""The story of a protected pair: formed, counted on, killed on one side and then on the other.

Everything shown is somebody's own word: the supervisor's events (:class:`colo.pair.pair.Pair`), the nodes'
answers over QMP, what they wrote to their traces, and what a witness outside saw
(:mod:`tools.demo_witness`).  The pair is the one that ``colo up`` runs, under the same supervisor, in the
place where ``colo status`` and ``colo kill`` find it.

Two casts: Redis in a network namespace, with clients (:data:`REDIS`), and the built-in counter on a hub,
of which the world has its console alone (:data:`COUNTER`), for where neither root nor user namespaces nor
a network are to be had.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vmm.guest
from colo.errors import ColoError, NetworkError
from colo.network.ports import Publish, listen
from colo.pair.node import PairNode
from colo.pair.pair import Pair, PairOptions
from tools import demo_trace
from tools.demo_guest import DemoFailed
from tools.demo_lines import MIB, Steps, milliseconds
from tools.demo_trace import Traces
from tools.demo_witness import ConsoleReader, CountingClients, Witness
from vmm.errors import VmmError

NAME = "demo"
LOOK_S = 0.2
"""How often a live line is renewed."""
TAKE_OVER_S = 30.0
PROTECT_S = 180.0
"""The supervisor gives a synchronisation two minutes."""
SETTLE_S = 1.0
"""After a failover: waits that it caused have ended by then, and those of the synchronisation not begun."""
PORTS_TRIED = 100

Facts = dict[str, Any]


@dataclass(frozen=True)
class Cast:
    """Who plays."""

    guest: str
    network: str
    port: int | None = None
    """That clients on this host reach."""


POLICIES_SAY = {
    "lockstep": "the secondary executes the same, so answers do not wait",
    "colo": "both guests run, and what both say goes out at once",
}

REDIS = Cast("redis", "namespace", 6379)
COUNTER = Cast("counter", "hub")


@dataclass
class Plan:
    """How long to count for, and with how many."""

    cast: Cast = REDIS
    seconds: float = 8.0
    connections: int = 8
    node_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """One event of the supervisor, and when."""

    event: str
    facts: Facts
    at_s: float = field(default_factory=time.monotonic)


class Story:
    """One pair, from nothing to the verdict.  ``facts`` is everything that was found."""

    def __init__(self, plan: Plan, steps: Steps, traces: Path) -> None:
        self.plan, self.steps = plan, steps
        self.facts: Facts = {"guest": plan.cast.guest, "kills": [], "complaints": []}
        self.traces = Traces(traces)
        self.port = None if plan.cast.port is None else free_port(plan.cast.port)
        self._said: asyncio.Queue[Said] = asyncio.Queue()
        self._witness: Witness | None = None
        publish = () if self.port is None else (Publish(self.port, plan.cast.port or 0),)
        self.pair = Pair(
            PairOptions(
                plan.cast.guest, NAME, publish, plan.cast.network, node_words=plan.node_words, trace=traces
            ),
            self._hear,
        )
        self._starting: asyncio.Task[None] | None = None

    def _hear(self, event: str, facts: Facts) -> None:
        self._said.put_nowait(Said(event, facts))

    async def next(self, limit_s: float) -> Said:
        """What the supervisor says next.  DemoFailed when the pair has failed, or is silent for so long."""
        async with asyncio.timeout(limit_s):
            said = await self._said.get()
        if said.event == "failed":
            raise DemoFailed(f"pair {NAME}: {said.facts['reason']}")
        return said

    # From nothing to a protected guest

    async def form(self) -> None:
        self._starting = asyncio.create_task(self.pair.start())
        self._starting.add_done_callback(lambda _: self._hear("started", {}))
        began, once, first = time.monotonic(), "resumed from snapshot", True
        while True:
            said = await self.next(PROTECT_S + PROTECT_S)
            match said.event:
                case "guest":
                    self.steps.live(said.facts["doing"])
                    if said.facts["doing"].startswith("booting"):
                        once = "booted once"
                case "guest-ready":
                    what = await asyncio.to_thread(described, self.plan.cast.guest)
                    self.steps.step("guest", f"{what}; {once}", said.at_s - began)
                case "network":
                    self._tell_network()
                case "node":
                    self.steps.live(f"node {said.facts['node']}, process {said.facts['pid']}, has started")
                case "synchronising":
                    first = first and not await self._tell_primary(said.facts)
                    self.steps.live(synchronising(said.facts))
                case "protected":
                    if first:
                        await self._tell_primary(said.facts)
                    self.tell_secondary("secondary", said.facts, "protected")
                case "started":
                    await self._starting  # raises what went wrong
                    return

    def _tell_network(self) -> None:
        network = self.pair.network
        if self.port is None:
            what = "a hub in user space; only guests are on it: no clients, no published port"
        else:
            what = f"namespace {network.name} of process {network.pid}, guest {network.guest_address},"
            what += f" published on 127.0.0.1:{self.port}"
        self.facts["network"] = {"name": network.name, "port": self.port}
        self.steps.step("network", what)

    async def _tell_primary(self, progress: Facts) -> bool:
        """False while the primary does not know yet how it finds changed pages."""
        primary = self.pair.state.primary
        assert primary is not None
        facts = await node_facts(primary)
        if facts["dirty-source"] == "none":
            return False
        source = "from the kernel" if facts["dirty-source"] == "kernel" else "found by comparing"
        ram = progress.get("total", 0) // MIB
        self.facts["primary"] = {"pid": primary.pid, "ram_mib": ram, "policy": facts["policy"]}
        self.facts["primary"] |= {"dirty_source": facts["dirty-source"], "why": facts["dirty-reason"]}
        self.steps.step(
            "primary", f"pid {primary.pid}, {ram} MiB, policy {facts['policy']}, dirty pages {source}"
        )
        return True

    def tell_secondary(self, name: str, progress: Facts, state: str) -> None:
        secondary = self.pair.state.secondary
        pid = secondary.pid if secondary is not None else 0
        sent, seconds = progress.get("transferred", 0) / MIB, progress["seconds"]
        self.facts.setdefault("synchronised", []).append({"pid": pid, "mib": sent, "seconds": seconds})
        self.steps.step(name, f"pid {pid}, {sent:.1f} MiB synchronised in {seconds:.1f} s: {state}")

    # The witness

    async def call_witness(self) -> None:
        if self.port is None:
            self._witness = ConsoleReader(self.pair.home)
            return
        clients = CountingClients(self.port, self.plan.connections)
        self._witness = clients
        await clients.start()

    @property
    def witness(self) -> Witness:
        assert self._witness is not None
        return self._witness

    async def show_live(self) -> None:
        """The last checkpoint, in place."""
        primary = self.pair.state.primary
        if primary is not None and self.pair.state.protected:
            try:
                facts = await node_facts(primary)
            except ColoError:  # killed meanwhile: there is no last checkpoint
                return
            self.steps.live(demo_trace.checkpoint(facts, self.witness.live()))

    async def count(self, seconds: float, phase: str) -> None:
        """Let it run, and say what its checkpoints cost."""
        primary, began = self.pair.state.primary, time.monotonic()
        assert primary is not None
        while time.monotonic() < began + seconds:
            await self.show_live()
            await asyncio.sleep(LOOK_S)
        seen = await self.witness.phase(f"after {phase}")
        found = self.traces.epochs(primary.name, began)
        self.facts[phase] = {"epochs": found, "seen": seen}
        self.steps.note(demo_trace.checkpoints(found))
        self.steps.note(self.witness.sentence(seen))

    # kill -9

    async def kill(self, role: str) -> None:
        """Kill the node of that role; told when the pair is protected again."""
        await self._settle()
        state = self.pair.state
        victim, survivor = state.primary, state.secondary
        if role == "secondary":
            victim, survivor = survivor, victim
        assert victim is not None, state
        assert survivor is not None, state
        before = (await node_facts(survivor))["generation"]
        await self.witness.phase(f"{role} killed")
        self.steps.step(f"kill -9 {victim.pid}", f"(the {role})")
        at_s = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        await self._until("colo-exit", TAKE_OVER_S)
        await asyncio.sleep(SETTLE_S)
        facts = self.traces.failover(survivor.name, at_s)
        facts["generation"] = (await node_facts(survivor))["generation"]
        facts["won"] = facts["generation"] > before
        for line in demo_trace.survived("secondary" if role == "primary" else "primary", facts):
            self.steps.note(line)
        seen = await self.witness.phase("synchronising again")
        self.steps.note(self.witness.sentence(seen))
        self.facts["kills"].append({"role": role, "pid": victim.pid, "survivor": facts, "seen": seen})
        await self._protected_again(at_s)

    async def change_policy(self, name: str) -> None:
        """While clients work: another rule for what may be said before a checkpoint."""
        await self._settle()
        primary = self.pair.state.primary
        assert primary is not None
        await primary.execute("migrate-set-parameters", x_policy=name)
        await primary.execute("x-colo-checkpoint")  # which is when it takes effect
        await self.witness.phase(f"policy {name}")
        self.steps.step("policy", f"{name}: {POLICIES_SAY[name]}")

    async def _settle(self) -> None:
        """A busy host may have parted the two before we did: then that is told, and mended, first."""
        while not self._said.empty():
            said = await self.next(LOOK_S)
            if said.event == "colo-exit" and said.facts["running"]:
                self.tell_parting(said.facts)
                again = await self._until("protected", PROTECT_S)
                self.tell_secondary("secondary", again.facts, "protected again")

    def tell_parting(self, facts: Facts) -> None:
        """Two nodes that parted without our doing, in the words of the one that goes on."""
        reason = self.traces.failover(facts["node"], 0.0).get("reason", facts["reason"])
        self.facts["partings"] = self.facts.get("partings", 0) + 1
        self.steps.note(f"node {facts['node']}, the {facts['mode']}, goes on alone: {reason}")

    async def _protected_again(self, at_s: float) -> None:
        said = await self._until("protected", PROTECT_S)
        self.tell_secondary("secondary", said.facts, "protected again")
        seconds = said.at_s - at_s
        seen = await self.witness.phase("protected again")
        self.facts["kills"][-1] |= {"protected_s": seconds, "seen_meanwhile": seen}
        wait = f"; longest wait meanwhile {milliseconds(seen['longest_ms'])}" if "longest_ms" in seen else ""
        self.steps.note(f"{seconds:.1f} s after the kill{wait}")

    async def _until(self, event: str, limit_s: float) -> Said:
        """The next such event; what comes before it is shown in passing."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                said = await self.next(min(LOOK_S, max(deadline - time.monotonic(), 1e-3)))
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise DemoFailed(
                        f"pair {NAME}: waiting for {event!r}: nothing in {limit_s:.0f} s; nodes: "
                        + self._last_words()
                    ) from None
                await self.show_live()
                continue
            if said.event == event:
                return said
            if said.event == "guest-ended":
                raise DemoFailed(f"pair {NAME}: the guest ended ({said.facts.get('reason')})")
            if said.event == "synchronising":
                self.steps.live(synchronising(said.facts))
            elif said.event == "unprotected":
                self.steps.note(f"attempt {said.facts['attempt']} failed: {said.facts['reason']}")

    def _last_words(self) -> str:
        state = self.pair.state
        nodes = [each for each in (state.primary, state.secondary, *state.lost) if each is not None]
        return "; ".join(f"{each.name}: {each.last_words()}" for each in nodes)

    # The end

    async def judge(self) -> bool:
        """What the witness saw altogether; whether all was right."""
        seen = await self.witness.finish()
        self.facts["seen"] = seen
        self.facts["complaints"] += seen["complaints"]
        for complaint in seen["complaints"]:
            self.steps.note(f"NOT RIGHT: {complaint}")
        for line in seen["verdict"] if not seen["complaints"] else ():
            self.steps.note(line)
        return not seen["complaints"]

    async def close(self) -> None:
        """No process and no namespace is left."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._witness is not None:
            await self._witness.close()
        await self.pair.stop()


async def node_facts(node: PairNode) -> Facts:
    """x-node: what a node says of itself."""
    status = await node.execute("query-colo-status")
    facts: Facts = status["x-node"]
    return facts


def synchronising(facts: Mapping[str, Any]) -> str:
    left, total = facts.get("remaining", 0) // MIB, facts.get("total", 0) // MIB
    return f"synchronising: {left} of {total} MiB left, round {facts.get('dirty-sync-count', 0)}"


def free_port(wanted: int) -> int:
    """``wanted``, or the next one that nobody listens at."""
    for port in range(wanted, wanted + PORTS_TRIED):
        try:
            for _, listener in listen([Publish(port, wanted)]):
                listener.close()
            return port
        except NetworkError:
            continue
    raise DemoFailed(
        f"publishing the guest's port: 127.0.0.1:{wanted} and {PORTS_TRIED - 1} ports after it are in use"
    )


def described(guest: str) -> str:
    """A guest's programs and where they come from, by the packages that it was made of."""
    try:
        packages = vmm.guest.open(guest).build().packages
    except VmmError as exc:
        raise DemoFailed(f"guest {guest}: {exc}") from exc
    kernels = [match for name in packages if (match := re.match(r"linux-image-(\d[\d.]*(-\d+)?)", name))]
    if not kernels:
        return f"{guest}, built in"
    version = re.sub(r"^\d+:", "", packages.get(f"{guest}-server", "")).partition("-")[0]
    debian = {match[1] for text in packages.values() if (match := re.search(r"[+~]deb(\d+)", text))}
    system = f"Debian {max(debian, key=int)}" if debian else "Ubuntu"
    return f"{guest} {version}: {system}, kernel {kernels[0][1]}".replace(" :", ":")
