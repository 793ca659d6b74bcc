"""Addresses, and dialling what may or may not be a node."""

from __future__ import annotations

import asyncio
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from colo.errors import ColoError, NetworkError, PeerLost, Refused
from colo.messages import (
    CheckpointRequest,
)
from colo.transport.address import Address
from colo.transport.dial import dial
from colo.transport.link import Connection
from colo.transport.listener import Listener
from colo.transport.wire import Encoder
from tests.link.support import LIMIT_S, World, hello, run, shut, still_accepts
from vmm.errors import ConfigError

# Dialling


def test_dialling_nobody(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match=r"unix:.*cannot connect: No such file.*does a node listen there"):
        run(dial(Address.parse(f"unix:{tmp_path}/nobody"), hello()))


def test_dialling_a_listener_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/s")
        silent.listen()
        with pytest.raises(PeerLost, match=r"no answer within 0\.2 s"):
            run(dial(Address.parse(f"unix:{tmp_path}/s"), hello(), timeout_s=0.2))


def test_dialling_a_listener_that_answers_with_something_else(tmp_path: Path) -> None:
    async def test(answer: bytes) -> None:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            writer.write(answer)
            await reader.read()
            writer.close()
            await writer.wait_closed()
            served.set()

        server = await asyncio.start_unix_server(serve, f"{tmp_path}/s")
        with pytest.raises(ColoError, match=r"where a frame begins|expected Welcome or Refusal"):
            await dial(Address.parse(f"unix:{tmp_path}/s"), hello())
        await served.wait()
        server.close()
        await server.wait_closed()

    run(test(b"220 mail.example ESMTP\r\n" * 3))
    (tmp_path / "s").unlink(missing_ok=True)
    run(test(bytes(Encoder().frame(CheckpointRequest(1)))))


def test_a_dial_may_be_cancelled_at_any_step(world: World) -> None:
    async def test() -> None:
        async with world.listener(greeting_s=LIMIT_S) as listener:
            for steps in range(0, 90, 3):
                dialling = asyncio.create_task(world.dial(listener))
                for _ in range(steps):
                    await asyncio.sleep(0.0005)
                dialling.cancel()
                with suppress(
                    asyncio.CancelledError, Refused
                ):  # refused: the one before came through just now
                    await shut(await dialling)
            while listener._outcomes or listener._greetings:
                outcome = listener._outcomes.popleft() if listener._outcomes else None
                if isinstance(outcome, Connection):
                    await shut(outcome)
                await asyncio.sleep(0.001)
            await still_accepts(world, listener)

    run(test())


# Addresses


@pytest.mark.parametrize(
    "text", ["unix:/a/b", "unix:relative", "tcp:localhost:7000", "tcp:[::1]:0", "tcp:10.0.0.1:65535"]
)
def test_addresses_are_read_and_shown(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    """|unix:|tcp:|tcp:host|tcp::1|tcp:host:65536|tcp:host:-1|tcp:::1:80|tcp:[::1]|tcp:host:80:90|udp:host:80|
    /a/b|tcp:host:8O|tcp:a b:1|unix:a\0b|unix:{long}""".replace("\n    ", "")
    .format(long="x" * 108)
    .split("|"),
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Address.parse(text)


def test_a_unix_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        async with World(Address.parse(f"unix:{path}"), None).listener():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()

    run(test())


def test_a_socket_that_a_dead_node_left_is_taken_over_and_a_living_one_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        world = World(Address.parse(f"unix:{path}"), None)
        async with world.listener() as listener:
            with pytest.raises(NetworkError, match="another process does"):
                async with world.listener():
                    pass
            await still_accepts(world, listener)
        path.write_text("precious")
        with pytest.raises(NetworkError, match="no socket"):
            async with world.listener():
                pass
        assert path.read_text() == "precious"

    run(test())


def test_tcp_without_certificates_is_refused() -> None:
    address = Address.parse("tcp:localhost:7000")
    with pytest.raises(ConfigError, match="colo certs"):
        Listener(address, hello())
    with pytest.raises(ConfigError, match="colo certs"):
        run(dial(address, hello()))
