"""A bench for two nodes.  Its folder has a short name: a socket's path has at most 107 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.network.host import Network
from colo.pair import warm
from tests.cli.command import colo
from tests.pair import nodes
from tests.pair.nodes import Bench
from tests.pair.service import Service
from vmm.guest import BuiltGuest


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="pair-") as place, nodes.bench(Path(place)) as made:
        yield made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both nodes that :meth:`Bench.secured` starts, made as for two hosts."""
    directory = tmp_path_factory.mktemp("certificates")
    done = colo("certs", directory, "--host", "a", "--host", "localhost")
    assert done.status == 0, done.err
    return directory


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network("tests-pair") as made:
        yield made


@pytest.fixture
def serve(
    bench: Bench, network: Network, guest: Callable[[str], BuiltGuest]
) -> Iterator[Callable[[str], Service]]:
    """``serve("redis")``: that guest, booted and heard by nobody yet, for nodes and clients of the test."""
    made: list[Service] = []

    def begin(name: str) -> Service:
        guest(name)
        snapshot = warm.snapshot(name, net=Network.unplugged, say=print)
        made.append(Service(bench, network, name, snapshot))
        return made[-1]

    yield begin
    for each in made:
        each.close()
