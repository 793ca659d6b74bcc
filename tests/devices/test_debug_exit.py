"""The debug exit port: QEMU's status formula."""

from __future__ import annotations

import pytest

from tests.devices.promises import Rig
from vmm.devices.debug_exit import DebugExit


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x10, 33), (0x31, 99)])
def test_status_is_odd_and_holds_the_value(bench: Rig, value: int, status: int) -> None:
    DebugExit(exit=bench.sink("exit")).write(0, 1, value)
    assert bench.log == [("exit", status)]


def test_reading_does_nothing(bench: Rig) -> None:
    assert DebugExit(exit=bench.sink("exit")).read(0, 4) == 0
    assert bench.log == []
