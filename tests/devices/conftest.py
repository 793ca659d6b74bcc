"""Fixtures for the data-sheet tests: a clock moved by hand and a bench of recorded wires."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devices import virtio_driver
from tests.devices.promises import Rig
from vmm.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def bench(clock: ManualClock) -> Rig:
    """``bench.line(name)`` and ``bench.sink(name)`` make wiring; ``bench.log`` is what they saw."""
    return Rig(clock)


@pytest.fixture(scope="module", params=["in Python", "compiled"])
def ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which the work on a virtqueue is done: what a driver sees must be one thing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtio_driver, "COMPILED", request.param == "compiled")
        yield
