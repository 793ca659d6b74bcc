"""Every processor test runs with plain and with patched block prologues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cpu.machine import Machine


@pytest.fixture(params=[False, True], ids=["plain", "patched"])
def patching(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def new(patching: bool) -> Iterator[Callable[..., Machine]]:
    """``new()`` is a machine of the kind under test."""
    made: list[Machine] = []

    def make(**options: Any) -> Machine:
        made.append(Machine(**{"patching": patching, **options}))
        return made[-1]

    yield make
    for machine in made:
        machine.cpu.close()


@pytest.fixture
def machine(new: Callable[..., Machine]) -> Machine:
    return new()
