"""Choosing a network back end, and what all of them share."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmm.backends.hub import HubPort
from vmm.backends.net import (
    FRAME_MAX,
    FRAME_MIN,
    UNIX_PATH_MAX,
    NetBackend,
    Nowhere,
    is_frame,
    is_served,
    parse,
    unix_address,
)
from vmm.backends.stream import Stream
from vmm.errors import BackendError, ConfigError


def test_none_swallows_and_counts() -> None:
    nowhere: NetBackend = parse("none")
    nowhere.transmit(b"\0" * 60)
    assert isinstance(nowhere, Nowhere)
    assert (nowhere.fileno(), nowhere.receive(), nowhere.dropped, nowhere.offloads) == (-1, None, 1, False)
    nowhere.flush()
    nowhere.close()


def test_an_unplugged_card_may_offer_what_a_tap_does() -> None:
    """For a snapshot that will be resumed where there is one."""
    nowhere: NetBackend = parse("none,offloads")
    assert isinstance(nowhere, Nowhere)
    assert nowhere.offloads
    assert (nowhere.fileno(), nowhere.receive()) == (-1, None)


def test_parse_opens_what_it_names(tmp_path: Path) -> None:
    server: NetBackend = parse(f"stream={tmp_path}/cable,server")
    client: NetBackend = parse(f"stream={tmp_path}/cable")
    port: NetBackend = parse(f"hub={tmp_path}/hub")
    assert isinstance(server, Stream)
    assert isinstance(client, Stream)
    assert isinstance(port, HubPort)
    for backend in (server, client, port):
        assert backend.fileno() >= 0
        assert not backend.offloads
        backend.close()
        assert backend.fileno() == -1


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "tap",
        "tap=",
        "stream=",
        "stream=,server",
        "hub=",
        "none=x",
        "none,offload",
        "none,",
        "user",
        "x=y",
    ],
)
def test_a_spec_that_says_nothing_is_refused_with_what_to_type(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"expected tap=NAME, stream=PATH\[,server\]"):
        parse(spec)


def test_frame_limits() -> None:
    """14 bytes are a header alone (IEEE 802.3, 3.2.2); 65550 are 64 KiB behind one."""
    assert [is_frame(n) for n in (FRAME_MIN - 1, FRAME_MIN, FRAME_MAX, FRAME_MAX + 1)] == [
        False,
        True,
        True,
        False,
    ]


def test_unix_address_limit_is_the_kernels() -> None:
    """unix(7): sun_path has 108 bytes, one of them for the final zero."""
    longest = "/tmp/" + "x" * (UNIX_PATH_MAX - 5)
    assert unix_address(longest, "stream") == longest
    with pytest.raises(BackendError, match=r"108 bytes: expected .* at most 107.*shorter path"):
        unix_address(longest + "x", "stream")
    with pytest.raises(BackendError, match="zero byte"):
        unix_address("a\0b", "stream")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_is_served_tells_the_living_from_the_dead(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = str(tmp_path / "s")
    assert not is_served(path)
    holder = socket.socket(socket.AF_UNIX, kind)
    holder.bind(path)
    if kind != socket.SOCK_DGRAM:
        holder.listen(1)
    assert is_served(path)
    if kind != socket.SOCK_DGRAM:
        holder.setblocking(False)
        with pytest.raises(BlockingIOError):  # the probe left no connection behind
            holder.accept()
    holder.close()
    assert os.path.exists(path)  # noqa: PTH110 - as the tested function sees it
    assert not is_served(path)
