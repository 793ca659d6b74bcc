"""A standing-by guest tries its part, and everything it did is taken back.

A machine that never ran has translated nothing: a survivor's first answers would wait for the translation
of some ten thousand blocks, a tenth of a second.  So while it stands by, its guest runs a little now and
then, from the last committed state and with the inputs that the primary's guest has been given since,
mute.  Then its RAM is made the committed image again (:mod:`colo.node.standby_ram`); its device state is
loaded anew whenever it is to run.  What stays is the translated code of pages that did not change.

A rehearsal is a job of the guest's thread.  Whoever wants the machine ends it early: a stop is seen
within a few ten microseconds, taking back costs a millisecond or two.

Not rehearsed: a machine with a disk whose writes could not be taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from colo.messages import Packet
from colo.node.replica import Replica
from colo.node.standby_ram import NO_PAGES, StandbyRam
from vmm.machine import Ended

LENGTH_NS = 5_000_000
"""Of virtual time: the answer to a request, and what a kernel does a tick later."""
EVERY_S = 0.5
"""A few milliseconds of processor time each, once everything is translated."""
AGAIN_S = 0.02
"""After one that was ended early: the first ones translate all that they execute, and take long."""


class Rehearsal:
    """``begin`` and ``finish`` in the loop's thread."""

    def __init__(self, replica: Replica, standby: StandbyRam) -> None:
        self._replica = replica
        self._standby = standby
        self._running: Future[bool] | None = None
        self._unwanted = False
        """Somebody waits for the end of the one that runs."""
        self._next_s = 0.0
        self.count = 0
        self._possible = replica.may_run_twice

    @property
    def is_due(self) -> bool:
        return self._possible and self._running is None and self._replica.now_s() >= self._next_s

    def begin(self, state: Mapping[str, bytes], inputs: Iterable[Packet]) -> None:
        """From this committed state, with these inputs."""
        packets = list(inputs)
        self.count += 1
        self._unwanted = False
        self._running = self._replica.guest.submit(lambda: self._rehearse(state, packets))

    async def finish(self) -> None:
        """The machine is the committed one, and nobody's."""
        if self._running is not None:
            self._interrupt()
            self._ended(await asyncio.wrap_future(self._running))

    def finish_now(self) -> None:
        """The same, for a take-over: waits for the guest's thread."""
        if self._running is not None:
            self._interrupt()
            self._ended(self._running.result())

    def _interrupt(self) -> None:
        self._unwanted = True
        self._replica.machine.stop()

    def _ended(self, whole: bool) -> None:
        self._running = None
        self._next_s = self._replica.now_s() + (EVERY_S if whole else AGAIN_S)

    # The guest's thread

    def _rehearse(self, state: Mapping[str, bytes], inputs: list[Packet]) -> bool:
        """Was it played to its end?"""
        machine = self._replica.machine
        consoles, machine.serial.consoles = machine.serial.consoles, []
        restarts, machine.restart_on_reset = machine.restart_on_reset, False
        paced, machine.pacer.paced, machine.pacer.deaf = machine.pacer.paced, False, True
        try:
            machine.load_sections(state, NO_PAGES)
            for port, payload in inputs:
                machine.door.enter(port, payload)
            return self._play(machine.clock.now_ns + LENGTH_NS)
        finally:
            machine.serial.consoles, machine.restart_on_reset = consoles, restarts
            machine.pacer.paced, machine.pacer.deaf = paced, False
            machine.door.forget()
            self._take_back()

    def _play(self, until_ns: int) -> bool:
        """A stop that came when an earlier rehearsal had ended by itself is still there, and not for us."""
        while self._replica.machine.run(until_ns) is Ended.REQUEST:
            if self._unwanted:
                return False
        return True

    def _take_back(self) -> None:
        self._replica.machine.cpu.invalidate_pages(self._standby.give_back())
