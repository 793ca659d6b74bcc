"""A started network, and a guest on it that is a network stack of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colo.network.host import Network


@pytest.fixture
def network() -> Iterator[Network]:
    with Network("colo-test", publish=[(0, 6379), (0, 6380)]) as made:
        yield made


@pytest.fixture
def guest() -> Iterator[Network]:
    """A namespace whose bridge has the guest's address: what it speaks comes out at its tap-a."""
    with Network("colo-test-guest", address="10.77.0.2/24", guest_address="10.77.0.99") as made:
        yield made
