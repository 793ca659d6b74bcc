"""What the host asks of a running processor: stops, errors from devices, input, clock."""

from __future__ import annotations

import os
import select
import threading

import pytest

from tests.cpu.machine import MMIO, Machine, long, real
from vmm.cpu.cpu import Stop


class DeviceBroke(Exception):
    """What a device of these tests raises."""


def broken() -> None:
    raise DeviceBroke("port")


@pytest.mark.parametrize("where", ["out", "in", "write", "read"])
def test_an_exception_in_a_device_reaches_run(machine: Machine, where: str) -> None:
    access = {
        "out": "out 0x60, al",
        "in": "in al, 0x60",
        "write": f"mov [{MMIO:#x} + rbx], eax",
        "read": f"mov eax, [{MMIO:#x} + rbx]",
    }[where]
    source = (
        access if "[" not in access else f"mov ebx, {MMIO:#x}\n" + access.replace(f"{MMIO:#x} + rbx", "rbx")
    )
    long(machine, f"{source}\n jmp next\nnext: inc esi\n hlt")
    machine.ports.on_write = machine.ports.on_read = machine.mmio.on_write = machine.mmio.on_read = broken
    with pytest.raises(DeviceBroke, match="port"):
        machine.run()
    assert len(machine.ports.log) + len(machine.mmio.log) == 1
    machine.finish()
    assert machine.register("rsi") == 1, "the guest can go on, and nothing is repeated"
    assert len(machine.ports.log) + len(machine.mmio.log) == 1


def test_a_stop_in_a_port_access_repeats_nothing(machine: Machine) -> None:
    real(machine, "mov cx, 400\nl: out 0x60, al\n loop l\n hlt")
    machine.ports.on_write = machine.cpu.request_stop
    stops = 0
    while machine.run() is Stop.REQUEST:
        stops += 1
    assert stops == len(machine.ports.log) == 400


def test_a_stop_in_a_memory_access_repeats_nothing(machine: Machine) -> None:
    long(
        machine,
        f"mov ebx, {MMIO:#x}\n mov ecx, 100\nl: mov [rbx], ecx\n add eax, [rbx]\n dec ecx\n jnz l\n hlt",
    )
    machine.mmio.on_write = machine.mmio.on_read = machine.cpu.request_stop
    while machine.run() is Stop.REQUEST:
        pass
    assert len(machine.mmio.log) == 200


def test_deadline_stops_at_the_first_boundary_after_it(machine: Machine) -> None:
    real(machine, "l: nop\n nop\n jmp l")
    assert machine.run(1000) is Stop.DEADLINE
    assert machine.cpu.clock.now_ns == 1002, "blocks of three instructions"
    assert machine.run(1) is Stop.DEADLINE
    assert machine.cpu.clock.now_ns == 1005


def test_a_deadline_that_has_passed_runs_nothing(machine: Machine) -> None:
    real(machine, "l: inc bx\n jmp l")
    assert machine.run(0) is Stop.DEADLINE
    assert machine.cpu.clock.now_ns == 0
    assert machine.register("rbx") == 0


def test_a_timer_armed_by_a_device_stops_in_time(machine: Machine) -> None:
    real(machine, "out 0x60, al\nl: jmp l")
    timer = machine.cpu.clock.timer("test", lambda: None)
    machine.ports.on_write = lambda: timer.arm(machine.cpu.clock.now_ns + 500)
    assert machine.run() is Stop.DEADLINE
    assert timer.deadline_ns <= machine.cpu.clock.now_ns <= timer.deadline_ns + 2


def test_a_request_from_another_thread(machine: Machine) -> None:
    real(machine, "l: jmp l")
    thread = threading.Timer(0.02, machine.cpu.request_stop_later)
    thread.start()
    assert machine.run(10**12) is Stop.REQUEST
    thread.join()


def test_input_on_a_descriptor_stops_the_guest(machine: Machine) -> None:
    reader, writer = os.pipe()
    with select.epoll() as poll:
        poll.register(reader, select.EPOLLIN)
        machine.cpu.poll(poll.fileno())
        real(machine, "l: inc bx\n jmp l")
        assert machine.run(1_000_000) is Stop.DEADLINE
        os.write(writer, b"x")
        assert machine.run(10**12) is Stop.HOST_INPUT
        machine.cpu.poll(-1)
        assert machine.run(100_000) is Stop.DEADLINE
    os.close(reader)
    os.close(writer)


def test_an_error_in_the_acknowledge_callback(machine: Machine) -> None:
    long(machine, "sti\n nop\n jmp a\na: jmp b\nb: cli\n hlt")
    machine.vectors = [0x41]
    machine.cpu.interrupt_line.set(True)

    def acknowledge() -> int:
        raise DeviceBroke("no vector")

    machine.vectors = _Refuses(acknowledge)
    with pytest.raises(DeviceBroke, match="no vector"):
        machine.run()
    assert machine.log == [], "no vector was invented"


class _Refuses(list[int]):
    """A queue of vectors whose use raises."""

    def __init__(self, action: object) -> None:
        super().__init__([0x41])
        self._action = action

    def pop(self, *_: object) -> int:
        assert callable(self._action)
        result: int = self._action()
        return result
