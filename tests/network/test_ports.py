"""Published ports: how they are written, and what is said when one cannot be had."""

from __future__ import annotations

import os
import socket

import pytest

from colo.errors import NetworkError
from colo.network.host import Publish
from colo.network.ports import listen, published


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("6379", Publish(6379, 6379)),
        ("6380:6379", Publish(6380, 6379)),
        ("0:6379", Publish(0, 6379)),
        ("0.0.0.0:6380:6379", Publish(6380, 6379, "0.0.0.0")),
        ("[::1]:6380:6379", Publish(6380, 6379, "::1")),
    ],
)
def test_ways_to_write_a_port(text: str, meaning: Publish) -> None:
    assert Publish.parse(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "redis", "0", "6379:", ":6379", "1:2:3:x", "70000", "1:70000", "-1:5", ":1:2"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(NetworkError, match="expected PORT, HOST-PORT:GUEST-PORT"):
        Publish.parse(text)


def test_pairs_of_numbers_are_ports_of_the_loopback() -> None:
    assert published([(6380, 6379), Publish(1, 2, "::1")]) == [Publish(6380, 6379), Publish(1, 2, "::1")]
    assert str(Publish(6380, 6379)) == "127.0.0.1:6380"
    assert str(Publish(6380, 6379, "::1")) == "[::1]:6380"


def test_a_free_port_is_chosen_and_told() -> None:
    [(port, listener)] = listen([Publish(0, 6379)])
    with listener:
        assert listener.getsockname() == ("127.0.0.1", port.host_port)
        assert port.host_port > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_names_its_user_and_another(host: str) -> None:
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError) as caught:
            listen([Publish(0, 1), Publish(port, 6379)])
    assert f"publishing 127.0.0.1:{port}: in use by " in str(caught.value)
    assert f"(pid {os.getpid()}): expected a free port; stop it, or choose another" in str(caught.value)
    assert "--publish " in str(caught.value)


def test_an_address_of_another_host_is_said() -> None:
    with pytest.raises(NetworkError, match="not an address of this host"):
        listen([Publish(0, 6379, "192.0.2.1")])


@pytest.mark.parametrize("host", ["no such host", "x:y"])
def test_what_is_no_address_is_said(host: str) -> None:
    with pytest.raises(NetworkError, match="expected ADDRESS:HOST-PORT:GUEST-PORT"):
        listen([Publish(0, 6379, host)])
