"""The simulated world: nodes, connections, clients and faults in one thread, one thing at a time.

The coroutines are the real ones (:func:`colo.failover.lead`, :func:`colo.failover.stand_by` and all that
they call).  An ``await`` in them stops at an :class:`tests.protocol.network.Until`; the scheduler draws
from a seeded generator which of all the things that could happen next does: a coroutine goes on, a guest
works, a message lands, a client sends, a heartbeat is missed.  Time is the number of steps.

Handshakes and frames are not here (:mod:`tests.link` has them): a connection either is, or is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from colo import failover
from colo.arbiter import Arbiter, ManualArbiter
from colo.failover import Ending, FailoverStatus
from colo.messages import INPUTS_MAX, Dissolve, Inputs, Message
from colo.peer import brief
from colo.policy import Periodic
from tests.protocol.arbiters import Distant, Patience
from tests.protocol.faults import Event, Fault, Plan
from tests.protocol.judge import Client, Judge, Violation, WatchedFailover
from tests.protocol.network import End, Pipe, Until, connection
from tests.protocol.nodes import FOREVER, Killed, Node, Pairing, Parts
from tests.protocol.person import Person
from tests.protocol.settled import is_settled, why_not
from tests.protocol.toy_guest import CLIENTS, CONSOLE, NET, POWER_OFF, Guest, Panic, Word, request
from tests.protocol.toy_machine import Half, Said, ToyMachine, ToyPrimary

SILENCE = 25
"""Steps without a heartbeat before it may be missed."""
PATIENCE = 70
"""Steps after which a client sends again."""
INBOX = 32
"""Packets that wait for a node."""
SETTLED_WITHIN = 4000
"""Steps after the last fault in which somebody serves again and every client is answered."""
LOOK_EVERY = 8
"""Steps between two looks at whether all is done."""
PAIRINGS_MAX = 6
"""In a world with several faults; with one at most it is enough to be protected once more."""


class World:
    """Everything, from one seed."""

    def __init__(
        self, seed: int, plan: Plan, arbiter: Callable[[], Arbiter], parts: Parts, pair: str
    ) -> None:
        self.seed, self.plan, self.parts, self.pair = seed, deque(plan), parts, pair
        self.now = 0
        self.log: list[tuple[int, str, str, object]] = []
        self.rng = Random(f"world {seed}")
        self._new_arbiter = arbiter
        self._arbiter_down_until = 0
        self.person = Person(self.note)
        rng = self.rng
        self._rule = Periodic(rng.randint(4, 30))
        self._weights = [rng.randint(1, 4) for _ in range(4)]
        self._rounds = rng.randrange(3)
        self._pairings_max = PAIRINGS_MAX if plan[1:] else 2
        self.judge = Judge(self._fail, self.note, [Client(number) for number in range(CLIENTS)])
        self._keys = 0
        self.powers_off = False
        self.nodes: list[Node] = []
        first = self._new_node()
        first.machine.running = first.serves = True
        self.judge.master = first.name
        self.pipes: list[Pipe] = []
        self.pairings = 0
        self._pair_at = rng.randrange(10)

    # What is told to whom

    def _fail(self, rule: str, text: str) -> None:
        raise Violation(rule, self.now, text)

    def note(self, who: str, what: str, detail: object = "") -> None:
        self.log.append((self.now, who, what, detail))

    def lines(self) -> list[str]:
        """The log, a line an event."""
        return [f"{at:5} {who:4} {what} {_shown(detail)}".rstrip() for at, who, what, detail in self.log]

    def _hear(self, machine: ToyMachine, said: Said) -> None:
        node = self.nodes[int(machine.name[1:])]
        if node.breath <= 0:
            raise Killed
        node.breath -= 1
        self.judge.hear(machine, said)

    # The loop

    def run(self) -> None:
        """Until all is settled after the last fault."""
        last = self.plan[-1].step if self.plan else 0
        while True:
            if not self.plan and self.now % LOOK_EVERY == 0 and is_settled(self):
                break
            if self.now > last + SETTLED_WITHIN:
                self._fail("somebody serves", why_not(self))
            self.step()
        for node in self.nodes:
            if node.alive and node.serves:
                self.judge.check_history(node.machine)
        self.judge.check_last_words(self.master().machine, self.master().alive)

    def step(self) -> None:
        self.now += 1
        while self.plan and self.plan[0].step < self.now:
            self._befall(self.plan.popleft())
        possible = self._possible()
        if possible:  # else time passes
            act, subject = self.rng.choice(possible)
            act(subject)

    def _possible(self) -> list[tuple[Callable[[Any], None], Any]]:
        possible: list[tuple[Callable[[Any], None], Any]] = []
        now = self.now
        coroutines, guests, landings, arrivals = self._weights
        for node in self.nodes:
            if not node.alive or node.paused_until > now:
                continue
            if node.pairing is not None:
                self._possible_in_pairing(node, node.pairing, possible, coroutines)
            if node.machine.can_run:
                possible += [(self._run_guest, node)] * guests
            if node.inbox:
                possible += [(self._take_input, node)] * arrivals
        for pipe in self.pipes:
            if pipe.flying and not pipe.cut:
                possible += [(self._land, pipe)] * landings
        self._possible_outside(possible)
        return possible

    def _possible_in_pairing(
        self, node: Node, pairing: Pairing, possible: list[tuple[Callable[[Any], None], Any]], weight: int
    ) -> None:
        if pairing.op.ready():
            possible += [(self._advance, node)] * weight
        if node.machine.mirror and pairing.is_primary and not pairing.end.closed and pairing.end.has_room:
            possible.append((self._mirror, node))
        if pairing.half.failover.status is not FailoverStatus.NONE:
            return
        if not (pairing.end.is_silent or not pairing.other.alive or pairing.other.paused_until > self.now):
            pairing.silent_since = FOREVER
        elif pairing.silent_since == FOREVER:
            pairing.silent_since = self.now
        elif self.now > pairing.silent_since + SILENCE or pairing.end.into.eof:
            possible.append((self._miss_heartbeat, node))

    def _possible_outside(self, possible: list[tuple[Callable[[Any], None], Any]]) -> None:
        for client in self.judge.clients:
            if client.waits:
                if self.now > client.sent_at + PATIENCE:
                    possible.append((self._send_request, client))
            elif self.plan or client.acknowledged < self.parts.operations:
                possible.append((self._ask, client))
        master = self.master()
        if master.alive and master.paused_until <= self.now and master.serves:
            if self._keys < 4 * self.parts.operations and self.rng.random() < 0.1:
                possible.append((self._type, master))
            if master.pairing is None and self.pairings < self._pairings_max and self.now >= self._pair_at:
                possible.append((self._pair, master))
        for order in self.person.orders:
            if order.op.ready() and order.node.paused_until <= self.now:
                possible.append((self.person.proceed, order))
        if self.person.is_waited_for(self.nodes):
            possible.append((self._person_looks, self.person))

    # What can happen

    def _advance(self, node: Node) -> None:
        """A coroutine goes on to its next await."""
        pairing = node.pairing
        assert pairing is not None
        self.note(node.name, "goes on:", pairing.op.what)
        try:
            pairing.op = pairing.coroutine.send(None)
        except StopIteration as stop:
            self._ended(node, pairing, stop.value)
        except Killed:
            self._die(node)
        self.judge.check_bounds(node.machine)

    def _ended(self, node: Node, pairing: Pairing, ending: Ending) -> None:
        """As :mod:`colo.node.node` does it."""
        self.note(node.name, "has ended:", ending.value)
        self.judge.halves.pop(node.name)
        node.pairing, node.ending = None, ending
        pairing.end.close()
        if isinstance(pairing.half, ToyPrimary):
            node.generation += pairing.half.has_promised
        elif ending is not Ending.NOTHING:
            node.generation += 1
        node.serves = ending is Ending.ALONE
        node.machine.mirror = None
        self._pair_at = self.now + self.rng.randrange(60)
        if ending is Ending.SHUTDOWN:
            node.machine.halted = True

    def _run_guest(self, node: Node) -> None:
        try:
            node.machine.run()
        except Killed:
            self._die(node)
        except Panic as exc:
            self._fail("the guest is whole", f"{node.name}: {exc}")

    def _take_input(self, node: Node) -> None:
        port, payload = node.inbox.popleft()
        if node.machine.can_run:
            node.machine.give(port, payload)

    def _land(self, pipe: Pipe) -> None:
        self.note("link", "lands", pipe.land())
        if pipe.eof:
            self.pipes.remove(pipe)

    def _mirror(self, node: Node) -> None:
        """Inputs of one epoch go to the secondary, by another task of the same node."""
        mirror = node.machine.mirror
        assert mirror
        assert node.pairing is not None
        epoch = mirror[0][0]
        packets = [packet for of, packet in mirror[:INPUTS_MAX] if of == epoch]
        del mirror[: len(packets)]
        node.pairing.end.out.flying.append(Inputs(epoch, packets))

    def _miss_heartbeat(self, node: Node) -> None:
        assert node.pairing is not None
        self.note(node.name, "misses heartbeats")
        node.pairing.half.failover.request("heartbeats stopped")

    def _ask(self, client: Client) -> None:
        client.asked += 1
        self._send_request(client)

    def _send_request(self, client: Client) -> None:
        """The bridge floods: whoever claims to have the guest's address gets it."""
        client.sent_at = self.now
        payload = request(client.number, client.asked, client.value(client.asked))
        for node in self.nodes:
            if node.alive and node.serves and len(node.inbox) < INBOX:
                node.inbox.append((NET, payload))

    def _type(self, master: Node) -> None:
        self._keys += 1
        master.inbox.append((CONSOLE, self._keys.to_bytes(2, "little")))

    def _person_looks(self, person: Person) -> None:
        person.looks(self.nodes, self.judge.winners, self._die)

    # Nodes and pairings

    def master(self) -> Node:
        return self.nodes[int(self.judge.master[1:])]

    def _new_node(self) -> Node:
        name = f"n{len(self.nodes)}"
        guest = Guest(Random(f"{self.seed} {name}"))
        node = Node(name, ToyMachine(name, guest, self._hear, lambda: self.now), self._new_arbiter())
        self.nodes.append(node)
        return node

    def _pair(self, primary: Node) -> None:
        """A new node stands by for ``primary``."""
        secondary = self._new_node()
        secondary.generation = primary.generation
        self.pairings += 1
        self.note(primary.name, "pairs with", f"{secondary.name}, generation {primary.generation}")
        forth, back = connection(self.rng)
        self.pipes += [forth.out, back.out]
        self.judge.led_by[secondary.name] = primary.name
        primary.machine.input_epoch = 0
        watched = self._watched(primary)
        half = self.parts.primary(
            primary.machine, primary.generation, watched, self.judge, self._rounds, self._rule
        )
        self._begin(primary, half, forth, secondary)
        other = self.parts.secondary(
            secondary.machine, secondary.generation, self._watched(secondary), self.judge
        )
        self._begin(secondary, other, back, primary)

    def _watched(self, node: Node) -> WatchedFailover:
        return WatchedFailover(lambda status: self.note(node.name, "failover:", status))

    def _begin(self, node: Node, half: Half, end: End, other: Node) -> None:
        half.pair, node.half = self.pair, half
        patience = Patience(lambda: self.now)
        arbiter = Distant(
            node.arbiter,
            self.rng,
            lambda: self.now,
            lambda: self.now < self._arbiter_down_until,
            lambda name, generation: self._won(node, generation),
        )
        run: Any = failover.lead if isinstance(half, ToyPrimary) else failover.stand_by
        coroutine = run(half, end, arbiter, half.failover, patience)
        self.judge.halves[node.name] = half
        start = Until("start", lambda: True)
        node.pairing = Pairing(self.pairings, half, end, patience, arbiter, coroutine, other, start)

    def _won(self, node: Node, generation: int) -> None:
        if isinstance(node.arbiter, ManualArbiter) and not self.person.has_told(node):
            self._fail("a person decides", f"{node.name} was told nothing in this pairing")
        self.judge.claimed(node.name, generation)

    # Faults

    def _befall(self, event: Event) -> None:
        if event.fault is Fault.ARBITER:
            self._arbiter_down_until = self.now + event.length
            self.note("", event.fault.value, event.length)
            return
        node = self._victim(event.who)
        if node is None or not node.alive:
            return
        self.note(node.name, event.fault.value, event.length or "")
        match event.fault:
            case Fault.KILL:
                self._die(node)
            case Fault.VANISH:
                self._die(node, silently=True)
            case Fault.LAST_WORDS:
                node.breath = event.length
            case Fault.PAUSE:
                node.paused_until = self.now + event.length
            case Fault.POWER_OFF:
                self.powers_off = True
                self.master().inbox.append((CONSOLE, POWER_OFF))
            case _ if node.pairing is not None:
                self._befall_pairing(node, node.pairing, event.fault)

    def _befall_pairing(self, node: Node, pairing: Pairing, fault: Fault) -> None:
        match fault:
            case Fault.DEAF:
                pairing.end.into.cut = True
            case Fault.CUT:
                pairing.end.into.cut = pairing.end.out.cut = True
            case Fault.STRAY if not pairing.end.closed:
                pairing.end.out.flying.append(Dissolve("quit"))
            case Fault.SUSPECT if node.paused_until <= self.now:
                pairing.half.failover.request("heartbeats stopped")
            case Fault.COMMAND if self.person.is_free(pairing):
                self.person.tells(node)

    def _victim(self, who: str) -> Node | None:
        """Of the newest pairing; alone, the one that serves is the primary."""
        for node in reversed(self.nodes):
            if node.pairing is not None and node.pairing.is_primary == (who == "primary"):
                return node
        return self.master() if who == "primary" else None

    def _die(self, node: Node, *, silently: bool = False) -> None:
        self.note(node.name, "dies")
        node.alive = node.serves = False
        self.person.forget(node)
        if node.pairing is None:
            return
        node.pairing.coroutine.close()
        if not silently:
            node.pairing.end.close()
        self.judge.halves.pop(node.name)
        node.pairing = None

    def close(self) -> None:
        """Coroutines that were not run to their end are closed, not abandoned."""
        for node in self.nodes:
            self.person.forget(node)
            if node.pairing is not None:
                node.pairing.coroutine.close()


def _shown(detail: object) -> str:
    if isinstance(detail, Message):
        return brief(detail)
    if isinstance(detail, tuple):
        place, data = detail
        return f"{place}: {Word.unpack(data)}"
    return "end of file" if detail is None else str(detail)
