"""The commands of a node's QMP socket, and what a node must be able to do for them.

Source: QEMU's QAPI schema by its names and shapes; ``x-colo-checkpoint``, ``x-query-console`` and every
``x-`` parameter but ``x-checkpoint-delay`` are ours.  What a command means is the node's business
(:class:`NodeControl`); here it gets a name, arguments that fit, and a line that says what it is for.

Not there: human-monitor-command (a second command language), query-qmp-schema (large, and clients of
ours know the schema), and everything of QEMU's that this machine has no part for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from colo.errors import ControlError
from colo.qmp import schema
from colo.qmp.schema import Arguments, Capability, CapabilityStatus, ColoMode
from colo.qmp.text import convert, quote

NOT_FOUND = "CommandNotFound"
NEGOTIATION = "qmp_capabilities"

A = TypeVar("A")


class NodeControl(Protocol):
    """A node, as its operator sees it.  Everything is called on the loop's thread.

    What reads is at once; what acts may wait for the guest to come to a stop between two instructions.
    Commands of several clients may be under way together.  ControlError, or any other ColoError or
    VmmError, tells the client why not; it must leave the node as it was.
    """

    def name(self) -> str:
        """The guest's."""

    def status(self) -> schema.StatusInfo: ...

    def colo_status(self) -> schema.ColoStatus: ...

    def migrate_info(self) -> schema.MigrateInfo: ...

    def capabilities(self) -> dict[Capability, bool]: ...

    def parameters(self) -> schema.Parameters: ...

    def console(self, size_bytes: int) -> bytes:
        """The last of what the guest's console said, at most ``size_bytes``."""

    async def set_capabilities(self, wanted: dict[Capability, bool]) -> None:
        """Those not named stay as they are."""

    async def set_parameters(self, wanted: schema.Parameters) -> None:
        """All of them; those that differ from :meth:`parameters` are new."""

    async def migrate(self, uri: str) -> None:
        """Begin to bring a secondary, which listens at ``uri``, up to date; returns when it has begun."""

    async def migrate_incoming(self, uri: str) -> None:
        """Listen at ``uri`` for a primary."""

    async def migrate_cancel(self) -> None:
        """Give the migration up; no error if there is none."""

    async def lost_heartbeat(self) -> None:
        """Believe that the peer is dead: leave COLO, or take over.  Only called in COLO mode.

        ControlError when that is under way, unless the arbiter waits for a person's word.
        """

    async def checkpoint(self) -> schema.CheckpointInfo:
        """Make a checkpoint now; returns when it is committed."""

    async def add_filter(self, kind: str, properties: dict[str, Any]) -> None:
        """Put a filter between a card and its back end; ``properties`` are QEMU's."""

    async def remove_filter(self, id: str) -> None:
        """Take a filter away; what it kept goes on its way."""

    async def stop(self) -> None: ...

    async def cont(self) -> None: ...

    async def reset(self) -> None: ...

    async def powerdown(self) -> None:
        """Press the power button; the guest decides."""

    async def quit(self) -> None:
        """End the process in good order, after the answer to this has been sent."""


@dataclass(frozen=True)
class Command(Generic[A]):
    """What may be executed: its name, what it takes and returns, and who does it."""

    name: str
    arguments: type[A]
    returns: object
    """The declared type of the answer; None: nothing."""
    doc: str
    handler: Callable[[A], object | Awaitable[object]]

    async def execute(self, given: dict[str, Any]) -> object:
        """The answer, ready to be encoded."""
        found = self.handler(convert(given, self.arguments))
        if isinstance(found, Awaitable):
            found = await found
        return {} if found is None else found


class Registry:
    """Commands by name, in the order in which query-commands tells them."""

    def __init__(self, commands: Iterable[Command[Any]]) -> None:
        listing = _query("query-commands", list[schema.CommandInfo], "what can be executed", self._listing)
        self._commands = {command.name: command for command in (*commands, listing)}

    @property
    def names(self) -> list[str]:
        return [NEGOTIATION, *self._commands]

    @property
    def commands(self) -> list[Command[Any]]:
        return list(self._commands.values())

    def _listing(self) -> list[schema.CommandInfo]:
        return [schema.CommandInfo(name=name) for name in self.names]

    def __getitem__(self, name: str) -> Command[Any]:
        found = self._commands.get(name)
        if found is None:
            raise ControlError(f"there is no command {quote(name)}: query-commands lists them", NOT_FOUND)
        return found


def registry(node: NodeControl) -> Registry:
    """Every command of a node."""
    return Registry([*_reading(node), *_migrating(node), *_colo(node), *_filters(node), *_running(node)])


