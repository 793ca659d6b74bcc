"""What a node knows about itself, and how it says so in QMP's words."""

from __future__ import annotations

from colo.arbiter import Arbiter
from colo.failover import Failover
from colo.node.leading import Leading
from colo.node.pairing import PrimaryPairing, SecondaryPairing
from colo.node.replica import Replica
from colo.node.tunables import Tunables
from colo.qmp import schema
from colo.qmp.schema import (
    Capability,
    ColoExitReason,
    ColoMode,
    CompareChoice,
    DirtySourceChoice,
    MigrationStatus,
    RunState,
    ShutdownCause,
)
from vmm.ram import PAGE_SIZE


class NodeStatus:
    """The half of :class:`colo.qmp.commands.NodeControl` that only reads."""

    def __init__(self, replica: Replica, arbiter: Arbiter, guest_name: str, tunables: Tunables) -> None:
        self.replica = replica
        self.arbiter = arbiter
        self.tunables = tunables
        self.x_colo = False
        self.awaits_primary = False
        """Started with --incoming, and not promoted yet."""
        self.halted = False
        self.ended: ShutdownCause | None = None
        self.mode = self.last_mode = ColoMode.NONE
        self.exit_reason = ColoExitReason.NONE
        self.migration = MigrationStatus.NONE
        self.migration_error: str | None = None
        self.pairing: PrimaryPairing | SecondaryPairing | None = None
        self.last_primary: PrimaryPairing | None = None
        self.last_failover: Failover | None = None
        self._guest_name = guest_name

    def name(self) -> str:
        return self._guest_name

    def status(self) -> schema.StatusInfo:
        state = self._run_state()
        return schema.StatusInfo(running=state is RunState.RUNNING, status=state)

    def _run_state(self) -> RunState:
        if self.ended is not None:
            return RunState.SHUTDOWN
        if self.awaits_primary:
            return RunState.COLO if self.pairing is not None and self.pairing.in_colo else RunState.INMIGRATE
        if self.halted:
            return RunState.POSTMIGRATE
        guest = self.replica.guest
        if guest.running:
            return RunState.RUNNING
        if guest.frozen:
            return RunState.COLO
        return RunState.PAUSED if guest.has_run else RunState.PRELAUNCH

    def colo_status(self) -> schema.ColoStatus:
        mode = self.mode
        if self.awaits_primary and self.pairing is not None and self.pairing.in_colo:
            mode = ColoMode.SECONDARY
        reason = self.exit_reason if mode is ColoMode.NONE else ColoExitReason.NONE
        if self.pairing is not None and self.pairing.failover.status.value in ("require", "active"):
            reason = ColoExitReason.PROCESSING
        return schema.ColoStatus(mode=mode, last_mode=self.last_mode, reason=reason, x_node=self._facts())

    def _facts(self) -> schema.NodeFacts:
        replica, pairing = self.replica, self.pairing
        epochs = replica.statistics.epochs
        last = epochs[-1] if epochs else None
        failover = pairing.failover if pairing is not None else self.last_failover
        leading = pairing.vm if isinstance(pairing, PrimaryPairing) else None
        return schema.NodeFacts(
            node=replica.node,
            epoch=pairing.epoch if pairing is not None else (last.epoch if last else 0),
            generation=replica.generation,
            failover=schema.FailoverStatus(failover.status.value if failover else "none"),
            policy=self.tunables.policy,
            arbiter=self.arbiter.spec,
            dirty_source=leading.changes.source.name if leading else "none",
            dirty_reason=leading.changes.source.why if leading else "nothing is being replicated from here",
            pause_ms=round(last.pause_ms, 3) if last else None,
            pages=last.pages_sent if last else None,
            bytes=last.bytes_sent if last else None,
            held_frames=replica.hold.held_frames,
            peer_age_ms=round(pairing.connection.heartbeat.age_ms(), 1) if pairing is not None else None,
            statistics=self._statistics(),
        )

    def _statistics(self) -> dict[str, int | float]:
        totals = self.replica.statistics.totals
        found: dict[str, int | float] = {
            "checkpoints": totals.checkpoints,
            "pages": totals.pages_sent,
            "bytes": totals.bytes_sent,
            "pause-ms": round(totals.pause_ms, 3),
            "verified": totals.verified,
            "inputs-dropped": totals.inputs_dropped,
            "divergences": totals.divergences,
            "output-dropped": self.replica.hold.dropped,
        }
        if isinstance(self.pairing, PrimaryPairing):
            connection = self.pairing.connection
            found["link-bytes"] = connection.link.bytes_sent + connection.companion.bytes_sent
            found |= self.pairing.vm.early.facts()
        return found | {f"because-{reason}": count for reason, count in sorted(totals.reasons.items())}

    def migrate_info(self) -> schema.MigrateInfo:
        if self.migration is MigrationStatus.NONE:
            return schema.MigrateInfo()
        primary = self.pairing if isinstance(self.pairing, PrimaryPairing) else self.last_primary
        if primary is None:
            return schema.MigrateInfo(status=self.migration, error_desc=self.migration_error)
        return self._progress(primary.vm)

    def _progress(self, vm: Leading) -> schema.MigrateInfo:
        progress = vm.progress
        end_s = progress.finished_s or self.replica.now_s()
        elapsed_s = max(end_s - progress.started_s, 1e-3)
        rate = progress.bytes_sent / elapsed_s
        remaining = 0 if progress.finished_s else progress.remaining
        ram = schema.RamInfo(
            transferred=progress.bytes_sent,
            remaining=remaining,
            total=progress.total,
            dirty_sync_count=progress.rounds,
            normal=progress.pages_sent,
            normal_bytes=progress.pages_sent * PAGE_SIZE,
            mbps=round(rate * 8 / 1e6, 3),
        )
        epochs = self.replica.statistics.epochs
        return schema.MigrateInfo(
            status=self.migration,
            ram=ram,
            total_time=round(elapsed_s * 1000),
            downtime=round(epochs[0].pause_ms) if epochs and progress.finished_s else None,
            cpu_throttle_percentage=round(progress.throttle * 100) or None,
            error_desc=self.migration_error,
            x_remaining_time=round(remaining / rate * 1000) if rate and remaining else None,
        )

    def capabilities(self) -> dict[Capability, bool]:
        return {Capability.COLO: self.x_colo, Capability.EVENTS: True}

    def parameters(self) -> schema.Parameters:
        tunables, settings = self.tunables, self.tunables.settings
        return schema.Parameters(
            x_checkpoint_delay=tunables.rule().delay_ms,
            x_heartbeat_interval=tunables.heartbeat_ms,
            x_heartbeat_silence=tunables.silence_ms,
            x_policy=tunables.policy,
            x_verify=settings.verify,
            x_pause_budget=max(1, round(settings.pause_budget_ms)),
            x_dirty_source=DirtySourceChoice(settings.dirty_source),
            x_compare=CompareChoice(settings.compare),
        )

    def console(self, size_bytes: int) -> bytes:
        return self.replica.machine.console.data[-size_bytes:]
