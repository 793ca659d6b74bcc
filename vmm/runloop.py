"""Running a machine: between two blocks, and from one stop to the next.

The loop is single-threaded and returns between two blocks with nothing left undone that was due.
While the guest runs its inputs enter in :meth:`RunLoop._serve` and nowhere else, after all else that
was due at that time, so a replay delivers them in the same place.  Where nothing is recorded and nothing
else is due, a card's frames enter between two blocks without a stop (:meth:`RunLoop.hear`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from vmm.attention import Attention
from vmm.clock import NEVER_NS
from vmm.cpu.cpu import Stop

if TYPE_CHECKING:
    from vmm.machine import Machine
    from vmm.ports import NetPort

RESETS_MAX = 100
"""Resets within one run after which a machine that only resets itself is given up."""


class Ended(Enum):
    """Why :meth:`vmm.machine.Machine.run` returned."""

    TIME = "time"
    """The virtual time that was asked for."""
    DEBUG_EXIT = "debug-exit"
    POWEROFF = "poweroff"
    """The guest entered S5 (soft off), or halted with interrupts disabled: it will not run again."""
    RESET = "reset"
    """The guest asked for a reset (or shut down by a triple fault) and resets were not wanted."""
    REQUEST = "request"
    """Somebody called :meth:`vmm.machine.Machine.stop`."""
    PAUSED = "paused"
    """Something that watches the guest called :meth:`vmm.machine.Machine.pause`."""
    EXACT = "exact"
    """A place in the program that was asked for (:mod:`vmm.stops`), perhaps inside a block."""
    IDLE = "idle"
    """The guest waits for something that cannot come: no alarm, no input."""


class RunLoop:
    """One machine's loop, and what it has to know from one turn to the next."""

    __slots__ = (
        "_attention",
        "_calls",
        "_held",
        "_listening",
        "_machine",
        "_ports",
        "_ready",
        "_resets",
        "_settled",
        "_sources",
        "ended",
        "errands",
        "place_ns",
        "places",
        "reset_wanted",
        "watch",
    )

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._attention = Attention(machine.cpu.block)
        self._ready: set[int] = set()
        self._resets = 0
        self._settled = False
        """Nothing can have ended the machine since this was looked at."""
        self._sources: dict[int, tuple[str, Callable[[], bool]]] = {}
        self._ports: dict[int, NetPort] = {}
        self._held: list[int] = []
        self._listening = True
        self._calls: dict[int, Callable[[], None]] = {}
        self.watch: Callable[[bool], None] | None = None
        """Called before the guest runs on, and (True) before it waits, with nothing left that was due."""
        self.ended: Ended | None = None
        self.reset_wanted = False
        self.errands: list[Callable[[], None]] = []
        """To be done before the guest runs on, one a turn; they may run a part of the next block."""
        self.places: Callable[[], None] | None = None
        """Called where an exact stop was asked for, and at ``place_ns`` (:mod:`vmm.stops`)."""
        self.place_ns = NEVER_NS

    # Sources of input

    def listen_to_attached(self) -> None:
        """Consoles and cards whose back ends can bring input."""
        machine = self._machine
        for console in machine.attached.consoles:
            self._listen(console.fileno(), machine.serial.port, partial(machine.serial.pump, console))
        for port in machine.nets:
            self._listen(port.backend.fileno(), port.port, port.pump)
            self._ports[port.backend.fileno()] = port
            assert port.card is not None
            port.card.moderate(machine.clock, port.port)

    def _listen(self, descriptor: int, port: str, pump: Callable[[], bool]) -> None:
        """``pump`` says whether its device has room for more."""
        if descriptor >= 0:
            self._sources[descriptor] = (port, pump)
            self._machine.pacer.watch(descriptor, self._listening)

    def expect_nothing_from(self, descriptor: int) -> None:
        """This end of the host will bring no more input: nobody need wait for it."""
        self._sources.pop(descriptor, None)
        self._held = [held for held in self._held if held != descriptor]
        self._machine.pacer.watch(descriptor, False)

    def listen(self, wanted: bool) -> None:
        """Whether consoles and cards are to bring input."""
        self._listening = wanted
        self._held.clear()
        for descriptor in self._sources:
            self._machine.pacer.watch(descriptor, wanted)

    def call(self, descriptor: int, act: Callable[[], None] | None) -> None:
        """Between two blocks, ``act`` when ``descriptor`` has input; None: no longer."""
        if act is None:
            self._calls.pop(descriptor, None)
        else:
            self._calls[descriptor] = act
        self._machine.pacer.watch(descriptor, act is not None)

    def arrived(self, descriptor: int) -> None:
        """As if the kernel had said so: act on ``descriptor`` before the guest runs on."""
        self._ready.add(descriptor)

    # Running

    def end(self, reason: Ended) -> None:
        """The guest's own end counts for more than that somebody wanted to look."""
        if self.ended is None or self.ended is Ended.PAUSED:
            self.ended = reason

    def run(self, until_ns: int) -> Ended:
        """Until virtual ``until_ns``, or until something of :class:`Ended` happens."""
        self._resets = 0
        self._settled = False
        clock, parts = self._machine.clock, self._machine.cpu.parts
        try:
            while True:
                inside = parts.inside
                if not inside:
                    self._serve()
                if self.ended is not None:
                    ended, self.ended = self.ended, None
                    return ended
                now = clock.now_ns
                if now >= until_ns and not inside:
                    return Ended.TIME
                self._advance(now, until_ns)
        finally:
            self._machine.serial.show()

    def _serve(self) -> None:
        """Between two blocks: alarms, resets, inputs, in this order."""
        machine = self._machine
        machine.clock.fire_due()
        if self.reset_wanted:
            self.reset()
        if machine.door.replayer is not None:
            machine.door.replay_due(machine.state_hash)
        self._take_inputs()
        if self.places is not None and machine.clock.now_ns >= self.place_ns:
            self.places()
        if machine.serial.unshown:
            machine.serial.show()

    def _take_inputs(self) -> None:
        """What the host has, and what waited until its device has room."""
        machine = self._machine
        if machine.serial.feed_due:
            machine.serial.retry()
        for port in machine.nets:
            if port.rx_ready:
                port.rx_ready = False
                machine.door.retry(port.port)
                port.pump()
        if self._ready:
            ready, self._ready = self._ready, set()
            for descriptor in sorted(ready):
                self._take_from(descriptor)
        if self._held:
            held, self._held = self._held, []
            for descriptor in held:
                self._hold_if_full(descriptor)

    def hear(self) -> bool:
        """The processor found input between two blocks, with nothing else due: may it run on?"""
        if self.watch is not None or self._calls:
            return False
        ready = self._machine.pacer.ready()
        for descriptor in sorted(ready):
            port = self._ports.get(descriptor)
            if port is None:
                return False
            if not port.hear():
                port.rx_ready = True
                return False
        self._attend()
        return bool(ready)  # else somebody woke the loop, not the guest

    def _take_from(self, descriptor: int) -> None:
        if descriptor in self._calls:
            self._settled = False
            self._calls[descriptor]()
        elif self._listening and descriptor in self._sources:
            has_room = self._sources[descriptor][1]()
            self._attend()
            if not has_room:
                self._hold_if_full(descriptor)

    def _attend(self) -> None:
        received = sent = 0
        for port in self._machine.nets:
            assert port.card is not None
            received += port.card.state.rx_frames
            sent += port.card.state.tx_frames
        self._attention.gave(received, sent)

    def _hold_if_full(self, descriptor: int) -> None:
        """While its device has no room for what it brought, do not look at a source of input."""
        if descriptor not in self._sources:
            return  # it brings no more: that is what it had
        full = self._machine.door.is_full(self._sources[descriptor][0])
        if full:
            self._held.append(descriptor)
        self._machine.pacer.watch(descriptor, not full)

    def _advance(self, now_ns: int, until_ns: int) -> None:
        """Run to the next stop, or let a halted guest wait for its next alarm or input."""
        machine = self._machine
        cpu, pacer = machine.cpu, machine.pacer
        if cpu.halted or not self._settled:
            finished = self._finished()
            if finished is not None:
                self.ended = finished  # only now: a stop that came since the last look is in there
                return
        if self.errands:
            self._settled = False
            self.errands.pop(0)()
            return
        limit = until_ns if until_ns < self.place_ns else self.place_ns
        if machine.door.replayer is not None:
            limit = min(limit, machine.door.next_ns)
        if cpu.halted and not cpu.can_take_interrupt:
            if not self._tell_waiting_guest():
                self._rest(limit)
            return
        if self.watch is not None:
            self.watch(False)
        slice_end = pacer.limit_ns(now_ns)
        machine.clock.set_limit(slice_end if slice_end < limit else limit)
        cpu.poll(pacer.descriptor)
        stop = cpu.run()
        self._settled = stop is Stop.HOST_INPUT or stop is Stop.DEADLINE
        if stop is Stop.HOST_INPUT or (stop is Stop.HALT and pacer.can_wake):
            self._ready = pacer.ready()
        elif stop is Stop.SHUTDOWN:
            self.reset_wanted = True
        elif stop is Stop.DEADLINE and pacer.paced:
            self._hold_back()
        elif stop is Stop.PLACE and self.places is not None:
            self.places()

    def run_part(self, instructions: int) -> bool:
        """Execute so many instructions of the block at hand, and nothing else.

        True: the processor is inside that block.  It is not when they were all of its instructions, or when
        an interrupt came before them or an exception among them.
        """
        cpu = self._machine.cpu
        self._machine.clock.set_limit(NEVER_NS)
        cpu.poll(-1)
        cpu.parts.want(instructions)
        try:
            while (stop := cpu.run()) is Stop.REQUEST:
                pass  # whoever asked for it finds it in ``ended``
        finally:
            cpu.parts.want_nothing()
        self.reset_wanted |= stop is Stop.SHUTDOWN
        return cpu.parts.inside

    def _finished(self) -> Ended | None:
        """A machine that ended stays so, however often it is run or resumed."""
        machine = self._machine
        if machine.devices["acpi-pm"].off:
            return Ended.POWEROFF
        if machine.exit_code is not None:
            return Ended.DEBUG_EXIT
        if machine.cpu.is_dead and not machine.cpu.can_take_interrupt:
            return Ended.POWEROFF
        return None

    def _tell_waiting_guest(self) -> bool:
        """Let the cards say what they would have told a busy guest later; did they?

        That takes a nanosecond.  A replay delivers the inputs of a moment before this is done, so an
        input that comes after it must have a later time.
        """
        machine = self._machine
        told = [port.card.idle() for port in machine.nets if port.card is not None]
        if not any(told):
            return False
        machine.clock.jump(machine.clock.now_ns + 1)
        return True

    def _rest(self, limit_ns: int) -> None:
        clock, pacer = self._machine.clock, self._machine.pacer
        deadline = min(clock.next_deadline_ns, limit_ns)
        if deadline == NEVER_NS and not pacer.can_wake:
            self.ended = Ended.IDLE
            return
        if self.watch is not None:
            self.watch(True)
        reached, self._ready = pacer.rest(clock.now_ns, deadline)
        clock.jump(reached)

    def _hold_back(self) -> None:
        """A paced guest that is ahead of the wall waits for it."""
        now = self._machine.clock.now_ns
        ahead = now - self._machine.pacer.wall_ns(now)
        if ahead > 0:
            self._ready = self._machine.pacer.ready(ahead)

    def reset(self) -> None:
        """Start again, or end; a machine that ended so stays reset until it is switched on."""
        machine = self._machine
        self._resets += 1
        if not machine.restart_on_reset or machine.boot is None or self._resets > RESETS_MAX:
            self.ended = Ended.RESET
            return
        machine.power_on()
