"""A process that holds a live machine can be forked: both go on as one would have."""

from __future__ import annotations

import os
import select
import traceback
from collections.abc import Callable

import vmm
from vmm.machine import Machine


def in_child(act: Callable[[], bytes]) -> bytes:
    """What ``act`` says in a forked child, which ends then."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, act())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def gone_on(machine: Machine, ns: int) -> bytes:
    machine.after_fork()
    machine.run(machine.clock.now_ns + ns)
    return machine.state_hash()


def test_parent_and_child_come_to_one_state() -> None:
    with vmm.start("counter", append="mib=1 ms=1") as pc:
        pc.run_for(0.03)
        before = pc.machine.state_hash()
        child = in_child(lambda: gone_on(pc.machine, 40_000_000))
        assert pc.machine.state_hash() == before, "what the child did reached its parent"
        pc.run_for(0.04)
        assert child == pc.machine.state_hash()


def test_children_of_one_moment_are_alike() -> None:
    with vmm.start("udpecho") as pc:
        pc.run_for(0.02)
        pc.machine.door.enter("net0", bytes(60))
        first, second = (in_child(lambda: gone_on(pc.machine, 5_000_000)) for _ in range(2))
        assert first == second


def test_a_childs_descriptors_are_its_own() -> None:
    read, write = os.pipe()
    with vmm.start("hello") as pc:
        machine = pc.machine
        machine.call(read, lambda: None)

        def act() -> bytes:
            machine.after_fork()
            machine.stop()  # wakes the child's own wait
            machine.call(read, None)  # and it looks at the pipe no longer
            return b"done"

        assert in_child(act) == b"done"
        os.write(write, b"!")
        assert machine.pacer.ready() == {read}, "the parent still looks, and was not woken for the child"
    for each in (read, write):
        os.close(each)


def test_a_child_still_hears_what_it_looks_at() -> None:
    read, write = os.pipe()
    with vmm.start("hello") as pc:
        machine = pc.machine
        machine.call(read, lambda: None)
        os.write(write, b"!")

        def act() -> bytes:
            machine.after_fork()
            return b"heard" if machine.pacer.ready() == {read} else b"deaf"

        assert in_child(act) == b"heard"
        assert select.select([read], [], [], 0)[0] == [read]
    for each in (read, write):
        os.close(each)
