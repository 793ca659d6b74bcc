"""Who can be a pair: every difference is refused by its name, on both sides, before anything else passes."""

from __future__ import annotations

import asyncio
import re

import pytest

from colo.build import build
from colo.errors import ProtocolViolation, Refused
from colo.messages import CONFIG_MAX, TEXT_MAX, CheckpointReady, Hello, Refusal, Welcome
from colo.transport.handshake import INTERVAL_MS_MAX, verdict, welcomed
from colo.transport.wire import GREETING_MAX, PROTOCOL_DIGEST, Encoder
from tests.link.support import World, hello, run, shut
from vmm.config import DiskConfig, NetConfig, PcConfig, mac
from vmm.state import pack


def with_other(**changes: object) -> Hello:
    return Hello(**{**{name: getattr(hello(), name) for name in Hello.__struct_fields__}, **changes})


DIFFERENT = {
    "protocol": (with_other(protocol="other"), f"protocol other, this node has {PROTOCOL_DIGEST}"),
    "build": (with_other(build="0.0"), f"build 0.0, this node has {re.escape(build())}"),
    "engine": (with_other(engine="qemu"), "CPU engine qemu, this node has engine"),
    "layout": (with_other(layout="other"), "device layout other, this node has layout"),
    "RAM": (hello(config=pack(PcConfig(ram_mib=512))), "RAM 512 MiB, this node has 256 MiB"),
    "seed": (hello(config=pack(PcConfig(seed=b"x"))), "configuration .*seed"),
    "cards": (hello(config=pack(PcConfig(nets=[NetConfig(mac(0))]))), "configuration .*nets"),
    "no config": (hello(config=b""), "its configuration cannot be read"),
    "hostile config": (hello(config=b"\xdd\xff\xff\xff\xff" * 100), "its configuration cannot be read"),
    "padded config": (hello(config=pack(PcConfig()) + b"\0"), "its configuration cannot be read"),
    "pair": (hello(pair="postgres"), "pair postgres, this node belongs to redis"),
    "no interval": (hello(interval_ms=0), "heartbeats every 0 ms, this node takes 5 to"),
    "endless interval": (hello(interval_ms=1 << 60), "heartbeats every .* ms, this node takes 5 to"),
}


def test_equals_may_be_a_pair() -> None:
    assert verdict(hello(), hello()) is None


def test_the_generation_is_the_primarys_to_dictate() -> None:
    assert verdict(hello(generation=1), hello(generation=99)) is None


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_each_difference_has_its_reason(name: str) -> None:
    theirs, reason = DIFFERENT[name]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(verdict(hello(), theirs))


def test_a_reason_is_short_and_printable_whatever_the_peer_says() -> None:
    disks = [DiskConfig(sectors=n, serial="\x1b[2J") for n in range(8)]
    for theirs in (
        with_other(build="\x1b]0;owned\x07" + "x" * (TEXT_MAX - 20)),
        hello(pair="\n" * TEXT_MAX),
        hello(pair=""),
        hello(config=pack(PcConfig(disks=disks, seed=b"\x07" * 64))),
        hello(config=b"\xff" * CONFIG_MAX),
    ):
        reason = verdict(hello(), theirs)
        assert reason is not None
        assert reason.isprintable()
        assert len(reason) < 600


def test_the_largest_hello_fits_the_greetings_limit() -> None:
    longest = "\U0001f600" * TEXT_MAX
    largest = with_other(
        pair=longest,
        protocol=longest,
        build=longest,
        layout=longest,
        engine=longest,
        config=bytes(CONFIG_MAX),
    )
    Encoder(GREETING_MAX).frame(largest)


@pytest.mark.parametrize("name", ["protocol", "RAM", "hostile config", "pair"])
def test_both_sides_say_why_and_the_listener_goes_on(world: World, name: str) -> None:
    theirs, reason = DIFFERENT[name]

    async def test() -> None:
        async with world.listener() as listener:
            with pytest.raises(Refused, match=f"the other node refused: {reason}"):
                await world.dial(listener, theirs)
            with pytest.raises(Refused, match=f"refused the other node: {reason}"):
                await listener.accept()
            near, far = await asyncio.gather(world.dial(listener), listener.accept())
            await shut(near, far)

    run(test())


def test_both_learn_what_the_other_said(world: World) -> None:
    async def test() -> None:
        async with world.listener(mine=hello(interval_ms=40)) as listener:
            mine = hello(generation=7, interval_ms=30)
            near, far = await asyncio.gather(world.dial(listener, mine), listener.accept())
            assert isinstance(far.theirs, Hello)
            assert (far.theirs.generation, far.theirs.interval_ms) == (7, 30)
            assert isinstance(near.theirs, Welcome)
            assert near.theirs.interval_ms == 40
            await shut(near, far)

    run(test())


def test_refusals_that_nobody_asks_for_are_bounded(world: World) -> None:
    async def test() -> None:
        async with world.listener() as listener:
            for _ in range(20):
                with pytest.raises(Refused):
                    await world.dial(listener, hello(pair="other"))
            assert len(listener._outcomes) <= 8
            assert listener.turned_away >= 10

    run(test())


def test_what_a_primary_makes_of_an_answer() -> None:
    assert welcomed(Welcome(50, b"")) == Welcome(50, b"")
    with pytest.raises(Refused, match="the other node refused: because"):
        welcomed(Refusal("because"))
    with pytest.raises(Refused, match="heartbeats come every"):
        welcomed(Welcome(INTERVAL_MS_MAX + 1, b""))
    with pytest.raises(ProtocolViolation, match="expected Welcome or Refusal, the peer sent CheckpointReady"):
        welcomed(CheckpointReady())
