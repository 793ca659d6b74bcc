"""A node as a process: ``colo node``.

The main thread runs the guest, a second one the loop with the link and the control socket; heartbeats
have a third.  The interpreter lock is given back whenever the guest executes, pages are compared or
copied, or a socket is waited for, so the loop is held up by the guest's device accesses only.

Lines on standard output say what happens, one JSON object each with ``--json``; the first one,
``ready``, when the control socket answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from colo import arbiter
from colo.filters import FilteredNet, FilterSpec, OutputHold, parse
from colo.filters.console import HeldConsole
from colo.network import namespace as network_namespace
from colo.node.guest_thread import GuestThread
from colo.node.node import Node
from colo.node.replica import EpochRecord, Replica
from colo.node.standby_ram import StandbyRam
from colo.node.tunables import Tunables
from colo.qmp import commands as qmp_commands
from colo.qmp import server as qmp
from colo.transport.certs import Credentials
from vmm.backends.net import NetBackend
from vmm.backends.terminal import Outlet
from vmm.config import EPOCH_2026_S
from vmm.errors import BackendError, ConfigError
from vmm.launch import LaunchOptions, launch
from vmm.machine import Ended, Machine
from vmm.ram import Ram

T = TypeVar("T")

SWITCH_INTERVAL_S = 0.0005
"""How long one thread may keep the interpreter from another: the guest must not wait 5 ms for the loop."""
CLOSE_WAIT_S = 5.0
STDOUT = 1


@dataclass
class NodeOptions:
    """What ``colo node`` is told."""

    launch: LaunchOptions
    qmp: Path
    name: str = "node"
    pair: str = "pair"
    guest_name: str = "images"
    incoming: str | None = None
    arbiter: str = "manual"
    credentials: tuple[str, str] | None = None
    """Directory of certificates, and this node's name in it."""
    namespace: str | None = None
    user_namespace: str | None = None
    paused: bool = False
    generation: int = 0
    filters: tuple[str, ...] = ()
    console: Path | None = None
    trace: Path | None = None
    json: bool = False
    tunables: Tunables = field(default_factory=Tunables)


class Lines:
    """What a node says of itself: for people or as JSON on standard output, and all of it in a trace.

    Whoever reports may be taking over, so a full disk or a reader that left costs lines and nothing else:
    the next line that can be written says how many (``lost_lines``).
    """

    QUIET = ("epoch",)
    """Too many for a person."""

    def __init__(self, options: NodeOptions, trace: int | None) -> None:
        """``trace`` is the descriptor of a file to append to."""
        self._json = options.json
        self._name = options.name
        self._trace = trace
        self._lost = 0
        self.epoch: Callable[[EpochRecord], None] = lambda record: None

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        if event == "epoch":
            self.epoch(facts["record"])
            facts = asdict(facts["record"])
        if self._lost:
            facts = {**facts, "lost_lines": self._lost}
        now = time.monotonic()  # one clock for all processes of a host: traces can be laid side by side
        line = json.dumps({"event": event, "node": self._name, "monotonic_s": round(now, 6), **facts})
        if self._trace is not None:
            self._write(self._trace, line)
        if event in self.QUIET:
            return
        words = " ".join(f"{key}={value}" for key, value in facts.items())
        self._write(STDOUT, line if self._json else f"{self._name}: {event} {words}".rstrip())

    def _write(self, descriptor: int, line: str) -> None:
        """At once: nothing waits in a buffer that would be written, and fail, later."""
        try:
            os.write(descriptor, f"{line}\n".encode())
        except OSError:
            self._lost += 1


class LoopThread:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loop")

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run ``work`` in the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)


class LogConsole:
    """A console that is a file, or nothing; it brings no input."""

    pending_output = False

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("ab", buffering=0)
        self._outlet = None if self._file is None else Outlet(self._file.fileno())

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        return None

    def write(self, data: bytes) -> None:
        if self._outlet is not None:
            self._outlet.write(data)

    def flush(self) -> None:
        if self._outlet is not None:
            self._outlet.flush()

    def close(self) -> None:
        if self._outlet is not None and self._file is not None:
            self._outlet.close()
            self._file.close()
            self._outlet = self._file = None


