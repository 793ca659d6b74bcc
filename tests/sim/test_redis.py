"""Linux and Redis in the world: a real TCP at the guest's end, and what clients of a pair were promised."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo.checkers import Counter, Wire, linearizable
from colo.checkers.history import History, Returned
from colo.faults.model import AtTime, LinkFault
from colo.sim.clients import http_get, redis_counter
from colo.sim.host import Host
from colo.sim.world import World
from tests.sim.support import POLICIES
from vmm.guest import BuiltGuest

NOW = AtTime(ns=0)
LIMIT_S = 20.0
Ready = Callable[[str], BuiltGuest]


def answers(history: History) -> list[int]:
    return [event.result for event in history.events if isinstance(event, Returned)]


def clients(history: History) -> set[str]:
    return {history.operation(event.operation).client for event in history.events}


async def ask(host: Host, command: bytes) -> bytes:
    stream = await host.connect("10.77.0.2", 6379)
    await stream.send(command)
    answer = await stream.read_until(b"\r\n")
    if answer.startswith(b"$"):
        answer = await stream.read_until(b"\r\n")
    stream.close()
    return answer.strip()


def counted(policy: str, seed: int = 7) -> tuple[str, History, int]:
    """One client counts, its primary is killed, it counts on: digest, history, and what is there at last."""
    history, wire = History(), Wire()
    with World(seed) as world:
        world.on_frame.append(
            lambda who, what, frame: (
                wire.frame(world.now_ns, who, frame)
                if who.startswith("client0.") and what == "carries"
                else None
            )
        )
        pair = world.pair("redis", policy)
        world.client(redis_counter(history, pause_s=0.005))
        world.run_until(lambda: pair.is_protected and len(answers(history)) >= 10, LIMIT_S)
        world.kill(pair.primary)
        before = len(answers(history))
        world.run_until(lambda: len(answers(history)) >= before + 10, LIMIT_S)
        last = world.client(lambda host: ask(host, b"GET counter\r\n"))
        world.run_until(lambda: last.is_done, LIMIT_S)
        assert wire.verdict().ok, wire.verdict()
        return world.digest, history, int(last.actor.result())


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_a_connection_survives_and_no_acknowledged_write_is_lost(policy: str, guest: Ready) -> None:
    guest("redis")
    digest, history, last = counted(policy)
    assert clients(history) == {"client0.1"}, "the connection broke"
    told = answers(history)
    assert told == [*range(1, len(told) + 1)]
    assert last >= told[-1]
    verdict = linearizable(history, Counter())
    assert verdict.ok, verdict
    assert counted(policy)[0] == digest


@pytest.mark.parametrize("effect", ["drop", "duplicate", "reorder", "corrupt"])
def test_our_tcp_and_linux_understand_each_other_on_a_bad_cable(effect: str, guest: Ready) -> None:
    guest("redis")
    history = History()
    with World(9) as world:
        world.machine("redis", "m")
        bad = LinkFault(when=NOW, target="client0", effect=effect, probability=0.2, for_ns=10**12)  # type: ignore[arg-type]
        client = world.client(redis_counter(history, operations=60))
        world.inject(bad)
        world.run_until(lambda: client.is_done, 200)
        assert clients(history) == {"client0.1"}
        assert answers(history) == [*range(1, 61)]


@pytest.mark.parametrize("effect", ["drop", "reorder"])
def test_a_long_stream_arrives_whole_on_a_bad_cable(effect: str, guest: Ready) -> None:
    """Both ways: what Linux sends again, and what we do."""
    guest("redis")
    value = bytes(65 + number % 26 for number in range(60_000))

    async def store(host: Host) -> bytes:
        stream = await host.connect("10.77.0.2", 6379)
        await stream.send(b"*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$%d\r\n%s\r\n" % (len(value), value))
        assert await stream.read_until(b"\r\n") == b"+OK\r\n"
        await stream.send(b"GET v\r\n")
        assert await stream.read_until(b"\r\n") == b"$%d\r\n" % len(value)
        return await stream.read_exactly(len(value))

    with World(9) as world:
        world.machine("redis", "m")
        client = world.client(store)
        world.inject(LinkFault(when=NOW, target="m", effect=effect, probability=0.1, for_ns=10**12))  # type: ignore[arg-type]
        world.run_until(lambda: client.is_done, 200)
        assert client.actor.result() == value


@pytest.mark.long
def test_pages_of_a_killed_web_server(guest: Ready) -> None:
    guest("nginx")
    pages: list[tuple[int, bytes]] = []
    with World(9) as world:
        pair = world.pair("nginx", "colo")
        world.client(http_get(lambda status, body: pages.append((status, body)), path="/1k.txt"))
        world.run_until(lambda: pair.is_protected and len(pages) > 5, LIMIT_S)
        world.kill(pair.primary)
        count = len(pages)
        world.run_until(lambda: len(pages) > count + 5, LIMIT_S)
    assert {(status, len(body)) for status, body in pages} == {(200, 1024)}


@pytest.mark.long
def test_a_client_that_is_a_guest_itself(guest: Ready) -> None:
    """Linux asks a pair on another switch, and does not notice that its primary dies."""
    guest("linux")
    guest("nginx")
    with World(9) as world:
        world.add_switch("rack", learns=False)
        pair = world.pair("nginx", "colo", segment="rack")
        user = world.machine("linux", "user", append="vmm.ip=10.77.0.3/24,10.77.0.1")
        fetch = "wget -q -O - http://10.77.0.2/1k.txt | wc -c"
        loop = f"i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo got-$({fetch})-$i; done\n"
        world.run_until(lambda: pair.is_protected, LIMIT_S)
        user.machine.door.enter("com1", loop.encode())
        world.run_until(lambda: "got-1024-5" in user.console, LIMIT_S)
        world.kill(pair.primary)
        world.run_until(lambda: "got-1024-30" in user.console, LIMIT_S)
        assert user.console.count("got-1024-") == 30


def test_a_port_where_nobody_listens_refuses(guest: Ready) -> None:
    guest("redis")
    with World(9) as world:
        world.machine("redis", "m")

        async def knock(host: Host) -> str:
            try:
                await host.connect("10.77.0.2", 81)
            except ConnectionRefusedError as exc:
                return str(exc)
            return "open"

        client = world.client(knock)
        world.run_until(lambda: client.is_done, LIMIT_S)
        assert client.actor.result() == "the peer refused the connection"
