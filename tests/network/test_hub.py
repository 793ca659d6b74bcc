"""The network without privilege: what it does, and that it says what it does not."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from colo.errors import NetworkError
from colo.network.hub import HubNetwork
from tests.network.support import WAIT_S
from vmm.backends.net import parse

FRAME = bytes.fromhex("ffffffffffff525400123456") + b"\x08\x06" + bytes(28)


def test_nodes_on_the_hub_hear_each_other() -> None:
    with HubNetwork("colo-test") as network:
        ports = [parse(network.nic(tap)) for tap in network.taps]
        ports[0].transmit(FRAME)
        assert select.select([ports[1]], [], [], WAIT_S)[0]
        assert ports[1].receive() == FRAME
        for port in ports:
            port.close()


def test_nothing_is_left_though_a_node_was_killed() -> None:
    network = HubNetwork("colo-test")
    network.start()
    assert network.alive
    assert network.directory is not None
    directory = Path(network.directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    (directory / "port-07").touch()  # what a killed node leaves
    network.close()
    assert not directory.exists()
    network.close()


def test_a_given_directory_stays(tmp_path: Path) -> None:
    with HubNetwork("colo-test", directory=str(tmp_path / "hub")) as network:
        assert network.nic("tap-b") == f"hub={tmp_path / 'hub'}"
    assert list((tmp_path / "hub").iterdir()) == []


def test_publishing_is_refused_with_what_a_hub_cannot_do() -> None:
    with pytest.raises(NetworkError, match="no clients of the host and no published ports"):
        HubNetwork("colo-test", publish=[(6379, 6379)])


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NetworkError, match=r"making the hub's directory: .*set TMPDIR"):
        HubNetwork("colo-test", directory=str(tmp_path / "file" / "hub")).start()


def test_programs_run_outside_of_any_namespace() -> None:
    with HubNetwork("colo-test") as network:
        assert network.namespace is None
        assert network.command(["true"]) == ["true"]
        assert network.run(["true"]).returncode == 0
        assert network.stats() == {}


def test_a_hub_that_is_not_started_is_said() -> None:
    with pytest.raises(NetworkError, match="not started"):
        HubNetwork("colo-test").nic("tap-a")
