"""What could happen next in the simulated world, and how it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from colo.failover import FailoverStatus
from colo.life import Life
from colo.messages import INPUTS_MAX, Inputs
from tests.protocol.network import Pipe
from tests.protocol.nodes import FOREVER, Node, Pairing
from tests.protocol.person import Person
from tests.protocol.toy_guest import Panic
from tests.protocol.toy_machine import HELD_HARD
from tests.protocol.toy_primary import ToyPrimary

if TYPE_CHECKING:
    from tests.protocol.world import World

NONE = FailoverStatus.NONE
SILENCE = 25
"""Steps without a heartbeat before it may be missed."""
PATIENCE = 70
"""Steps after which a client sends again."""
TICK_EVERY = 4
"""Steps between two looks of a node at what waits."""
Chance = tuple[Callable[[Any], None], Any]
"""What happens, and to whom."""


class Chances:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._weights = [world.rng.randint(1, 4) for _ in range(4)]

    def now(self) -> list[Chance]:
        """Looked at before every step, so written to be quick."""
        world, now = self._world, self._world.now
        possible: list[Chance] = []
        for node in world.living:
            if node.paused_until > now:
                continue
            if node.throat:
                possible.append((self._speak, node))
                continue
            if node.pairing is not None:
                self._in_pairing(node, node.pairing, now, possible)
            if node.inbox:
                possible += [(self._take_input, node)] * self._weights[3]
            thread = node.machine.thread
            if thread.jobs:
                possible.append((self._do_jobs, node))
            if thread.wanted and not thread.frozen and not node.machine.halted:
                self._of_guest(node, now, possible)
        for pipe in world.pipes:
            if pipe.flying and not pipe.cut:
                possible += [(self._land, pipe)] * self._weights[2]
        self._outside(now, possible)
        return possible

    def _in_pairing(self, node: Node, pairing: Pairing, now: int, possible: list[Chance]) -> None:
        half, end, into = pairing.half, pairing.end, pairing.end.into
        if pairing.op.ready():
            possible += [(self._advance, node)] * self._weights[0]
        if pairing.lost is not None:
            possible.append((self._act_on_loss, node))
        if pairing.is_primary:
            if half.mirror.waiting and not end.closed and end.has_room:
                possible.append((self._mirror, node))
            if half.early.life is not Life.WAIT and now % TICK_EVERY == 0:
                possible.append((self._tick, node))
            if half.stalled and not end.closed:
                possible.append((self._close, node))
        elif half.violation is not None and not end.closed:
            possible.append((self._close, node))
        if half.failover.status is not NONE:
            return
        if not (into.cut or into.eof or not pairing.other.alive or pairing.other.paused_until > now):
            pairing.silent_since = FOREVER
        elif pairing.silent_since == FOREVER:
            pairing.silent_since = now
        elif now > pairing.silent_since + SILENCE or into.eof:
            possible.append((self._miss_heartbeat, node))

    def _of_guest(self, node: Node, now: int, possible: list[Chance]) -> None:
        machine, thread = node.machine, node.machine.thread
        news = False
        if thread.descriptor >= 0 and node.pairing is not None:
            news = node.pairing.companion.readable
            if news and machine.calls and now >= thread.idle_until:
                possible.append((self._call, node))
        if news or now >= thread.idle_until:
            hold = machine.hold
            if not hold.active or hold.held_frames < HELD_HARD:
                possible += [(self._run_guest, node)] * self._weights[1]

    def _outside(self, now: int, possible: list[Chance]) -> None:
        world = self._world
        for client in world.judge.clients:
            if client.asked > client.acknowledged:
                if now > client.sent_at + PATIENCE:
                    possible.append((world.send_request, client))
            elif world.plan or client.acknowledged < world.parts.operations:
                possible.append((world.ask, client))
        master = world.master()
        if master.serves and master.paused_until <= now:
            if world.keys < 4 * world.parts.operations and world.rng.random() < 0.1:
                possible.append((world.type, master))
            if master.pairing is None and world.pairings < world.pairings_max and now >= world.pair_at:
                possible.append((world.begin_pairing, master))
        for order in world.person.orders:
            if order.op.ready() and order.node.paused_until <= now:
                possible.append((world.person.proceed, order))
        if world.is_manual and world.person.is_waited_for(world.nodes):
            possible.append((self._person_looks, world.person))

    # In a node

    def _advance(self, node: Node) -> None:
        """A coroutine goes on to its next await."""
        pairing, world = node.pairing, self._world
        assert pairing is not None
        world.note(node.name, "goes on:", pairing.op.what)
        try:
            pairing.op = pairing.coroutine.send(None)
        except StopIteration as stop:
            world.ended(node, pairing, stop.value)
        world.judge.check_bounds(node.machine)

    def _run_guest(self, node: Node) -> None:
        try:
            node.machine.thread.step()
        except Panic as exc:
            self._world.fail("the guest is whole", f"{node.name}: {exc}")

    def _do_jobs(self, node: Node) -> None:
        node.machine.thread.do_jobs()

    def _call(self, node: Node) -> None:
        """Between two blocks: the companion has something."""
        assert node.pairing is not None
        act = node.machine.calls.get(node.pairing.companion.fileno())
        if act is not None:
            act()

    def _tick(self, node: Node) -> None:
        assert node.pairing is not None
        assert isinstance(node.pairing.half, ToyPrimary)
        node.pairing.half.tick()

    def _take_input(self, node: Node) -> None:
        port, payload = node.inbox.popleft()
        machine = node.machine
        if machine.thread.running and machine.listens and not machine.guest.registers.ended:
            machine.door.enter(port, payload)

    def _speak(self, node: Node) -> None:
        """What it was about to say when it was stopped."""
        while node.throat:
            stream, data = node.throat.popleft()
            self._world.judge.hear(node.machine, stream, data)

    # Between nodes

    def _land(self, pipe: Pipe) -> None:
        self._world.note("link", "lands", pipe.land())
        if pipe.eof:
            self._world.pipes.remove(pipe)

    def _mirror(self, node: Node) -> None:
        """Inputs of one epoch go to the secondary, by another task of the same node."""
        assert node.pairing is not None
        half = node.pairing.half
        assert isinstance(half, ToyPrimary)
        waiting = half.mirror.waiting
        epoch = waiting[0][0]
        packets = [packet for of, packet in waiting[:INPUTS_MAX] if of == epoch]
        del waiting[: len(packets)]
        node.pairing.end.out.flying.append(Inputs(epoch, packets))

    def _miss_heartbeat(self, node: Node) -> None:
        assert node.pairing is not None
        self._world.note(node.name, "misses heartbeats")
        node.pairing.half.failover.request("heartbeats stopped")

    def _act_on_loss(self, node: Node) -> None:
        """As :class:`colo.transport.link.Connection` does when its companion is lost."""
        pairing = node.pairing
        assert pairing is not None
        self._world.note(node.name, "loses its companion:", pairing.lost)
        if isinstance(pairing.half, ToyPrimary):
            pairing.half.lose(str(pairing.lost))
        pairing.lost = None
        pairing.end.close()

    def _close(self, node: Node) -> None:
        """Somebody found that the peer is of no use."""
        assert node.pairing is not None
        self._world.note(node.name, "closes the connection")
        node.pairing.end.close()

    def _person_looks(self, person: Person) -> None:
        person.looks(self._world.nodes, self._world.judge.winners, self._world.die)
