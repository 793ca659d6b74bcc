"""What a test does to a node from inside: the node's own process calls it before anything else.

No node has a switch for such things.  Functions here are passed to :meth:`tests.pair.nodes.Bench.start`, so
they are top-level ones or partials of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from vmm.machine import Machine

PLANT = signal.SIGUSR2
"""Has what was prepared done."""


def on_signal(act: Callable[[Machine], None]) -> None:
    """``act`` is done to the machine, between two blocks, whenever ``PLANT`` comes."""
    from colo.node import process

    class Prepared(process.NodeProcess):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            signal.signal(PLANT, lambda *_: self.guest.submit(lambda: act(self.machine)))

    process.NodeProcess = Prepared  # type: ignore[misc]


def impatient(stall_s: float = 1.0) -> None:
    """A checkpoint that comes no further is given up sooner."""
    from colo.node import leading

    leading.STALL_S = stall_s


def patient(wait_ms: float = 1e6) -> None:
    """Policy ``colo`` waits for what the other guest says late, on however busy a host: then it said it."""
    import msgspec

    from colo.filters.compared import SETTINGS, ComparedOutput

    names = ("wait_ms", "ack_wait_ms", "console_wait_ms", "alone_ms")
    settings = msgspec.structs.replace(SETTINGS, **dict.fromkeys(names, wait_ms))
    ComparedOutput.__init__.__kwdefaults__["settings"] = settings  # type: ignore[index]


def end_at_checkpoint(epoch: int) -> None:
    """The node is told to end right before this checkpoint's pause, and the guest's thread is quicker."""
    from colo.node import leading

    capture = leading.Leading.capture

    def late(self: leading.Leading, at: int) -> Any:
        if at == epoch:
            guest = self.replica.guest
            guest.quit()
            while not guest._over:
                time.sleep(0.001)
        return capture(self, at)

    leading.Leading.capture = late  # type: ignore[method-assign]


# Acts


def flip_ram(machine: Machine) -> None:
    """One bit, in a page that no bare guest uses."""
    machine.ram.array[0x5000] ^= 1


def flip_chip(machine: Machine) -> None:
    machine.devices["rtc"].state.cmos[0x40] ^= 1


def leak_host_time(machine: Machine) -> None:
    """A clock chip that goes by the host's clock from now on."""
    machine.devices["rtc"].state.offset_ns = time.monotonic_ns() & 0xFFFF | 1


def become_deaf(machine: Machine) -> None:
    """Its interrupt controller masks the timer: time stands still for the guest."""
    machine.devices["pic"].state.master.imr |= 1
