"""A place for sockets: their paths have at most 107 bytes, which a test's own folder may exceed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as name:
        yield Path(name)
