"""What surrounds a machine that is replicated: descriptors of others, watchers, resets from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine.support import ECHO, MS, SECOND, machine, multiboot
from tests.replica.support import Ear
from vmm import recording
from vmm.machine import Backends, Ended

NAPPING = ECHO.format(idle="hlt")


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def test_a_descriptor_of_another_calls_between_two_blocks() -> None:
    """It wakes a guest that waits, interrupts one that computes, and is let go again."""
    for idle in ("hlt", ""):
        with pipe() as (reading, writing), machine(ECHO.format(idle=idle)) as pc:
            pc.run(MS)
            calls = [0]

            def act(calls: list[int] = calls, reading: int = reading) -> None:
                calls[0] += len(os.read(reading, 16))
                pc.pause()

            pc.call(reading, act)
            os.write(writing, b"x")
            assert pc.run(10**18) is Ended.PAUSED
            assert calls == [1]
            pc.call(reading, None)
            os.write(writing, b"x")
            pc.run(pc.clock.now_ns + MS)
            assert calls == [1]


def test_a_machine_that_does_not_listen_leaves_input_where_it_is() -> None:
    ear = Ear()
    with machine(NAPPING, Backends(consoles=[ear])) as pc:
        pc.run(MS)
        pc.listen(False)
        ear.type(b"x")
        pc.run(pc.clock.now_ns + 10 * MS)
        assert ear.heard == b""
        pc.listen(True)
        pc.run(pc.clock.now_ns + 10 * MS)  # it enters at the end of the wait
        pc.run(pc.clock.now_ns + 10 * MS)
        assert ear.heard == b"x"
    ear.close()


def test_a_watcher_knows_whether_the_guest_waits() -> None:
    with multiboot("counter", command_line="mib=0 ms=1") as pc:
        pc.run(10 * MS)
        seen: list[bool] = []
        pc.watch(seen.append)
        pc.run(pc.clock.now_ns + 10 * MS)
        assert set(seen) == {False, True}
        pc.watch(None)
        seen.clear()
        pc.run(pc.clock.now_ns + 10 * MS)
        assert seen == []


def test_a_reset_from_outside_is_an_input_like_any_other(tmp_path: Path) -> None:
    """Recorded with its time; a replay does it there, before what entered after it."""
    log = tmp_path / "log"
    with multiboot("counter") as pc:
        pc.run(10 * MS)
        recording.start(pc, log)
        pc.run(20 * MS)
        pc.door.enter("reset", b"\0")
        pc.door.enter("com1", b"after it")
        pc.run(SECOND)
        recording.finish(pc, "enough")
        expected = pc.digest
    with multiboot("counter") as twin:
        twin.run(10 * MS)
        recording.follow(twin, log)
        assert recording.run(twin) == "enough"
        assert twin.digest == expected


def test_packed_states_are_compared_field_by_field() -> None:
    with machine(NAPPING) as pc:
        pc.run(MS)
        before = pc.everything_unchecked()
        assert pc.section_differences(before, before) == []
        pc.devices["rtc"].state.cmos[0x40] ^= 1
        (difference,) = pc.section_differences(before, pc.everything_unchecked())
        assert difference.startswith("rtc.cmos")
