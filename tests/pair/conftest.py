"""A bench for two nodes.  Its folder has a short name: a socket's path has at most 107 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import nodes
from tests.pair.nodes import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="pair-") as place, nodes.bench(Path(place)) as made:
        yield made
