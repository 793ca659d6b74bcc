"""One golden run of the counter, and one walker on its way, for all tests of campaigns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colo.campaign import golden
from colo.campaign.golden import GoldenRun
from colo.campaign.subject import Subject
from colo.campaign.walker import Walker
from tests.campaign.subjects import COUNTER


@pytest.fixture(scope="session")
def counter_run() -> GoldenRun:
    with Subject(COUNTER) as subject:
        return golden.record(subject)


@pytest.fixture(scope="session")
def walker(counter_run: GoldenRun) -> Iterator[Walker]:
    made = Walker(counter_run)
    yield made
    made.close()
