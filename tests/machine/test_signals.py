"""Signal handlers while a machine runs: they are called, and what they raise is not lost in native frames."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import pytest

from tests.machine.support import MS, machine
from vmm.cpu.answers import Answers
from vmm.cpu.cpu import Cpu
from vmm.machine import Ended, Machine

FOREVER = "spin: jmp spin"


@pytest.mark.parametrize("paced", [False, True], ids=["free", "paced"])
def test_a_signal_handler_stops_a_busy_guest(paced: bool) -> None:
    """Python runs handlers between its own instructions only: the guest must come back by itself."""
    with machine("cli\n" + FOREVER, paced=paced) as pc:
        before = signal.signal(signal.SIGALRM, lambda *_: pc.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert pc.run() is Ended.REQUEST
        finally:
            signal.signal(signal.SIGALRM, before)


def test_an_exception_in_a_signal_handler_leaves_the_run() -> None:
    def raising(*_: object) -> None:
        raise KeyboardInterrupt

    with machine("spin: in al, 0x61\njmp spin") as pc:
        before = signal.signal(signal.SIGALRM, raising)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                pc.run()
            assert pc.run(pc.clock.now_ns + MS) is Ended.TIME, "and the machine can go on"
        finally:
            signal.signal(signal.SIGALRM, before)


def interrupted_at_line(pc: Machine, number: int) -> bool:
    """Run, and raise before the line with this number of those that enter native code; was there one?"""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace if frame.f_code in (Cpu.run.__code__, Answers.keep_lost.__code__) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        pc.run(pc.clock.now_ns + MS)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_on_the_way_into_a_run_leaves_nothing_of_ours_behind() -> None:
    """Whoever wants to hear of lost exceptions hears of them after the next run at the latest, once."""

    class Loses:
        def __del__(self) -> None:
            raise ValueError("planted")

    heard: list[object] = []
    before = sys.unraisablehook
    sys.unraisablehook = mine = lambda lost: heard.append(str(lost.exc_value))
    try:
        with machine("spin: in al, 0x61\njmp spin") as pc:
            number = 1
            while interrupted_at_line(pc, number):
                pc.run(pc.clock.now_ns + MS)
                assert sys.unraisablehook is mine, f"line {number}"
                Loses()
                assert heard == ["planted"] * number
                number += 1
        assert number > 10, "lines of both functions"
    finally:
        sys.unraisablehook = before
