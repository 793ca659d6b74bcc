"""Input that is taken between two blocks of a run: as if the guest had stopped there, without the stop."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.cpu.machine import Machine, long, real
from vmm.cpu.cpu import Stop
from vmm.state import pack

VECTOR = 0x41
LIMIT_NS = 10**7
"""Of virtual time, in which a run that is not stopped ends: ten times what these programs take."""
LOOP = "mov ecx, 300000\n sti\nl: inc rbx\n dec ecx\n jnz l\n cli\n hlt"
DEAF_LOOP = LOOP.replace("sti\n", "nop\n")


class Source:
    """Something to be polled, with bytes in it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.reader, self.writer = os.pipe()
        self.poll = select.epoll()
        self.poll.register(self.reader, select.EPOLLIN)
        machine.cpu.poll(self.poll.fileno())

    def put(self, count: int = 1) -> None:
        os.write(self.writer, bytes(count))

    def take(self) -> None:
        os.read(self.reader, 1)

    def close(self) -> None:
        self.poll.close()
        os.close(self.reader)
        os.close(self.writer)


@contextmanager
def source(machine: Machine) -> Iterator[Source]:
    made = Source(machine)
    try:
        yield made
    finally:
        made.close()


def outcome(act: Callable[[Machine], None], heard: bool, program: str, patching: bool) -> tuple[bytes, ...]:
    """Where a guest is at its end that had five inputs, one a look, and how many interrupts it took."""
    machine = Machine(patching=patching)
    long(machine, program)
    with source(machine) as inputs:

        def take() -> bool:
            inputs.take()
            act(machine)
            return True

        if heard:
            machine.cpu.hear(take)
        inputs.put(5)
        stops = 0
        while (stop := machine.run(LIMIT_NS)) is Stop.HOST_INPUT:
            stops += 1
            take()
        assert stop is Stop.HALT
        left = len(os.read(inputs.reader, 5)) if select.select([inputs.reader], [], [], 0)[0] else 0
        assert stops == (0 if heard else 5 - left)
        assert left < 5
        found = pack(machine.cpu.state), bytes(machine.ram.array), bytes([left]), repr(machine.log).encode()
    machine.cpu.close()
    return found


@pytest.mark.parametrize("patching", [True, False])
@pytest.mark.parametrize("program", [LOOP, DEAF_LOOP])
@pytest.mark.parametrize(
    "act",
    [
        lambda machine: machine.interrupt(VECTOR),
        lambda machine: None,
        lambda machine: machine.cpu.raise_nmi(),
    ],
    ids=["interrupt", "nothing", "nmi"],
)
def test_the_guest_cannot_tell(act: Callable[[Machine], None], program: str, patching: bool) -> None:
    assert outcome(act, True, program, patching) == outcome(act, False, program, patching)


def test_what_is_not_taken_stops_the_guest(machine: Machine) -> None:
    real(machine, "l: inc bx\n jmp l")
    with source(machine) as inputs:
        machine.cpu.hear(lambda: False)
        inputs.put()
        assert machine.run(LIMIT_NS) is Stop.HOST_INPUT
        machine.cpu.poll(-1)


def test_a_stop_that_is_asked_for_meanwhile(machine: Machine) -> None:
    """It is there and then: not a block later."""
    real(machine, "l: inc bx\n jmp l")
    with source(machine) as inputs:
        at: list[int] = []

        def take() -> bool:
            inputs.take()
            machine.cpu.request_stop()
            at.append(machine.cpu.clock.now_ns)
            return True

        machine.cpu.hear(take)
        inputs.put()
        assert machine.run(LIMIT_NS) is Stop.REQUEST
        assert at == [machine.cpu.clock.now_ns]
        machine.cpu.poll(-1)


def test_an_error_reaches_run(machine: Machine) -> None:
    real(machine, "l: inc bx\n jmp l")
    with source(machine) as inputs:

        def take() -> bool:
            raise LookupError("input")

        machine.cpu.hear(take)
        inputs.put()
        with pytest.raises(LookupError, match="input"):
            machine.run(LIMIT_NS)
        machine.cpu.poll(-1)


def test_code_that_is_overwritten_is_not_run_on(machine: Machine) -> None:
    """The block that comes next may be the one: the run stops, and finds the new code."""
    labels = real(machine, "l: inc bx\n jmp l\n out_: hlt")
    with source(machine) as inputs:

        def take() -> bool:
            inputs.take()
            machine.ram.write(labels["l"], b"\xf4")  # hlt
            return True

        machine.cpu.hear(take)
        inputs.put()
        assert machine.run(LIMIT_NS) is Stop.HOST_INPUT
        assert machine.run(LIMIT_NS) is Stop.HALT
        machine.cpu.poll(-1)


def test_while_blocks_are_counted_nothing_is_heard(machine: Machine) -> None:
    real(machine, "l: inc bx\n jmp l")
    with source(machine) as inputs:
        machine.cpu.hear(lambda: True)
        machine.cpu.parts.stop_at(10**9, 1 << 62)
        inputs.put()
        assert machine.run(LIMIT_NS) is Stop.HOST_INPUT
        machine.cpu.poll(-1)
