"""A node's machine in the simulated world, the thread that runs it, and its voices.

What a node's rules ask of a machine (:class:`vmm.machine.Machine`) and of its thread
(:class:`colo.node.guest_thread.GuestThread`) is here for the toy guest.  The door between the guest and
everything else, the output hold, its gate, the filters of the card, the console's and
:class:`colo.node.replica.Replica` are the real ones.

A guest that is free runs a block, or waits for a while, in one step of the world; one that follows a log runs
as far as that goes.  Jobs for the thread that nobody waits for are done at a step of the world's choosing.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from colo.filters import FilteredNet
from colo.filters.console import HeldConsole
from colo.filters.hold import OutputHold
from colo.node.replica import Replica
from tests.protocol.host import HostTime
from tests.protocol.toy_guest import CLIENTS, CONSOLE, MS, NET, PORTS, TERMINAL, WORD_BYTES, Guest, Panic
from vmm.inputs import REFUSED, Door
from vmm.machine import Ended

T = TypeVar("T")

WAIT_MAX_NS = 8 * MS
"""A guest that has nothing to do waits so long in one step."""
REST_S = 0.5
"""A thread that has nothing to do looks around after so long."""
HELD_SOFT, HELD_HARD = 10, 24
"""Words: over the first a checkpoint is asked for, at the second the guest waits."""
Image = tuple[list[bytes], bytes]
"""RAM and registers at one instant."""
Hear = Callable[["ToyMachine", int, bytes], None]
"""Who says what to whom."""
Report = Callable[["ToyMachine", str, dict[str, Any]], None]

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
HEADER_BYTES = _ETHERNET.size + _IPV4.size + _UDP.size
PORT_AT = HEADER_BYTES - 6
"""Of the client's port, by which a frame tells whom it is for."""
SERVICE, FIRST_CLIENT = 7, 40_000


def _header(client: int) -> bytes:
    ethernet = _ETHERNET.pack(b"\x02client", b"\x02guest.", 0x0800)
    length = _UDP.size + WORD_BYTES
    ip = _IPV4.pack(0x45, 0, _IPV4.size + length, 0, 0, 64, 17, 0, b"\x0a\0\0\x02", b"\x0a\0\0\x01")
    return ethernet + ip + _UDP.pack(SERVICE, FIRST_CLIENT + client, length, 0)


HEADERS = [_header(client) for client in range(CLIENTS)]


class Card:
    """The card's back end: a wire to the clients."""

    offloads = pending_output = False
    dropped = 0

    def __init__(self, hear: Callable[[int, bytes], None]) -> None:
        self._hear = hear

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        """What comes is given to the machine's door by the world."""
        return None

    def transmit(self, frame: bytes) -> None:
        client = int.from_bytes(frame[PORT_AT : PORT_AT + 2], "big") - FIRST_CLIENT
        self._hear(client, bytes(frame[HEADER_BYTES:]))

    def flush(self) -> None:
        """Nothing waits here."""

    close = flush


class Terminal:
    """The console's back end: a reader."""

    pending_output = False

    def __init__(self, hear: Callable[[int, bytes], None]) -> None:
        self._hear = hear

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        """As of the card."""
        return None

    def write(self, data: bytes) -> None:
        self._hear(TERMINAL, bytes(data))

    def flush(self) -> None:
        """Nothing waits here."""

    close = flush


