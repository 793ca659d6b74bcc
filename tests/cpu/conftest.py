"""Every processor test runs with plain and with patched block prologues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cpu.checked_lookup import checking
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


@pytest.fixture
def checked(machine: Machine) -> Iterator[Any]:
    """Every answer to where the next block is must be the engine's; the counts so far."""
    with checking(machine.cpu.library) as words:
        yield words
        asked, wrong, *last = words.tolist()
        assert asked > 0
        assert wrong == 0, [hex(word) for word in last]
