"""Fixtures for the data-sheet tests: a clock moved by hand and a bench of recorded wires."""

from __future__ import annotations

import pytest

from tests.devices.promises import Rig
from vmm.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def bench(clock: ManualClock) -> Rig:
    """``bench.line(name)`` and ``bench.sink(name)`` make wiring; ``bench.log`` is what they saw."""
    return Rig(clock)
