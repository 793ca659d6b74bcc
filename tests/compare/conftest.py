"""What the tests of TCP start from."""

from __future__ import annotations

import pytest

from tests.compare.pairs import Pair


@pytest.fixture
def pair() -> Pair:
    return Pair().opened()