class Memory:
    """RAM as the digests of a mark see it."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(b"".join(self._guest.ram), np.uint8)

    @property
    def size(self) -> int:
        return sum(map(len, self._guest.ram))


class Clock:
    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @property
    def now_ns(self) -> int:
        return self._guest.registers.now_ns


def _nothing(*_: object) -> None:
    """A part of the machine that the toy has not got."""


class ToyMachine:
    """What of a node outlives a pairing: its guest, and what is between that and the world."""

    serial = SimpleNamespace(restart=_nothing)
    cpu = SimpleNamespace(request_stop=_nothing)
    nets = ()
    """None to which a bridge brings what the primary's guest is given."""

    def __init__(
        self,
        name: str,
        guest: Guest,
        ears: tuple[Hear, Report],
        time: HostTime,
        rng: Random,
        muted: bool,
    ) -> None:
        """``ears``: who hears the guest, and who is told of events."""
        self.name, self.guest, self.rng = name, guest, rng
        self.halted = self.flipped = False
        self.clock, self.ram = Clock(guest), Memory(guest)
        self.pacer = SimpleNamespace(paced=True, deaf=False, start=_nothing)
        self.door = Door(lambda: guest.registers.now_ns)
        for port in PORTS:
            self.door.open(port, self._deliverer(port))
        self.watcher: Callable[[bool], None] | None = None
        self.calls: dict[int, Callable[[], None]] = {}
        self.listens = True
        self.thread = ToyThread(self, time)

        def voice(stream: int, data: bytes) -> None:
            ears[0](self, stream, data)

        def report(event: str, facts: dict[str, Any]) -> None:
            ears[1](self, event, facts)

        hold = OutputHold(now_ns=time.monotonic_ns)
        net = FilteredNet(Card(voice), NET, now_ns=lambda: guest.registers.now_ns, muted=muted)
        console = HeldConsole(Terminal(voice), hold, CONSOLE, muted=muted)
        thread: Any = self.thread
        self.replica = Replica(thread, [net], [console], hold, "pair", name, 0, report, now_s=time.monotonic)

    @property
    def hold(self) -> OutputHold:
        return self.replica.hold

    # Input

    def _deliverer(self, port: str) -> Callable[[bytes], int]:
        def deliver(payload: bytes) -> int:
            if self.guest.is_full(port):
                if port == NET:
                    return 0
                self.guest.registers.refused += 1
                return REFUSED
            self.guest.give(port, payload)
            return len(payload)

        return deliver

    # Running

    def turn(self) -> Ended:
        """A free guest's: what waits at the door, then a block, or a while without anything to do."""
        guest = self.guest
        for port in (NET, CONSOLE):
            if self.door.is_full(port) and not guest.is_full(port):
                self.door.retry(port)
        if guest.registers.ended:
            return Ended.POWEROFF
        busy = guest.is_busy
        if self.watcher is not None:
            self.watcher(not busy)
        if not busy:
            guest.idle(guest.registers.now_ns + self.rng.randrange(1, WAIT_MAX_NS))
            return Ended.TIME
        return self._block()

    def run(self, until_ns: int) -> Ended:
        """A replaying guest's: to the first end of a block that is not before ``until_ns``."""
        guest, door = self.guest, self.door
        while True:
            door.replay_due(self.state_hash)
            if guest.registers.ended:
                return Ended.POWEROFF
            if guest.registers.now_ns >= until_ns:
                return Ended.TIME
            if not guest.is_busy:
                guest.idle(min(until_ns, door.next_ns))
            elif self._block() is not Ended.TIME:
                return Ended.RESET

    def _block(self) -> Ended:
        try:
            self.guest.block(self._leave)
        except Panic:
            if not self.flipped:
                raise
            return Ended.RESET  # as a kernel that finds itself damaged
        return Ended.TIME

    def _leave(self, stream: int, word: bytes) -> None:
        replica = self.replica
        if stream == TERMINAL:
            self.door.leave(CONSOLE, word)
            replica.consoles[0].write(word)
        else:
            frame = HEADERS[stream] + word
            self.door.leave(NET, frame)
            replica.nets[0].transmit(frame)

    def pause(self) -> None:
        """A turn is over soon enough."""

    def watch(self, watch: Callable[[bool], None] | None) -> None:
        self.watcher = watch

    def call(self, descriptor: int, act: Callable[[], None] | None) -> None:
        if act is None:
            self.calls.pop(descriptor, None)
        else:
            self.calls[descriptor] = act

    def listen(self, wanted: bool) -> None:
        self.listens = wanted

    # State

    def state_hash(self) -> bytes:
        raise AssertionError("no log here has marks of this kind")

    def everything_unchecked(self) -> dict[str, bytes]:
        return {"registers": self.guest.save()}

    def section_differences(self, left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
        return [f"{name}: differs" for name in left if left[name] != right.get(name)]

    def image(self) -> Image:
        return list(self.guest.ram), self.guest.save()


class ToyThread:
    """A :class:`colo.node.guest_thread.GuestThread` that the world moves along."""

    def __init__(self, machine: ToyMachine, time: HostTime) -> None:
        self.machine = machine
        self.wanted = self.frozen = False
        self.idle_s: float | None = None
        self.idle_until = 0
        """Steps: nothing to do before, unless there is news."""
        self.descriptor = -1
        """Input there is news, for what drives the guest."""
        self._time = time
        self._drive: Callable[[], Ended] | None = None
        self.jobs: deque[Callable[[], object]] = deque()

    @property
    def running(self) -> bool:
        return self.wanted and not self.frozen and not self.machine.halted

    # What a node asks

    def start(self) -> None:
        self.wanted, self.idle_until = True, 0

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen, self.idle_until = False, 0

    def submit(self, job: Callable[[], object]) -> None:
        self.jobs.append(job)

    def call(self, job: Callable[[], T]) -> T:
        self.do_jobs()
        return job()

    def drive_by(self, drive: Callable[[], Ended] | None, descriptor: int = -1) -> None:
        self._drive, self.descriptor = drive, descriptor
        self.idle_s, self.idle_until = None, 0

    def run_freely(self) -> Ended:
        return self.machine.turn()

    # What the world does

    def do_jobs(self) -> None:
        self.idle_until = 0
        while self.jobs:
            self.jobs.popleft()()

    def step(self) -> None:
        self.idle_until = 0
        ended = self.run_freely() if self._drive is None else self._drive()
        if ended is Ended.IDLE:
            rest_s = REST_S if self.idle_s is None else self.idle_s
            self.idle_until = self._time.now + self._time.steps(rest_s)
        elif ended not in (Ended.TIME, Ended.REQUEST, Ended.PAUSED):
            self.wanted = False
