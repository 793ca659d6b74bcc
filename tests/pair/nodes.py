"""Real ``colo node`` processes for tests: started in a twelfth of a second, driven by QMP, watched.

A node is started by a server process that has imported everything and forks (multiprocessing's
forkserver): what runs is ``colo.cli.main(["node", ...])`` in a process of its own, with its own
descriptors and signals, without paying for numba and the engine again each time.

The guest is ``counter``, free-running: it prints some twenty lines a second, and says on each which
one it is.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from colo.errors import ControlError
from colo.qmp.client import Client
from colo.transport.address import Address
from tests.pair.relay import Relay

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
"""Of every wait: far more than anything here takes on a busy host."""
LOOK_S = 0.003
COUNTER = ("--multiboot", str(ROOT / "guests/bare/counter.elf"), "--append", "mib=1 ms=10", "--ram", "16")
TIMING = ("--checkpoint-delay", "5", "--heartbeat", "50", "--silence", "3000")
"""A silence that no busy host reaches: a killed node is noticed by the end of its sockets."""
PRELOADED = [
    "pytest", "numpy", "numba", "colo.cli", "colo.node.process", "colo.pages.scan", "colo.network.namespace",
    "vmm.guest", "vmm.machine", "vmm.hashing_kernel", "vmm.boot.multiboot",
]  # fmt: skip
PR_SET_PDEATHSIG = 1
STACKS = signal.SIGUSR1
"""Has a node write every thread's stack to its log."""
STACKS_S = 1.0

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does; the server inherits it
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


Mischief = Callable[[], None]
"""What a test does to a node from inside (:mod:`tests.pair.mischief`)."""


def no_mischief() -> None:
    """To most."""