class NodeProcess:
    """Everything of one node, opened in order and closed in the other one."""

    def __init__(self, options: NodeOptions, opened: ExitStack) -> None:
        self._options = options
        self._status = 0
        self.lines = Lines(options, _trace(options, opened))
        self.hold = OutputHold()
        self.nets: list[FilteredNet] = []
        self.standby: StandbyRam | None = None
        self.console = HeldConsole(LogConsole(options.console), self.hold, muted=options.incoming is not None)
        opened.callback(self.console.close)
        loading = threading.Thread(target=_load_kernels)
        loading.start()
        self.machine = self._launch(opened)
        loading.join()  # beats that begin with a pairing must not wait for an import
        for text in options.filters:
            self._add_filter(parse(text))
        self.guest = GuestThread(self.machine, self._ended)
        if options.incoming is not None:
            self.guest.freeze()
        self.loop = opened.enter_context(LoopThread())
        self.node: Node = self.loop.call(self._start())
        opened.callback(lambda: self.loop.call(self._stop(), CLOSE_WAIT_S))

    def _launch(self, opened: ExitStack) -> Machine:
        options = self._options

        def wrap(number: int, backend: NetBackend) -> NetBackend:
            net = FilteredNet(
                backend,
                f"net{number}",
                now_ns=lambda: self.machine.clock.now_ns,
                epoch_s=options.launch.epoch_s or EPOCH_2026_S,
                muted=options.incoming is not None,
            )
            self.nets.append(net)
            return net

        def building(text: str) -> None:
            self.lines("guest", {"building": text})

        def stand_by(ram_mib: int) -> Ram:
            self.standby = StandbyRam(ram_mib)
            return self.standby.ram

        incoming = None if options.incoming is None else stand_by
        launched = launch(options.launch, [self.console], building, wrap=wrap, incoming=incoming)
        return opened.enter_context(launched).machine

    def _add_filter(self, spec: FilterSpec) -> None:
        for net in self.nets:
            if net.name == spec.netdev:
                net.add(spec, self.hold)
                return
        raise ConfigError(
            f"filter {spec.id}: netdev {spec.netdev!r}: expected one of"
            f" {', '.join(net.name for net in self.nets) or 'none: the machine has no card'}"
        )

    # In the loop thread

    async def _start(self) -> Node:
        options = self._options
        replica = Replica(
            guest=self.guest,
            nets=self.nets,
            consoles=[self.console],
            hold=self.hold,
            pair=options.pair,
            node=options.name,
            generation=options.generation,
            report=self.lines,
            now_s=time.monotonic,
            standby=self.standby,
        )
        node = Node(
            replica,
            arbiter.parse(options.arbiter),
            options.guest_name,
            self._emit,
            self.quit,
            tunables=options.tunables,
            credentials=Credentials(*options.credentials) if options.credentials else None,
        )
        self.lines.epoch = node.epoch_committed
        self._server = qmp.Server(qmp_commands.registry(node))
        if options.incoming is not None:
            node.awaits_primary = True
            if options.incoming != "defer":
                await node.migrate_incoming(options.incoming)
        await self._server.start(options.qmp)
        self.lines("ready", {"qmp": str(options.qmp)})
        return node

    def _emit(self, name: str, data: Any) -> None:
        self._server.emit(name, data)

    async def _stop(self) -> None:
        await self.node.close()
        await self._server.close()

    # In the main thread

    def _ended(self, ended: Ended) -> None:
        self.node.guest_ended(ended)

    def quit(self, status: int) -> None:
        """End the process with this status; from any thread."""
        self._status = status
        self.guest.quit()

    def run(self) -> int:
        """Until the node is told to end, or its guest has ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.quit(0))
        if self._options.incoming is None and not self._options.paused:
            self.guest.start()
        self.guest.run()
        return self._status


def _load_kernels() -> None:
    """Half a second of importing and linking, of which a first checkpoint should know nothing."""
    import colo.pages.scan  # noqa: F401
    import vmm.hashing_kernel  # noqa: F401


def run(options: NodeOptions) -> int:
    """The whole life of a node process; its exit status."""
    if options.namespace is not None:
        network_namespace.enter(options.namespace, options.user_namespace)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as opened:
        return NodeProcess(options, opened).run()


def _trace(options: NodeOptions, opened: ExitStack) -> int | None:
    if options.trace is None:
        return None
    try:
        return opened.enter_context(options.trace.open("ab", buffering=0)).fileno()
    except OSError as exc:
        raise BackendError(f"trace {options.trace}: {exc.strerror}: expected a file to append to") from None