def version() -> schema.VersionInfo:
    from importlib import metadata

    try:
        text = metadata.version("colo-vmm")
    except metadata.PackageNotFoundError:
        text = "0.0.0"  # a checkout that was never installed
    parts = [*(int(part) for part in text.split(".")[:3] if part.isdecimal()), 0, 0, 0]
    number = schema.Version(major=parts[0], minor=parts[1], micro=parts[2])
    return schema.VersionInfo(qemu=number, package=f"colo-vmm {text}")


def _query(name: str, returns: object, doc: str, read: Callable[[], object]) -> Command[Any]:
    """A command that takes nothing and says something."""
    return Command(name, Arguments, returns, doc, lambda _: read())


def _action(name: str, doc: str, act: Callable[[], Awaitable[None]]) -> Command[Any]:
    """A command that takes nothing and does something."""
    return Command(name, Arguments, None, doc, lambda _: act())


def _reading(node: NodeControl) -> list[Command[Any]]:
    def guest_name() -> schema.NameInfo:
        return schema.NameInfo(name=node.name())

    def capabilities() -> list[CapabilityStatus]:
        return [CapabilityStatus(capability=c, state=on) for c, on in node.capabilities().items()]

    def console(wanted: schema.QueryConsole) -> schema.ConsoleText:
        return schema.ConsoleText(text=node.console(wanted.size).decode("utf-8", "replace"))

    return [
        _query("query-version", schema.VersionInfo, "of this program", version),
        _query("query-name", schema.NameInfo, "the guest's name", guest_name),
        _query("query-status", schema.StatusInfo, "whether the guest runs, and why not", node.status),
        _query("query-colo-status", schema.ColoStatus, "the pair, as this node sees it", node.colo_status),
        _query("query-migrate", schema.MigrateInfo, "how far the synchronisation is", node.migrate_info),
        _query("query-migrate-capabilities", list[CapabilityStatus], "what is switched on", capabilities),
        _query("query-migrate-parameters", schema.Parameters, "what is set", node.parameters),
        Command(
            "x-query-console",
            schema.QueryConsole,
            schema.ConsoleText,
            "the last text on the guest's console",
            console,
        ),
    ]


def _migrating(node: NodeControl) -> list[Command[Any]]:
    async def capabilities(wanted: schema.SetCapabilities) -> None:
        await node.set_capabilities({each.capability: each.state for each in wanted.capabilities})

    async def parameters(given: dict[str, Any]) -> None:
        now = msgspec.to_builtins(node.parameters())
        await node.set_parameters(convert({**now, **given}, schema.Parameters))

    async def migrate(wanted: schema.Migrate) -> None:
        await node.migrate(wanted.uri)

    async def incoming(wanted: schema.MigrateIncoming) -> None:
        await node.migrate_incoming(wanted.uri)

    return [
        Command(
            "migrate-set-capabilities",
            schema.SetCapabilities,
            None,
            "x-colo makes migrate protect",
            capabilities,
        ),
        Command("migrate-set-parameters", dict[str, Any], None, "set any of the parameters", parameters),
        Command("migrate-incoming", schema.MigrateIncoming, None, "await a primary at uri", incoming),
        Command("migrate", schema.Migrate, None, "synchronise with the secondary at uri", migrate),
        _action("migrate_cancel", "give the synchronisation up", node.migrate_cancel),
    ]


def _colo(node: NodeControl) -> list[Command[Any]]:
    async def lost_heartbeat() -> None:
        if node.colo_status().mode is ColoMode.NONE:
            raise ControlError("feature disabled: colo (this node is not in COLO state)")
        await node.lost_heartbeat()

    async def checkpoint(_: Arguments) -> schema.CheckpointInfo:
        return await node.checkpoint()

    return [
        _action("x-colo-lost-heartbeat", "believe that the peer is dead: go on alone", lost_heartbeat),
        Command("x-colo-checkpoint", Arguments, schema.CheckpointInfo, "make a checkpoint now", checkpoint),
    ]


def _filters(node: NodeControl) -> list[Command[Any]]:
    async def add(given: dict[str, Any]) -> None:
        properties = dict(given)
        named = {"qom-type": properties.pop("qom-type")} if "qom-type" in properties else {}
        await node.add_filter(convert(named, schema.ObjectKind).qom_type, properties)

    async def delete(wanted: schema.ObjectId) -> None:
        await node.remove_filter(wanted.id)

    return [
        Command("object-add", dict[str, Any], None, "put a filter on a card: filter-buffer, ...", add),
        Command("object-del", schema.ObjectId, None, "take a filter away", delete),
    ]


def _running(node: NodeControl) -> list[Command[Any]]:
    return [
        _action("stop", "hold the guest", node.stop),
        _action("cont", "let the guest go on", node.cont),
        _action("system_reset", "press the reset button", node.reset),
        _action("system_powerdown", "press the power button: the guest decides", node.powerdown),
        _action("quit", "end this node in good order", node.quit),
    ]
