"""A node's commands, driven by the library that QEMU's own tests use; the shapes are QAPI's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from colo.qmp.commands import registry
from colo.qmp.schema import CapabilityStatus, ColoMode, ColoStatus, FailoverStatus, StatusInfo
from tests.qmp.small_node import SmallNode, served, story
from tests.qmp.talking import connected, refusal

COMMANDS = {
    "qmp_capabilities",
    "query-version",
    "query-name",
    "query-commands",
    "query-status",
    "query-colo-status",
    "query-migrate",
    "query-migrate-capabilities",
    "query-migrate-parameters",
    "x-query-console",
    "migrate",
    "migrate-incoming",
    "migrate_cancel",
    "migrate-set-capabilities",
    "migrate-set-parameters",
    "x-colo-lost-heartbeat",
    "x-colo-checkpoint",
    "object-add",
    "object-del",
    "stop",
    "cont",
    "system_reset",
    "system_powerdown",
    "quit",
}


@story
async def test_every_command_is_listed_and_says_what_it_is(place: Path) -> None:
    async with served(place / "q"), connected(place / "q") as client:
        listed = await client.execute("query-commands")
        assert [len(listed), {each["name"] for each in listed}] == [len(COMMANDS), COMMANDS]
    assert all(command.doc for command in registry(SmallNode()).commands)


@story
async def test_capabilities_and_migration_have_the_shapes_of_qapi(place: Path) -> None:
    async with served(place / "q"), connected(place / "q") as client:
        assert await client.execute("query-migrate") == {}
        wanted = [{"capability": "x-colo", "state": True}]
        assert await client.execute("migrate-set-capabilities", {"capabilities": wanted}) == {}
        assert wanted[0] in await client.execute("query-migrate-capabilities")
        with client.listener("MIGRATION") as listener:
            assert await client.execute("migrate", {"uri": "unix:/x", "detach": True}) == {}
            assert [(await listener.get())["data"] for _ in "abc"] == [
                {"status": "setup"},
                {"status": "active"},
                {"status": "colo"},
            ]
        found = await client.execute("query-migrate")
        assert (found["status"], found["total-time"]) == ("colo", 12)
        assert {"transferred", "remaining", "total", "dirty-sync-count", "page-size"} <= set(found["ram"])
        status = await client.execute("query-colo-status")
        assert {name: status[name] for name in ("mode", "last-mode", "reason")} == {
            "mode": "primary",
            "last-mode": "none",
            "reason": "none",
        }
        assert status["x-node"]["dirty-source"] == "scan"
        assert status["x-node"]["peer-age-ms"] is None
        checkpoint = await client.execute("x-colo-checkpoint")
        assert checkpoint == {"epoch": 8, "pause-ms": 1.5, "pages": 3, "bytes": 300}
        await client.execute("migrate_cancel")
        assert await client.execute("query-migrate") == {"status": "cancelled"}


@story
async def test_parameters_not_named_stay_and_are_checked_together(place: Path) -> None:
    async with served(place / "q"), connected(place / "q") as client:
        before = await client.execute("query-migrate-parameters")
        change = {"x-checkpoint-delay": 50, "x-dirty-source": "kernel", "x-verify": True}
        assert await client.execute("migrate-set-parameters", change) == {}
        assert await client.execute("query-migrate-parameters") == {**before, **change}
        assert await client.execute("migrate-set-parameters") == {}
        for wrong, text in (
            ({"x_heartbeat_silence": 20}, "must be longer"),
            ({"x_checkpoint_delay": -1}, "Parameter 'x-checkpoint-delay' expects: integer >= 0"),
            (
                {"x_checkpoint_delay": 1 << 32},
                "Parameter 'x-checkpoint-delay' expects: integer <= 4294967295",
            ),
            ({"x_heartbeat_interval": 0}, "Parameter 'x-heartbeat-interval' expects: integer >= 1"),
            ({"x_verify": None}, "Invalid parameter type for 'x-verify', expected: boolean"),
            ({"x_dirty_source": "guess"}, "Parameter 'x-dirty-source' does not accept value 'guess'"),
            ({"max_bandwidth": 1}, "Parameter 'max-bandwidth' is unexpected"),
        ):
            assert text in (await refusal(client, "migrate-set-parameters", **wrong))[1]
        assert await client.execute("query-migrate-parameters") == {**before, **change}


@story
async def test_what_the_world_does_to_a_command_is_an_error_of_that_command(place: Path) -> None:
    async with served(place / "q"), connected(place / "q") as client:
        assert "neither unix:/path" in (await refusal(client, "migrate", uri="exec:true"))[1]
        kind, text = await refusal(client, "migrate-incoming", uri=f"unix:{place}/none")
        assert kind == "GenericError"
        assert "No such file" in text


@story
async def test_losing_the_heartbeat_is_said_once_and_in_colo_state_only(place: Path) -> None:
    async with served(place / "q") as (node, _), connected(place / "q") as one, connected(place / "q") as two:
        kind, text = await refusal(one, "x-colo-lost-heartbeat")
        assert (kind, text.startswith("feature disabled: colo")) == ("GenericError", True)
        node.mode = node.last_mode = ColoMode.SECONDARY
        node.gate.clear()
        with two.listener("COLO_EXIT") as listener:
            first = asyncio.ensure_future(one.execute("x-colo-lost-heartbeat"))
            while (await two.execute("query-colo-status"))["x-node"]["failover"] != "active":
                pass
            assert (await refusal(two, "x-colo-lost-heartbeat"))[1] == "COLO failover is already activated"
            node.gate.set()
            assert await first == {}
            assert (await listener.get())["data"] == {"mode": "secondary", "reason": "request"}
        status = await one.execute("query-colo-status")
        assert (status["mode"], status["last-mode"], status["reason"]) == ("none", "secondary", "request")


@story
async def test_the_console_is_told_as_text_and_no_more_than_asked(place: Path) -> None:
    async with served(place / "q") as (node, _), connected(place / "q") as client:
        text = (await client.execute("x-query-console"))["text"]
        assert len(text) == 1024
        assert text.endswith("line 9999\r\nlogin: \N{REPLACEMENT CHARACTER}")
        assert (await client.execute("x-query-console", {"size": 3}))["text"] == ": \N{REPLACEMENT CHARACTER}"
        assert len((await client.execute("x-query-console", {"size": 65536}))["text"]) == 65536
        assert "'size'" in (await refusal(client, "x-query-console", size=65537))[1]
        assert len(node.text) > 65536


def test_python_names_become_those_of_qapi() -> None:
    assert ColoStatus.__struct_encode_fields__ == ("mode", "last-mode", "reason", "x-node")
    assert StatusInfo.__struct_encode_fields__ == ("running", "status")
    assert CapabilityStatus.__struct_encode_fields__ == ("capability", "state")
    assert [state.value for state in FailoverStatus] == ["none", "require", "active", "completed", "relaunch"]


@story
async def test_filters_come_and_go_as_objects(place: Path) -> None:
    async with served(place / "q") as (node, _), connected(place / "q") as client:
        dump = {"qom-type": "filter-dump", "id": "d0", "netdev": "net0", "file": "x.pcap"}
        assert await client.execute("object-add", dump) == {}
        assert node.filters == {"d0": "filter-dump"}
        assert "Parameter 'qom-type'" in (await refusal(client, "object-add", id="d1"))[1]
        assert await client.execute("object-del", {"id": "d0"}) == {}
        assert "not found" in (await refusal(client, "object-del", id="d0"))[1]
