"""What is said over QMP: words, answers, arguments and events, each declared once.

Source: QEMU's QAPI schema (run-state, migration) by its names; COLO's words as upstream has them since
4.0.  What is ours starts with ``x-``, as QAPI marks what is not stable, and ``x-node`` gathers what QEMU
has no place for.  Python names become QAPI's with dashes.

An optional member that has nothing to say is left out of an :class:`Answer`, as QAPI does it; inside
``x-node`` it is null, so that a table of many readings has no holes.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

CONSOLE_MAX = 64 << 10
"""Bytes of console text in one answer."""

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
"""QAPI's uint32."""
Positive = Annotated[int, Meta(ge=1, le=(1 << 32) - 1)]
Text = Annotated[str, Meta(max_length=4096)]


class RunState(Enum):
    """Whether the guest runs, and if not, why."""

    RUNNING = "running"
    PAUSED = "paused"
    COLO = "colo"
    """Held while a checkpoint is saved or restored, or as a secondary that waits for the next one."""
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    PRELAUNCH = "prelaunch"
    SHUTDOWN = "shutdown"
    POSTMIGRATE = "postmigrate"
    """The other node has the guest now: this one's never runs again."""
    GUEST_PANICKED = "guest-panicked"
    INTERNAL_ERROR = "internal-error"


class ColoMode(Enum):
    NONE = "none"
    PRIMARY = "primary"
    SECONDARY = "secondary"


class ColoExitReason(Enum):
    NONE = "none"
    REQUEST = "request"
    ERROR = "error"
    PROCESSING = "processing"


class FailoverStatus(Enum):
    NONE = "none"
    REQUIRE = "require"
    ACTIVE = "active"
    COMPLETED = "completed"
    RELAUNCH = "relaunch"


class MigrationStatus(Enum):
    NONE = "none"
    SETUP = "setup"
    ACTIVE = "active"
    COLO = "colo"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Capability(Enum):
    COLO = "x-colo"
    EVENTS = "events"
    """MIGRATION events are sent."""


class DirtySourceChoice(Enum):
    AUTO = "auto"
    KERNEL = "kernel"
    SCAN = "scan"


class CompareChoice(Enum):
    STRICT = "strict"
    QEMU = "qemu"


class ShutdownCause(Enum):
    NONE = "none"
    HOST_ERROR = "host-error"
    HOST_QMP_QUIT = "host-qmp-quit"
    HOST_QMP_SYSTEM_RESET = "host-qmp-system-reset"
    HOST_SIGNAL = "host-signal"
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """Base of what a command returns and of an event's data."""


class StatusInfo(Answer, frozen=True):
    """query-status"""

    running: bool
    status: RunState


class NodeFacts(Answer, frozen=True, omit_defaults=False):
    """``x-node``: what QEMU's answer has no place for.  Sizes and times are of the last checkpoint."""

    node: str
    epoch: Count
    generation: Count
    """Of the pair: each failover and each new secondary makes the next one."""
    failover: FailoverStatus
    policy: str
    arbiter: str
    dirty_source: str
    dirty_reason: str
    """Why this source and not the other."""
    pause_ms: float | None = None
    pages: Count | None = None
    bytes: Count | None = None
    held_frames: Count = 0
    """Output of the guest that waits for its commit, now."""
    peer_age_ms: float | None = None
    """Since the peer was last heard; None without a peer."""
    statistics: dict[str, int | float] = {}


class ColoStatus(Answer, frozen=True):
    """query-colo-status"""

    mode: ColoMode
    last_mode: ColoMode
    reason: ColoExitReason
    x_node: NodeFacts | None = None


class CheckpointInfo(Answer, frozen=True):
    """x-colo-checkpoint"""

    epoch: Count
    pause_ms: float
    pages: Count
    bytes: Count


class RamInfo(Answer, frozen=True, omit_defaults=False):
    """Bytes of guest RAM on their way; ``duplicate`` and ``normal`` are pages of one value, and others."""

    transferred: Count
    remaining: Count
    total: Count
    dirty_sync_count: Count
    """Rounds so far."""
    duplicate: Count = 0
    normal: Count = 0
    normal_bytes: Count = 0
    dirty_pages_rate: Count = 0
    """Pages a second."""
    mbps: float = 0.0
    page_size: Count = 4096


class MigrateInfo(Answer, frozen=True):
    """query-migrate; {} if none was ever begun.  Times in ms."""

    status: MigrationStatus = MigrationStatus.NONE
    ram: RamInfo | None = None
    total_time: Count | None = None
    expected_downtime: Count | None = None
    downtime: Count | None = None
    setup_time: Count | None = None
    cpu_throttle_percentage: Count | None = None
    error_desc: str | None = None
    x_remaining_time: Count | None = None
    """An estimate."""


class Parameters(Answer, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """query-migrate-parameters; migrate-set-parameters takes any of them.  Times in ms.

    That they fit each other (a silence longer than an interval) is for the node to say.
    """

    x_checkpoint_delay: Milliseconds
    x_heartbeat_interval: Positive
    x_heartbeat_silence: Positive
    x_policy: Text
    x_verify: bool
    x_pause_budget: Positive
    x_dirty_source: DirtySourceChoice
    x_compare: CompareChoice
    """By whose rules policy ``colo`` compares (:mod:`colo.compare`)."""


class Arguments(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """Base of what a command takes; as it stands, a command that takes nothing."""


class Negotiate(Arguments, frozen=True):
    enable: list[Text] = []


class Migrate(Arguments, frozen=True):
    uri: Text
    detach: bool = True
    """Has no meaning in QMP, and is taken, as in QAPI."""


class MigrateIncoming(Arguments, frozen=True):
    uri: Text


class CapabilityStatus(Answer, frozen=True, forbid_unknown_fields=True):
    capability: Capability
    state: bool


class SetCapabilities(Arguments, frozen=True):
    capabilities: Annotated[list[CapabilityStatus], Meta(max_length=64)]


class ObjectKind(Arguments, frozen=True):
    qom_type: Text


class ObjectId(Arguments, frozen=True):
    id: Text


class QueryConsole(Arguments, frozen=True):
    size: Annotated[int, Meta(ge=1, le=CONSOLE_MAX)] = 1024


class ConsoleText(Answer, frozen=True):
    text: str


class NameInfo(Answer, frozen=True):
    name: str


class CommandInfo(Answer, frozen=True):
    name: str


class Version(Answer, frozen=True):
    """Of this program, under the key where QMP has QEMU's."""

    major: int
    minor: int
    micro: int


class VersionInfo(Answer, frozen=True):
    qemu: Version
    package: str


class ColoExit(Answer, frozen=True):
    """COLO_EXIT"""

    mode: ColoMode
    reason: ColoExitReason


class Migration(Answer, frozen=True):
    """MIGRATION"""

    status: MigrationStatus


class Shutdown(Answer, frozen=True):
    """SHUTDOWN, and RESET"""

    guest: bool
    reason: ShutdownCause


class Timestamp(msgspec.Struct, frozen=True):
    """Of the host's clock; -1 where that failed."""

    seconds: int
    microseconds: int


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """As it stands in the stream; no data for STOP and RESUME."""

    event: str
    timestamp: Timestamp
    data: dict[str, Any] = {}
