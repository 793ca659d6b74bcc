"""A card's back end behind filters, and the machine's hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from colo.filters import FilteredNet, OutputHold
from tests.filters.cables import Cable
from vmm.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hold() -> OutputHold:
    return OutputHold()


@pytest.fixture
def plug(clock: ManualClock) -> Iterator[Callable[..., tuple[FilteredNet, Cable]]]:
    """``plug("net0")`` is a card's back end and its far end, closed when the test is done."""
    made: list[FilteredNet] = []

    def new(name: str = "net0", *, muted: bool = False, offloads: bool = False) -> tuple[FilteredNet, Cable]:
        cable = Cable(offloads)
        net = FilteredNet(cable, name, now_ns=lambda: clock.now_ns, muted=muted)
        made.append(net)
        return net, cable

    yield new
    for net in made:
        net.close()
