"""A world: machines, switches, links, disks, arbiters and clients under one virtual clock and one seed.

    with World(seed=7) as world:
        pair = world.pair("redis", policy="colo")
        client = world.client(counting)                  # async def counting(host): ...
        world.run_until(lambda: pair.is_protected, 5)
        world.kill(pair.primary)
        world.run_for(2)
        print(world.digest_line)

Everything is in one thread.  Real machines run the real guests, and the nodes of a pair the real COLO code;
what the world replaces is what a host and a network are: clocks, sockets, threads and storage.  Two runs of
one scenario with one seed and one build have the same log, byte for byte (:mod:`colo.sim.events`), on any
host and under any load.

Time is the world's, in nanoseconds from its beginning; a machine's own clock goes as fast, from wherever it
stood (:mod:`colo.sim.guest`).

Limits.  What a processor needs for a checkpoint takes no virtual time.  One lookahead
(:mod:`colo.sim.agenda`) is the shortest delay of any link.  An ``interval`` of a ``filter-buffer`` is a
host's timer, and not for worlds.

A world can be forked between two events (:meth:`World.after_fork`), while its parent stands still: one
world is brought to where many are to begin, which :meth:`World.reseed` tells apart from there on.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from colo.faults.delay import Delay
from colo.faults.model import Fault
from colo.sim.agenda import Agenda
from colo.sim.events import EventLog, Line, short
from colo.sim.faults import arm
from colo.sim.host import Host
from colo.sim.image import Image
from colo.sim.loop import WorldError
from colo.sim.network import Cable, FarEnd, Switch
from colo.sim.node import SimNode
from colo.sim.pair import PairOptions, SimPair
from colo.sim.process import Process
from colo.sim.station import Station
from colo.sim.wire import Wire

CABLE = Delay(ns=50_000, spread_ns=10_000, distribution="uniform")
"""Of one cable, one way: two of them and a switch make a tenth of a millisecond in a rack."""
CLIENTS_MAX = 200
Actor = Callable[[Host], Coroutine[Any, Any, Any]]


class World:
    """One world.  Use it in a ``with`` statement."""

    def __init__(
        self,
        seed: int = 0,
        *,
        learns: bool = False,
        cable: Delay = CABLE,
        rate: int = 0,
        late: Delay | None = None,
    ) -> None:
        """``learns``: its switch learns where addresses are; a pair's bridge floods.  ``rate``: bytes a
        second of each cable, 0 without a limit.  ``late``: how late a node's loop may be when its guest's
        thread or a wire has something for it: other schedules of the same code.
        """
        self.seed = seed
        self.agenda = Agenda()
        self.log = EventLog()
        self.switch = Switch(learns)
        self.switches = {"": self.switch}
        self.nodes: dict[str, SimNode] = {}
        self.hosts: dict[str, Host] = {}
        self.pairs: dict[str, SimPair] = {}
        self.cables: dict[str, Cable] = {}
        self.wires: dict[str, Wire] = {}
        self.on_step: list[Callable[[SimNode, str], None]] = []
        """Told when a node says or hears a word, or changes: :class:`colo.faults.model.AtStep`."""
        self.on_frame: list[Callable[[str, str, bytes], None]] = []
        """Told of every frame: cable and direction (``client0.to``), what it did (``carries``), and it."""
        self.on_text: list[Callable[[SimNode, bytes], None]] = []
        """Told what a node's guest says on its console."""
        self._cable, self._rate, self._late = cable, rate, late
        self._stations: dict[str, int] = {}
        """Of machines and pairs, in the order in which they were made."""
        self._generators: dict[str, random.Random] = {}
        self._failure: BaseException | None = None
        self._opened = ExitStack()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in (*self.nodes.values(), *self.hosts.values()):
            if process.alive:
                process.alive = False
                process.bury()
        self._opened.close()
        gc.collect()  # a machine lies in cycles of wires and chips; its RAM is not to wait for a chance

    # What is in it

    def rng(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one more draw here changes nothing there."""
        return self._generators.setdefault(purpose, random.Random(f"{self.seed} {purpose}"))

    def reseed(self, seed: int) -> None:
        """From here on everything that is drawn is of another seed; what was drawn before stays."""
        self.seed = seed
        for purpose, generator in self._generators.items():
            generator.seed(f"{seed} {purpose}")

    def after_fork(self) -> None:
        """To be called first by a child of ``os.fork()`` that runs this world on.

        Its parent stands still until the child has ended, for what the child copies here is the parent's.
        """
        for node in self.nodes.values():
            if node.alive:
                node.after_fork()

    def machine(
        self, guest: str | Image, name: str = "machine", segment: str = "", **options: Any
    ) -> SimNode:
        """A machine that nobody protects; ``options`` are :meth:`Image.of`'s."""
        return self._alone(name, name, Image.of(guest, **options), segment)

    def _alone(self, name: str, station: str, image: Image, segment: str) -> SimNode:
        node = self.new_node(name, station, image, incoming=False, segment=segment)
        node.changed = lambda event, facts: self.stepped(node, event)
        node.guest.start()
        return node

    def pair(self, guest: str | Image, policy: str = "colo", name: str = "pair", **options: Any) -> SimPair:
        """A pair that begins to synchronise; ``options`` are :class:`PairOptions`'."""
        self._refuse_name(name, self.pairs)
        made = SimPair(self, name, Image.of(guest), PairOptions(policy=policy, **options))
        self.pairs[name] = made
        return made

    def add_switch(self, name: str, *, learns: bool = False) -> None:
        """One more segment, joined to the first by a cable of this name (towards the new one is ``to``)."""
        self._refuse_name(name, self.switches)
        self.switches[name] = Switch(learns)
        far = FarEnd(self.switches[name])
        far.cable = self._plug(name, far)

    def client(self, actor: Actor, name: str = "", segment: str = "") -> Host:
        """A host on a switch whose process runs ``actor(host)``."""
        number = len(self.hosts)
        name = name or f"client{number}"
        self._refuse_name(name, self.hosts)
        if number >= CLIENTS_MAX:
            raise WorldError(f"client {name}: a world has {CLIENTS_MAX} clients at most")
        host = Host(name, number, self.agenda, self._fail, self.rng(name), self.tell)
        self.hosts[name] = host
        host.stack.plug(self._plug(name, host, segment))
        host.actor = host.undertake(actor(host))
        return host

    def new_node(self, name: str, pair: str, image: Image, *, incoming: bool, segment: str = "") -> SimNode:
        self._refuse_name(name, self.nodes)
        node = SimNode(name, pair, image, self.agenda, self.tell, self._fail, incoming=incoming)
        if (late := self._late) is not None:
            rng = self.rng(f"scheduler {name}")
            node.late = lambda: late.draw(rng)
        node.overheard = lambda data: [told(node, data) for told in self.on_text]
        self.nodes[name] = node
        node.segment = segment
        station = self._stations.setdefault(pair, len(self._stations))
        for number, card in enumerate(node.cards):
            if station:
                card.station = Station(node.machine.config.nets[number].mac, station)
            card.cable = self._plug(name if number == 0 else f"{name}.net{number}", card, segment)
        return node

    def _plug(self, name: str, end: Any, segment: str = "") -> Cable:
        if segment not in self.switches:
            known = ", ".join(filter(None, self.switches)) or "none but the first"
            raise WorldError(f"{name}: no switch {segment!r} in this world: there is {known}")
        rng = self.rng(f"cable {name}")
        cable = Cable(
            name,
            self.agenda,
            self._frame,
            end,
            delay=self._cable,
            bytes_per_s=self._rate,
            draw=lambda delay: delay.draw(rng),
        )
        self.cables[name] = cable
        self.switches[segment].plug(cable)
        return cable

    def name_wire(self, name: str, wire: Wire) -> None:
        """The latest of a pair has the pair's name."""
        self.wires[name] = wire

    def _refuse_name(self, name: str, taken: dict[str, Any]) -> None:
        if name in taken:
            raise WorldError(f"{name!r} is in this world already: give it another name")

    # Time

    @property
    def now_ns(self) -> int:
        return self.agenda.now_ns

    @property
    def now_s(self) -> float:
        return self.agenda.now_ns / 1e9

    def at(self, at_ns: int, act: Callable[[], None]) -> None:
        """Do ``act`` at this time of the world."""
        self.agenda.at(at_ns, act)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.agenda.at(self.now_ns + round(seconds * 1e9), act)

    def run_for(self, seconds: float) -> None:
        self._run(self.now_ns + round(seconds * 1e9), lambda: False)

    def run_until(self, happened: Callable[[], object], limit_s: float) -> None:
        """Until it has, looked at between two events; WorldError when it does not within ``limit_s``."""
        began_s = self.now_s
        self._run(self.now_ns + round(limit_s * 1e9), lambda: bool(happened()))
        if not happened():
            raise WorldError(
                f"what was waited for did not happen between {began_s:.6f} s and {self.now_s:.6f} s of the"
                f" world (seed {self.seed}); its last events:\n{self.log.tail()}"
            )

    def _run(self, until_ns: int, over: Callable[[], bool]) -> None:
        try:
            self.agenda.run(until_ns, lambda: self._failure is not None or over())
        except WorldError:
            raise
        except Exception as exc:  # in a guest's thread, which is the end of its node on a host
            self._fail(exc)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise WorldError(
                f"at {self.now_ns} ns of the world (seed {self.seed}): {type(failure).__name__}: {failure};"
                f" its last events:\n{self.log.tail()}"
            ) from failure

    def _fail(self, failure: BaseException) -> None:
        self._failure = self._failure or failure

    # The log

    def tell(self, who: str, what: str, detail: str = "") -> None:
        self.log.add(Line(self.now_ns, who, what, detail))

    def _frame(self, who: str, what: str, frame: bytes) -> None:
        self.tell(who, what, f"{len(frame)} {short(frame)}")
        for told in self.on_frame:
            told(who, what, frame)

    def stepped(self, node: SimNode, event: str) -> None:
        for told in self.on_step:
            told(node, event)

    @property
    def digest(self) -> str:
        return self.log.digest

    @property
    def digest_line(self) -> str:
        """One line that proves what happened."""
        return f"seed {self.seed}: {self.now_ns} ns, {self.log.count} events, digest {self.digest}"

    # What can be done to it

    def process(self, name: str) -> Process:
        """The node or client of this name."""
        found = self.nodes.get(name) or self.hosts.get(name)
        if found is None:
            known = ", ".join((*self.nodes, *self.hosts)) or "nobody"
            raise WorldError(f"{name!r} is nobody in this world: there is {known}")
        return found

    def inject(self, *faults: Fault) -> None:
        """Arm faults, from now on (:mod:`colo.sim.faults`)."""
        arm(self, *faults)

    def kill(self, node: SimNode, *, silently: bool = False) -> None:
        """SIGKILL; ``silently``: with its host, so that no kernel tells the other node."""
        if node.alive:
            self.tell(node.name, "killed", "with its host" if silently else "")
            node.die(silently)
            self.at(self.now_ns, lambda: self._bury(node))

    def _bury(self, node: SimNode) -> None:
        for card in node.cards:
            for switch in self.switches.values():
                if card.cable is not None and switch.has(card.cable):
                    switch.unplug(card.cable)
        node.bury()

    def restart(self, node: SimNode, after_s: float) -> None:
        """Killed, and back after a while: a node of a pair to stand by, another one from its beginning."""
        self.kill(node)
        self.after(after_s, lambda: self._come_back(node))

    def _come_back(self, node: SimNode) -> None:
        self.tell(node.name, "comes back")
        for pair in self.pairs.values():
            if node in pair.nodes:
                pair.come_back()
                return
        self._alone(f"{node.name}'", node.replica.pair, node.image, node.segment)

    def slow(self, node: SimNode, factor: float, for_s: float | None = None) -> None:
        """Its guest runs so many times slower."""
        self.tell(node.name, "slow", f"{factor:g}")
        node.guest.slowness = max(1, round(factor))
        if for_s is not None:
            self.after(for_s, lambda: self.slow(node, 1))

    def pause(self, process: Process, for_s: float | None = None) -> None:
        """SIGSTOP; and SIGCONT after ``for_s``."""
        self.tell(process.name, "stopped")
        process.pause()
        if for_s is not None:
            self.after(for_s, lambda: self.resume(process))

    def resume(self, process: Process) -> None:
        if process.alive and process.stopped:
            self.tell(process.name, "goes on")
            process.resume()
