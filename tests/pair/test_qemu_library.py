"""QEMU's own QMP library (qemu.qmp) leads a pair through its life: protection, checkpoints, failover."""

from __future__ import annotations

import asyncio

from qemu.qmp import EventListener, QMPClient

from tests.pair.nodes import LIMIT_S, Bench, Node, until
from tests.qmp.talking import connected, refusal

COLO = [{"capability": "x-colo", "state": True}]


async def status_of(client: QMPClient) -> str:
    found = await client.execute("query-status")
    assert isinstance(found, dict)
    return str(found["status"])


async def protected(client: QMPClient, address: str) -> list[str]:
    """The MIGRATION events on the way."""
    seen: list[str] = []
    with client.listener("MIGRATION") as events:
        await client.execute("migrate-set-capabilities", {"capabilities": COLO})
        await client.execute("migrate", {"uri": address})
        while not seen or seen[-1] not in ("colo", "failed"):
            seen.append((await events.get())["data"]["status"])
    return seen


async def life(bench: Bench) -> None:
    primary, secondary = bench.start("a").ready(), bench.incoming("b").ready()
    async with connected(secondary.qmp) as second:
        assert await status_of(second) == "inmigrate"
        async with connected(primary.qmp) as first:
            assert await protected(first, str(secondary.link)) == ["setup", "active", "colo"]
            assert [await status_of(first), await status_of(second)] == ["running", "colo"]
            await first.execute("migrate-set-parameters", {"x-checkpoint-delay": 10})
            made = await first.execute("x-colo-checkpoint")
            assert isinstance(made, dict)
            assert made["epoch"] > 0 < made["pause-ms"]
            assert "is not the primary" in (await refusal(second, "x-colo-checkpoint"))[1]
        with second.listener(("COLO_EXIT", "RESUME")) as events:
            await killed(primary, events)
        assert await status_of(second) == "running"
        said = secondary.said
        until(lambda: len(secondary.said) > len(said))


async def killed(primary: Node, events: EventListener) -> None:
    primary.kill()
    first = await events.get()
    assert (first["event"], first["data"]) == ("COLO_EXIT", {"mode": "secondary", "reason": "error"})
    assert (await events.get())["event"] == "RESUME"


def test_the_library_leads_a_pair(bench: Bench) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await life(bench)

    asyncio.run(limited())
