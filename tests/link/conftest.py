"""Every test of a link is run over a Unix socket, and over TCP with mutual TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.transport.address import Address
from colo.transport.certs import Credentials
from tests.link.support import World, authority


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("certs"), "localhost")


@pytest.fixture(params=["unix", "tcp"])
def world(request: pytest.FixtureRequest, tmp_path: Path, certificates: Path) -> World:
    if request.param == "unix":
        return World(Address.parse(f"unix:{tmp_path}/link"), None)
    return World(Address.parse("tcp:localhost:0"), Credentials(certificates, "localhost"))
