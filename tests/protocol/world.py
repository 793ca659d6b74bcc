"""The simulated world: nodes, connections, clients and faults in one thread, one thing at a time.

The coroutines are the real ones (:func:`colo.failover.lead`, :func:`colo.failover.stand_by` and all that
they call).  An ``await`` in them stops at an :class:`tests.protocol.network.Until`; the scheduler draws
from a seeded generator which of all the things that could happen next does (:mod:`tests.protocol.chances`): a
coroutine goes on, a guest works, a message lands, a client sends, a heartbeat is missed.  Time is the number
of steps.

Handshakes and frames are not here (:mod:`tests.link` has them): a connection either is, or is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from colo import failover, policy
from colo.arbiter import Arbiter, ManualArbiter
from colo.failover import Ending
from colo.messages import Message
from colo.peer import brief
from colo.policy import Policy
from tests.protocol import misfortune
from tests.protocol.arbiters import Distant, Patience
from tests.protocol.chances import Chances
from tests.protocol.companions import ToyCompanion, companions
from tests.protocol.faults import MILD, Plan
from tests.protocol.host import HostTime, small_limits
from tests.protocol.judge import BEHIND_A_GATE, Client, Judge, Violation, WatchedFailover
from tests.protocol.network import End, Pipe, Until, connection
from tests.protocol.nodes import FOREVER, Half, Killed, Node, Pairing, Parts
from tests.protocol.person import Person
from tests.protocol.settled import is_settled, why_not
from tests.protocol.toy_guest import CLIENTS, CONSOLE, NET, Guest, request, words_of
from tests.protocol.toy_machine import ToyMachine
from tests.protocol.toy_primary import Around, ToyPrimary

INBOX = 32
"""Packets that wait for a node."""
SETTLED_WITHIN = 4000
"""Steps after the last fault in which somebody serves again and every client is answered."""
LOOK_EVERY = 8
"""Steps between two looks at whether all is done."""
PAIRINGS_MAX = 6
"""In a world with several faults; with one at most it is enough to be protected once more."""
GASP_STEPS = 200
"""A node that is stopped between two words stands still for so long."""
WITHIN_MAX = 8
"""Things that happen at most while a node does something that no await divides."""


class World:
    """Everything, from one seed."""

    def __init__(
        self, seed: int, plan: Plan, arbiter: Callable[[], Arbiter], parts: Parts, pair: str
    ) -> None:
        self.seed, self.plan, self.parts, self.pair = seed, deque(plan), parts, pair
        self.is_disturbed = any(event.fault not in MILD for event in plan)
        self.now = 0
        self.log: list[tuple[int, str, str, object]] = []
        self.rng = rng = Random(f"world {seed}")
        self.time = HostTime(rng.choice(parts.step_ms))
        self.arbiter_down_until = 0
        self.person = Person(self.note)
        self.policy = self.new_policy(rng.choice(parts.policies))
        self.chances = Chances(self)
        self.pairings_max = PAIRINGS_MAX if plan[1:] else 2
        self.judge = Judge(self.fail, self.note, [Client(number) for number in range(CLIENTS)])
        if parts.policies != ("periodic",):
            self.judge.held_most *= BEHIND_A_GATE
        self.keys = 0
        self.powers_off = self._within = False
        self._new_arbiter = arbiter
        self._rounds = rng.randrange(3)
        self.nodes: list[Node] = []
        self.living: list[Node] = []
        first = self._new_node(serves=True)
        first.machine.thread.start()
        self.judge.master = first.name
        self.is_manual = isinstance(first.arbiter, ManualArbiter)
        self.pipes: list[Pipe] = []
        self.pairings = 0
        self.pair_at = rng.randrange(10)

    def new_policy(self, name: str) -> Policy:
        """By its name; steps of the world are its milliseconds."""
        limits = (4, 30) if name == "periodic" else self.parts.delays
        return policy.choose(name, self.rng.randint(*limits))

    # What is told to whom

    def fail(self, rule: str, text: str) -> None:
        raise Violation(rule, self.now, text)

    def note(self, who: str, what: str, detail: object = "") -> None:
        self.log.append((self.now, who, what, detail))

    def lines(self) -> list[str]:
        """The log, a line an event."""
        return [f"{at:5} {who:4} {what} {_shown(detail)}".rstrip() for at, who, what, detail in self.log]

    def _hear(self, machine: ToyMachine, stream: int, data: bytes) -> None:
        """A node says something; it may die at that, or be stopped, and say it later."""
        node = self.nodes[int(machine.name[1:])]
        if node.breath <= 0 and not node.stops:
            raise Killed
        if node.breath <= 0 or node.throat:
            if not node.throat:
                self.note(node.name, "stands still, about to speak")
                node.paused_until, node.breath = self.now + GASP_STEPS, FOREVER
            node.throat.append((stream, data))
            return
        node.breath -= 1
        self.judge.hear(machine, stream, data)

    # The loop

    def run(self) -> None:
        """Until all is settled after the last fault."""
        with small_limits():
            self._run()

    def _run(self) -> None:
        last = self.plan[-1].step if self.plan else 0
        while True:
            if not self.plan and self.now % LOOK_EVERY == 0 and is_settled(self):
                break
            if self.now > last + SETTLED_WITHIN:
                self.fail("somebody serves", why_not(self))
            self.step()
        for node in self.nodes:
            if node.alive and node.serves:
                self.judge.check_history(node.machine)
        self.judge.check_last_words(self.master().machine, self.master().alive)

    def step(self) -> None:
        self.now += 1
        self.time.now = self.now
        while self.plan and self.plan[0].step < self.now:
            misfortune.befall(self, self.plan.popleft())
        possible = self.chances.now()
        if not possible:
            return  # time passes
        self._do(*self.rng.choice(possible))

    def _do(self, act: Callable[[Any], None], subject: Any) -> None:
        try:
            act(subject)
        except Killed:
            self.die(subject)

    def _go_on_without(self, node: Node) -> None:
        """In the middle of something that ``node`` does, a few things happen elsewhere."""
        if self._within:
            return
        self._within = True
        for _ in range(self.rng.randrange(WITHIN_MAX)):
            possible = [
                (act, subject)
                for act, subject in self.chances.now()
                if node not in (subject, getattr(subject, "node", None))
            ]
            if possible:
                self._do(*self.rng.choice(possible))
        self._within = False

    # Clients

    def ask(self, client: Client) -> None:
        client.asked += 1
        self.send_request(client)

    def send_request(self, client: Client) -> None:
        """The bridge floods: whoever claims to have the guest's address gets it."""
        client.sent_at = self.now
        payload = request(client.number, client.asked, client.value(client.asked))
        for node in self.nodes:
            if node.alive and node.serves and len(node.inbox) < INBOX:
                node.inbox.append((NET, payload))

    def type(self, master: Node) -> None:
        self.keys += 1
        master.inbox.append((CONSOLE, self.keys.to_bytes(2, "little")))

    # Nodes and pairings

    def master(self) -> Node:
        return self.nodes[int(self.judge.master[1:])]

    def _new_node(self, *, serves: bool = False) -> Node:
        name = f"n{len(self.nodes)}"
        guest, rng = Guest(self.parts.noisy_every), Random(f"{self.seed} {name}")
        machine = ToyMachine(name, guest, (self._hear, self.judge.told), self.time, rng, not serves)
        node = Node(name, machine, self._new_arbiter(), serves=serves)
        self.nodes.append(node)
        self.living.append(node)
        return node

    def begin_pairing(self, primary: Node) -> None:
        """A new node stands by for ``primary``."""
        secondary = self._new_node()
        secondary.generation = primary.generation
        self.pairings += 1
        self.note(primary.name, "pairs with", f"{secondary.name}, generation {primary.generation}")
        forth, back = connection(self.rng)
        here, there, pipes = self._companions(primary, secondary)
        self.pipes += [forth.out, back.out, *pipes]
        self.judge.led_by[secondary.name] = primary.name
        half = self.parts.primary(
            primary.machine, primary.generation, self._around(primary, here), self.policy
        )
        self._begin(primary, half, forth, secondary)
        other = self.parts.secondary(secondary.machine, secondary.generation, self._around(secondary, there))
        self._begin(secondary, other, back, primary)

    def _companions(self, *nodes: Node) -> tuple[ToyCompanion, ToyCompanion, list[Pipe]]:
        def on_lost(node: Node) -> Callable[[str], None]:
            def lose(reason: str) -> None:
                assert node.pairing is not None
                node.pairing.lost = reason

            return lose

        def stopped(node: Node) -> Callable[[], bool]:
            return lambda: node.paused_until > self.now

        here, there = nodes
        return companions(
            self.parts.companion,
            2 * self.pairings,
            (on_lost(here), on_lost(there)),
            (stopped(here), stopped(there)),
            self.rng,
        )

    def _around(self, node: Node, companion: ToyCompanion) -> Around:
        watched = WatchedFailover(lambda status: self.note(node.name, "failover:", status))
        return Around(
            watched, companion, self.judge, self.time, self._rounds, lambda: self._go_on_without(node)
        )

    def _begin(self, node: Node, half: Half, end: End, other: Node) -> None:
        half.pair, node.half = self.pair, half
        patience = Patience(lambda: self.now)
        arbiter = Distant(
            node.arbiter,
            self.rng,
            lambda: self.now,
            lambda: self.now < self.arbiter_down_until,
            lambda name, generation: self._won(node, generation),
        )
        run: Any = failover.lead if isinstance(half, ToyPrimary) else failover.stand_by
        coroutine = run(half, end, arbiter, half.failover, patience)
        self.judge.halves[node.name] = half
        start = Until("start", lambda: True)
        node.pairing = Pairing(
            self.pairings, half, end, patience, arbiter, coroutine, other, start, half.companion
        )

    def _won(self, node: Node, generation: int) -> None:
        if isinstance(node.arbiter, ManualArbiter) and not self.person.has_told(node):
            self.fail("a person decides", f"{node.name} was told nothing in this pairing")
        self.judge.claimed(node.name, generation)

    def ended(self, node: Node, pairing: Pairing, ending: Ending) -> None:
        """As :mod:`colo.node.node` does it."""
        self.note(node.name, "has ended:", ending.value)
        if not self.is_disturbed:
            self.fail("a pair lasts", f"{node.name} ends it, and nothing has happened")
        if ending is Ending.SHUTDOWN:
            pairing.half.shut_down()
        self.judge.halves.pop(node.name)
        node.pairing, node.ending = None, ending
        pairing.end.close()
        pairing.companion.close()
        if isinstance(pairing.half, ToyPrimary):
            node.generation += pairing.half.has_promised
        elif ending is not Ending.NOTHING:
            node.generation += 1
        node.serves = ending is Ending.ALONE
        self.pair_at = self.now + self.rng.randrange(60)
        if ending is Ending.SHUTDOWN:
            node.machine.halted = True

    def die(self, node: Node, *, silently: bool = False) -> None:
        self.note(node.name, "dies")
        node.alive = node.serves = False
        self.living.remove(node)
        node.throat.clear()
        self.person.forget(node)
        if node.pairing is None:
            return
        node.pairing.coroutine.close()
        if not silently:
            node.pairing.end.close()
        node.pairing.companion.die(silently)
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
        stream, at, data = detail
        words = ", ".join(map(str, words_of(data))) if at % 16 == 0 and len(data) >= 16 else data.hex()
        return f"to {stream}, {at}: {words}"
    return "end of file" if detail is None else str(detail)
