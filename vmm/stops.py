"""Exact places in a program: stop there, or act there, and go on as if nothing had been.

    stops = machine.stops
    stops.run_to_instruction(stops.instructions + 1000)      stands before the 1001st from here
    stops.run_to_address(0x100020, hits=3)                   before its third execution from here
    stops.run_to_time(5_000_000)                             before the first instruction that begins then
    stops.step()

A machine that stopped so and goes on ends in the same state, at the same virtual time, as one that never did
(:mod:`vmm.cpu.exact` says how, what is counted, and the one exception).  While nothing is asked for, nothing
is looked at.  To ask for an address costs a translation of all code anew, and slows down the blocks that hold
it.

``at_instruction``, ``at_time`` and ``at_address`` call a function instead, while the machine runs.  It is
called at a boundary of blocks, with how many instructions of the next block come before the place: there an
input may enter, with that number in it (:mod:`vmm.inject`).  An address that is not the first of its block is
not certain to be reached: an exception may come before it.

Inside a block the machine has a state and a hash and registers, but it is no place for a snapshot: the block
is charged as a whole.  ``finish_block`` leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmm.clock import NEVER_NS
from vmm.errors import StateError
from vmm.runloop import Ended

if TYPE_CHECKING:
    from vmm.machine import Machine

Act = Callable[[int], None]
"""Called with the number of instructions between the machine and the place."""


class Place:
    """Something to do at one place.  Exactly one of the three is given."""

    __slots__ = ("act", "address", "hits", "instruction", "time_ns")

    def __init__(
        self,
        act: Act,
        *,
        instruction: int | None = None,
        time_ns: int = NEVER_NS,
        address: int | None = None,
        hits: int = 1,
    ) -> None:
        self.act = act
        self.instruction, self.time_ns, self.address, self.hits = instruction, time_ns, address, hits


class Stops:
    """The places of one machine."""

    __slots__ = ("_loop", "_machine", "_parts", "_places")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._loop = machine.loop
        self._parts = machine.cpu.parts
        self._places: list[Place] = []

    @property
    def instructions(self) -> int:
        """Instructions that were executed since this machine was made, as the clock counts them."""
        return self._parts.instructions

    @property
    def address(self) -> int:
        """Linear address of the next instruction."""
        return self._parts.address

    @property
    def inside(self) -> bool:
        """Does the machine stand inside a block?"""
        return self._parts.inside

    # Running to a place

    def run_to_instruction(self, number: int, until_ns: int = NEVER_NS) -> Ended:
        """Until :attr:`instructions` is ``number`` (Ended.EXACT), or as :meth:`vmm.machine.Machine.run`."""
        return self._run(self.at_instruction(number, self._stop), until_ns)

    def run_to_time(self, time_ns: int, until_ns: int = NEVER_NS) -> Ended:
        """Until the first instruction that begins at ``time_ns`` or later."""
        return self._run(self.at_time(time_ns, self._stop), until_ns)

    def run_to_address(self, address: int, hits: int = 1, until_ns: int = NEVER_NS) -> Ended:
        """Until the instruction at linear ``address`` is about to be executed for the ``hits``-th time.

        Executions count from here on, and that of the instruction at which the machine stands is the first.
        """

        def stop(ahead: int) -> None:
            if ahead == 0 or (self._loop.run_part(ahead) and self._parts.address == address):
                self._loop.end(Ended.EXACT)
            else:
                again.append(self.at_address(address, 1, stop))

        again = [self.at_address(address, hits, stop)]
        try:
            return self._machine.run(until_ns)
        finally:
            self.cancel(again[-1])

    def step(self, count: int = 1, until_ns: int = NEVER_NS) -> Ended:
        """Execute ``count`` instructions.  A halted guest waits for what wakes it, and executes then."""
        return self.run_to_instruction(self.instructions + count, until_ns)

    def finish_block(self) -> None:
        """Execute what is left of the block that the machine stands in."""
        if self.inside:
            self._machine.run(self._machine.clock.now_ns)

    def _run(self, place: Place, until_ns: int) -> Ended:
        try:
            return self._machine.run(until_ns)
        finally:
            self.cancel(place)

    def _stop(self, ahead: int) -> None:
        if ahead:
            self._loop.run_part(ahead)
        self._loop.end(Ended.EXACT)

    def require_boundary(self) -> None:
        """StateError inside a block."""
        if self.inside:
            raise StateError(
                f"the machine stands inside a block, at {self.address:#x}: a snapshot would charge it twice;"
                " call stops.finish_block() first"
            )

    # Acting at a place

    def at_instruction(self, number: int, act: Act) -> Place:
        """``act`` before the instruction with this number; at once if it was executed already."""
        return self._add(Place(act, instruction=number))

    def at_time(self, time_ns: int, act: Act) -> Place:
        """``act`` before the first instruction that begins at ``time_ns`` or later."""
        return self._add(Place(act, time_ns=time_ns))

    def at_address(self, address: int, hits: int, act: Act) -> Place:
        """``act`` before the ``hits``-th execution from now on of the instruction at linear ``address``."""
        assert hits > 0, hits
        return self._add(Place(act, address=address, hits=hits))

    def soon(self, act: Act) -> None:
        """``act`` at the next boundary.  The one of these that a device may call while the guest runs."""
        self._loop.errands.append(lambda: act(0))
        self._machine.cpu.request_stop()

    def cancel(self, place: Place) -> None:
        """Forget it, if it was not reached."""
        if place in self._places:
            self._note_hits()
            self._places.remove(place)
            self._ask()

    def _add(self, place: Place) -> Place:
        self._note_hits()
        self._places.append(place)
        self._ask()
        return place

    def _note_hits(self) -> None:
        """Executions that were counted since the table was made are no longer ahead."""
        left = self._parts.watched()
        nearest = self._nearest()
        for place in self._places:
            if place.address is not None and place.address in left:
                place.hits -= nearest[place.address] - left[place.address]

    def _nearest(self) -> dict[int, int]:
        nearest: dict[int, int] = {}
        for place in self._places:
            if place.address is not None:
                nearest[place.address] = min(place.hits, nearest.get(place.address, place.hits))
        return nearest

    def _ask(self) -> None:
        """Tell the processor the next place of each kind, and the run loop whom to call."""
        numbers = [place.instruction for place in self._places if place.instruction is not None]
        time_ns = min((place.time_ns for place in self._places), default=NEVER_NS)
        self._parts.stop_at(min(numbers, default=None), time_ns)
        self._parts.watch(self._nearest())
        self._loop.place_ns = time_ns
        self._loop.places = self._reached if self._places else None

    def _reached(self) -> None:
        """The processor is before a place, or the clock has come to one."""
        stopped = self._parts.take_place()
        ahead, found = stopped if stopped is not None else (0, None)
        self._note_hits()
        here = [place for place in self._places if self._is_here(place, ahead, found)]
        self._places = [place for place in self._places if place not in here]
        self._ask()
        for place in here:
            place.act(ahead)

    def _is_here(self, place: Place, ahead: int, found: int | None) -> bool:
        if place.instruction is not None:
            return place.instruction <= self._parts.instructions + ahead
        if place.address is not None:
            return place.address == found and place.hits == 1
        return place.time_ns <= self._parts.begins_ns(ahead)
