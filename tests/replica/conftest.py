"""What tests of whole halves may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from colo.errors import ColoError
from colo.node import guest_thread
from colo.pages.dirty import open_source
from tests.machine.support import machine, multiboot
from tests.replica.support import BUSY, NAP
from vmm.machine import Machine
from vmm.ram import Ram

Source = Literal["kernel", "scan"]
NEVER_S = 3600.0


@pytest.fixture(params=["kernel", "scan"])
def source(request: pytest.FixtureRequest) -> Source:
    """Both sources of dirty pages, where the host has them."""
    name: Source = request.param
    if name == "kernel":
        try:
            open_source(Ram(1), "kernel").close()
        except ColoError as exc:
            pytest.skip(str(exc))
    return name


@pytest.fixture(params=["busy", "idle", "counter"])
def pc(request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = {"busy": lambda: machine(BUSY), "idle": lambda: machine(NAP)}
    with made.get(request.param, lambda: multiboot("counter", command_line="mib=0 ms=1"))() as pc:
        yield pc


@pytest.fixture
def no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that misses its wake-up sleeps for good, instead of for half a second."""
    monkeypatch.setattr(guest_thread, "REST_S", NEVER_S)