def _node(log: str, words: list[str], mischief: Mischief) -> None:
    """In the new process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no node outlives its test
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.register(STACKS)
    mischief()
    from colo import cli

    sys.exit(cli.main(words))


def until(
    happened: Callable[[], object],
    what: str | Callable[[], str] = "a condition does not come true",
    limit_s: float = LIMIT_S,
) -> None:
    """Returns when it has; ``what`` is wrong, or says so then, when it has not."""
    deadline = time.monotonic() + limit_s
    while not happened():
        late = time.monotonic() >= deadline
        assert not late, f"{limit_s:g} s passed: {what if isinstance(what, str) else what()}"
        time.sleep(LOOK_S)


class Node:
    """A started node.  Files of its name in ``place`` have its console, log and trace."""

    def __init__(
        self, place: Path, name: str, words: tuple[str, ...], mischief: Mischief = no_mischief
    ) -> None:
        self.name = name
        self.qmp = place / f"{name}.qmp"
        self.link = Address.parse(f"unix:{place / f'{name}.link'}")
        self._console, self._log, self._trace = (place / f"{name}.{kind}" for kind in ("out", "log", "trace"))
        own = ["--name", name, "--qmp", str(self.qmp), "--console", str(self._console)]
        own += ["--trace", str(self._trace)]
        self.process: BaseProcess = _server.Process(
            target=_node, args=(str(self._log), ["node", *words, *own], mischief), name=name, daemon=True
        )
        self.process.start()
        self._client: Client | None = None

    def ready(self) -> Node:
        """When its control socket answers."""
        until(self._connected, f"{self.name} does not start: {self.log}")
        return self

    def _connected(self) -> bool:
        assert self.alive, f"{self.name} ended while it started: {self.log}"
        try:
            self._client = Client(self.qmp, LIMIT_S)
        except ControlError:
            return False  # not yet: it binds its socket before it answers
        return True

    # What it says

    @property
    def said(self) -> bytes:
        """By its guest, to the world."""
        return self._console.read_bytes()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Of its trace; the last line may be in the making."""
        lines = self._trace.read_text().split("\n")[:-1]
        return [found for line in lines if (found := json.loads(line))["event"] == name]

    def told(self, name: str) -> dict[str, Any]:
        """The first of these events, waited for: another process says it, at its own time."""
        until(lambda: self.events(name), lambda: f"{self.name} does not say {name}: {self.log}")
        return self.events(name)[0]

    def listens(self) -> str:
        """Where, as its trace says."""
        return str(self.told("listening")["address"])

    @property
    def epoch(self) -> int:
        """The last one that it committed as a primary, of the present pairing."""
        epochs = self.events("epoch")
        return int(epochs[-1]["epoch"]) if epochs else -1

    # What it is told

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def execute(self, command: str, /, **arguments: Any) -> Any:
        return self.client.execute(command, **arguments)

    def migrate(self, address: Address) -> None:
        """Begin to be protected by the node there."""
        self.execute("migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}])
        self.execute("migrate", uri=str(address))

    @property
    def migration(self) -> str:
        return str(self.execute("query-migrate").get("status", "none"))

    @property
    def status(self) -> str:
        return str(self.execute("query-status")["status"])

    @property
    def facts(self) -> dict[str, Any]:
        """``x-node``."""
        found: dict[str, Any] = self.execute("query-colo-status")["x-node"]
        return found

    def event(self, name: str) -> dict[str, Any]:
        """The data of the next one of that name."""
        return self.client.wait_event(name, timeout_s=LIMIT_S).data

    # What is done to it

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """``kill -9``; dead when this returns."""
        self.process.kill()
        self.process.join(LIMIT_S)
        assert not self.alive

    def ended(self) -> int:
        """Its exit status, when it has ended by itself."""
        self.process.join(LIMIT_S)
        assert self.process.exitcode is not None, f"{self.name} does not end: {self.log}"
        return self.process.exitcode

    def close(self) -> None:
        """Dead, with where it was in its log."""
        if self._client is not None:
            self._client.close()
        if self.alive:
            before = len(self.log)
            self.signal(STACKS)
            with suppress(AssertionError):  # it is too stuck for that
                until(lambda: len(self.log) > before, limit_s=STACKS_S)
            self.kill()


class Bench:
    """Nodes of one pair, and the relays between them; all of it gone at the end."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.nodes: dict[str, Node] = {}
        self.relays: list[Relay] = []
        self.arbiter = place / "arbiter"
        self.arbiter.mkdir()

    def start(
        self,
        name: str,
        *words: str,
        guest: tuple[str, ...] = COUNTER,
        mischief: Mischief = no_mischief,
    ) -> Node:
        """Started, and not waited for.  Words that are given twice count the last time."""
        fixed = (*guest, *TIMING, "--pair", "p", "--arbiter", f"file:{self.arbiter}")
        node = Node(self.place, name, (*fixed, *words), mischief)
        self.nodes[name] = node
        return node

    def incoming(
        self,
        name: str,
        *words: str,
        guest: tuple[str, ...] = COUNTER,
        mischief: Mischief = no_mischief,
    ) -> Node:
        """A secondary at its own Unix socket."""
        words = ("--incoming", f"unix:{self.place / f'{name}.link'}", *words)
        return self.start(name, *words, guest=guest, mischief=mischief)

    def relay(self, target: Node, name: str = "r") -> Relay:
        relay = Relay(Address.parse(f"unix:{self.place / name}"), target.link)
        self.relays.append(relay)
        return relay

    def two(self, *words: str, guest: tuple[str, ...] = COUNTER) -> tuple[Node, Node, Relay]:
        """Ready, with a relay between them, and strangers yet."""
        primary, secondary = self.start("a", *words, guest=guest), self.incoming("b", *words, guest=guest)
        primary.ready()
        return primary, secondary.ready(), self.relay(secondary)

    def joined(self, *words: str, guest: tuple[str, ...] = COUNTER) -> tuple[Node, Node]:
        """In COLO state, without a relay: what the primary's kernel took is in the secondary's queue."""
        primary, secondary = self.start("a", *words, guest=guest), self.incoming("b", *words, guest=guest)
        primary.ready()
        protect(primary, secondary.ready().link)
        return primary, secondary

    def secured(
        self,
        certificates: Path,
        *words: str,
        guest: tuple[str, ...] = COUNTER,
        mischief: Mischief = no_mischief,
    ) -> tuple[Node, Node, Relay]:
        """In COLO state over TLS.  The secondary's own certificate has the name that is dialled."""
        words = ("--certs", str(certificates), *words)
        primary = self.start("a", *words, guest=guest, mischief=mischief)
        secondary = self.start("localhost", *words, "--incoming", "tcp:localhost:0", guest=guest)
        primary.ready()
        relay = Relay(Address(host="localhost"), Address.parse(secondary.ready().listens()), opaque=True)
        self.relays.append(relay)
        protect(primary, relay.address)
        return primary, secondary, relay

    def pair(self, *words: str, guest: tuple[str, ...] = COUNTER) -> tuple[Node, Node, Relay]:
        """In COLO state."""
        primary, secondary, relay = self.two(*words, guest=guest)
        protect(primary, relay.address)
        return primary, secondary, relay

    def close(self) -> None:
        for relay in self.relays:
            relay.close()
        for node in self.nodes.values():
            node.close()

    def tell(self) -> None:
        """Everything that a failed test could be understood by."""
        for node in self.nodes.values():
            print(f"---- {node.name}, exit status {node.process.exitcode}\n{node.log}")
        for relay in self.relays:
            print(f"---- the last words on the link: {' '.join(relay.words[-40:])}")


def protect(primary: Node, address: Address) -> None:
    """Until the pair is in COLO state."""
    primary.migrate(address)
    until(lambda: settled(primary) == "colo", f"not in COLO: {primary.log}")


def settled(primary: Node) -> str:
    info = primary.execute("query-migrate")
    assert info["status"] not in ("failed", "cancelled", "completed"), info
    return str(info["status"])


@contextmanager
def bench(place: Path) -> Iterator[Bench]:
    made = Bench(place)
    try:
        yield made
    finally:
        made.close()
        made.tell()  # which pytest shows when the test failed
        complaints = [node.name for node in made.nodes.values() if "Traceback" in node.log]
        assert not complaints, f"a fault of ours in the log of {complaints}"
