"""A node: one machine, its control socket, and its part in a pair.

:class:`Node` is what QMP commands (:mod:`colo.qmp.commands`) and the link act on; it lives in the loop
thread.  The guest lives in the main thread (:mod:`colo.node.guest_thread`); :mod:`colo.node.process` brings
the two together in one process.

A node is *alone* (a machine like any other), *primary* (alone with a secondary that follows),
*secondary* (its guest does not run), or *halted* (the other node won; its guest never runs again).
A secondary that took over is alone, and may be protected again by ``migrate``.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from colo import policy
from colo.arbiter import Arbiter
from colo.errors import ColoError, ControlError, Refused
from colo.failover import Ending, FailoverStatus
from colo.life import Life
from colo.messages import Channel, Hello
from colo.node.guest import Emit, NodeGuest
from colo.node.guest_thread import GuestThreadOver
from colo.node.pairing import PrimaryPairing, SecondaryPairing
from colo.node.replica import EpochRecord, Replica
from colo.node.tunables import Tunables
from colo.qmp import schema
from colo.qmp.schema import Capability, ColoExitReason, ColoMode, MigrationStatus, ShutdownCause
from colo.transport import handshake, heartbeat
from colo.transport.address import Address
from colo.transport.certs import Credentials
from colo.transport.dial import dial
from colo.transport.listener import Listener
from vmm.errors import ConfigError
from vmm.machine import Ended
from vmm.state import pack

DIAL_TIMEOUT_S = 10.0
CAUSES = {
    Ended.POWEROFF: ShutdownCause.GUEST_SHUTDOWN,
    Ended.DEBUG_EXIT: ShutdownCause.GUEST_SHUTDOWN,
    Ended.RESET: ShutdownCause.GUEST_RESET,
}


class Node(NodeGuest):
    """The operator's view of a node, and what it does (:class:`colo.qmp.commands.NodeControl`)."""

    def __init__(
        self,
        replica: Replica,
        arbiter: Arbiter,
        guest_name: str,
        emit: Emit,
        quit_process: Callable[[int], None],
        *,
        tunables: Tunables,
        credentials: Credentials | None,
    ) -> None:
        super().__init__(replica, arbiter, guest_name, tunables, emit)
        self._quit = quit_process
        self._credentials = credentials
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._wanted: list[asyncio.Future[EpochRecord]] = []
        replica.hold.wants_checkpoint = lambda: self._from_guest(self._output_held, True)
        replica.hold.begins_to_hold = lambda: self._from_guest(self._output_held, False)

    def _from_guest(self, act: Callable[..., None], *arguments: object) -> None:
        """Hand on what the guest's thread noticed."""
        self._loop.call_soon_threadsafe(act, *arguments)

    def _undertake(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside everything else.  What it raises is our fault, and the end of the node.

        But not that the guest's thread is over: the node was told to end, and is about to cancel ``work``.
        """
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(self._undertaken)

    def _undertaken(self, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not isinstance(failure, GuestThreadOver):
            traceback.print_exception(failure)
            self._quit(1)

    # The guest ended

    def guest_ended(self, ended: Ended) -> None:
        """In the guest's thread."""
        self._from_guest(self._guest_ended, ended)

    def _guest_ended(self, ended: Ended) -> None:
        self.ended = CAUSES[ended]
        if isinstance(self.pairing, PrimaryPairing):
            self.pairing.vm.guest_ended(self.ended.value)
        else:
            self._shut_down()

    def _shut_down(self) -> None:
        self._emit("SHUTDOWN", schema.Shutdown(guest=True, reason=self.ended or ShutdownCause.GUEST_SHUTDOWN))
        self._quit(0)

    def _output_held(self, too_much: bool) -> None:
        if isinstance(self.pairing, PrimaryPairing):
            self.pairing.vm.output_held(too_much)

    # Primary

    async def migrate(self, uri: str) -> None:
        address = Address.parse(uri)
        self._refuse_unless_alone()
        if not self.x_colo:
            raise ControlError(
                "migrate without x-colo would leave this machine elsewhere, which is not offered: switch"
                " x-colo on with migrate-set-capabilities to have it protected"
            )
        self._check_rule(self.tunables.rule())
        await self.arbiter.check(self.replica.pair, self.replica.generation)
        self._migration(MigrationStatus.SETUP)
        self._undertake(self._lead(address))

    def _refuse_unless_alone(self) -> None:
        if self.pairing is not None or (self._task is not None and not self._task.done()):
            raise ControlError("this node is in a pair, or on its way into one")
        if self.halted or self.ended is not None or self.awaits_primary:
            raise ControlError("this node has no running guest to protect")

    async def _lead(self, address: Address) -> None:
        try:
            connection = await dial(
                address, self._hello(), self._credentials, DIAL_TIMEOUT_S, self.tunables.silence_ms
            )
        except (ColoError, ConfigError) as exc:  # ConfigError: certificates that do not do
            self.migration_error = str(exc)
            self._migration(MigrationStatus.FAILED)
            return
        rule = self.tunables.rule()
        try:
            pairing = PrimaryPairing(
                self.replica,
                connection,
                self.arbiter,
                rule,
                self.tunables.settings,
                self._protected,
                compress=address.is_tcp,
            )
        except ColoError as exc:
            connection.close()
            self.migration_error = str(exc)
            self._migration(MigrationStatus.FAILED)
            return
        self.pairing = self.last_primary = pairing
        self._migration(MigrationStatus.ACTIVE)
        ending = await pairing.run()
        self.pairing = None
        self._primary_ended(pairing, ending)

    def _protected(self) -> None:
        self.mode = ColoMode.PRIMARY
        self._migration(MigrationStatus.COLO)
        self.replica.report("protected", {})

    def _primary_ended(self, pairing: PrimaryPairing, ending: Ending) -> None:
        self.replica.report("pairing-ended", {"ending": ending.value, "reason": pairing.failover.reason})
        self._fail_waiters()
        if ending is Ending.SHUTDOWN:
            self._shut_down()
            return
        if pairing.vm.has_promised:
            self.replica.generation += 1
        if self.mode is ColoMode.PRIMARY:
            self._migration(MigrationStatus.COMPLETED)
            self._leave_colo(pairing)
        else:
            self.migration_error = pairing.failover.reason
            cancelled = self.migration is MigrationStatus.CANCELLING
            self._migration(MigrationStatus.CANCELLED if cancelled else MigrationStatus.FAILED)
        if ending is Ending.LOST:
            self._halt()

    async def migrate_cancel(self) -> None:
        if isinstance(self.pairing, PrimaryPairing) and not self.pairing.in_colo:
            self._migration(MigrationStatus.CANCELLING)
            self.pairing.lose("migrate_cancel")
        elif self.migration is MigrationStatus.SETUP and self._task is not None:
            self._task.cancel()  # nobody has answered yet
            await asyncio.gather(self._task, return_exceptions=True)
            self._migration(MigrationStatus.CANCELLED)

    # Secondary

    async def migrate_incoming(self, uri: str) -> None:
        if not self.awaits_primary or self._task is not None:
            raise ControlError("this node was not started with --incoming, or it listens already")
        listener = Listener(Address.parse(uri), self._hello(), self._credentials, self.tunables.silence_ms)
        await listener.start()
        self.replica.report("listening", {"address": str(listener.address)})
        self._undertake(self._stand_by(listener))

    async def _stand_by(self, listener: Listener) -> None:
        """One primary after another, until one of them was followed."""
        try:
            while self.awaits_primary:
                try:
                    connection = await listener.accept()
                except Refused as exc:
                    self.replica.report("refused", {"reason": str(exc)})
                    continue
                assert isinstance(connection.theirs, Hello)
                self.replica.generation = connection.theirs.generation
                pairing = SecondaryPairing(self.replica, connection, self.arbiter)
                self.pairing = pairing
                listener.busy = "this node follows another one"
                self._migration(MigrationStatus.ACTIVE)
                ending = await pairing.run()
                self.pairing = listener.busy = None
                self._secondary_ended(pairing, ending)
        finally:
            await listener.close()

    def _secondary_ended(self, pairing: SecondaryPairing, ending: Ending) -> None:
        self.replica.report("pairing-ended", {"ending": ending.value, "reason": pairing.failover.reason})
        if ending is Ending.NOTHING:
            self._migration(MigrationStatus.FAILED)
            return
        self.awaits_primary = False
        if ending is Ending.SHUTDOWN:
            said = pairing.failover.reason  # by the primary
            self.ended = next((each for each in ShutdownCause if each.value == said), None)
            self._shut_down()
            return
        self.replica.generation += 1
        self.mode = ColoMode.SECONDARY
        self._migration(MigrationStatus.COMPLETED)
        self._leave_colo(pairing)
        if ending is Ending.LOST:
            self._halt()
        else:
            self._emit("RESUME", None)

    # Both

    def _leave_colo(self, pairing: PrimaryPairing | SecondaryPairing) -> None:
        self.last_mode, self.mode = self.mode, ColoMode.NONE
        asked = pairing.failover.on_demand
        self.exit_reason = ColoExitReason.REQUEST if asked else ColoExitReason.ERROR
        self.last_failover = pairing.failover
        self._emit("COLO_EXIT", schema.ColoExit(mode=self.last_mode, reason=self.exit_reason))

    def _halt(self) -> None:
        self.halted = True
        self._emit("STOP", None)

    def _migration(self, status: MigrationStatus) -> None:
        self.migration = status
        self._emit("MIGRATION", schema.Migration(status=status))

    def _hello(self) -> Hello:
        machine = self.replica.machine
        return handshake.hello(
            channel=Channel.PROTOCOL,
            pair=self.replica.pair,
            generation=self.replica.generation,
            layout=machine.layout_digest,
            engine=machine.engine_digest,
            config=pack(machine.config),
            interval_ms=self.tunables.heartbeat_ms,
        )

    def epoch_committed(self, record: EpochRecord) -> None:
        """Somebody may wait for it."""
        waiting, self._wanted = self._wanted, []
        for future in waiting:
            if not future.done():
                future.set_result(record)

    def _fail_waiters(self) -> None:
        waiting, self._wanted = self._wanted, []
        for future in waiting:
            if not future.done():
                future.set_exception(ControlError("the pairing ended before the checkpoint was committed"))

    # Commands

    async def lost_heartbeat(self) -> None:
        pairing = self.pairing
        if pairing is None or not pairing.in_colo:
            raise ControlError("feature disabled: colo (this node is not in COLO state)")
        if pairing.failover.status is FailoverStatus.NONE:
            await pairing.claim()
        if not pairing.lose("x-colo-lost-heartbeat") and pairing.waiting_for is None:
            raise ControlError("COLO failover is already activated")

    async def checkpoint(self) -> schema.CheckpointInfo:
        if not isinstance(self.pairing, PrimaryPairing) or not self.pairing.in_colo:
            raise ControlError("this node is not the primary of a pair in COLO state")
        future: asyncio.Future[EpochRecord] = self._loop.create_future()
        self._wanted.append(future)
        self.pairing.vm.request("request")
        record = await future
        return schema.CheckpointInfo(
            epoch=record.epoch, pause_ms=record.pause_ms, pages=record.pages_sent, bytes=record.bytes_sent
        )

    async def set_capabilities(self, wanted: dict[Capability, bool]) -> None:
        self.x_colo = wanted.get(Capability.COLO, self.x_colo)

    async def set_parameters(self, wanted: schema.Parameters) -> None:
        self._check(wanted)
        tunables, settings = self.tunables, self.tunables.settings
        as_before = wanted.x_checkpoint_delay == tunables.rule().delay_ms
        if not as_before:
            tunables.checkpoint_delay_ms = wanted.x_checkpoint_delay
        elif wanted.x_policy != tunables.policy:
            tunables.checkpoint_delay_ms = None  # each policy has its own, unless somebody chose one
        tunables.heartbeat_ms, tunables.silence_ms = wanted.x_heartbeat_interval, wanted.x_heartbeat_silence
        tunables.policy = wanted.x_policy
        settings.verify, settings.pause_budget_ms = wanted.x_verify, float(wanted.x_pause_budget)
        settings.dirty_source, settings.compare = wanted.x_dirty_source.value, wanted.x_compare.value
        if self.pairing is not None:
            self.pairing.connection.heartbeat.set_timing(tunables.heartbeat_ms, tunables.silence_ms)
        if isinstance(self.pairing, PrimaryPairing):
            self.pairing.vm.policy = tunables.rule()
            self.pairing.vm.request("parameters")

    def _check(self, wanted: schema.Parameters) -> None:
        if wanted.x_policy not in policy.POLICIES:
            raise ControlError(f"x-policy {wanted.x_policy!r}: expected one of {', '.join(policy.POLICIES)}")
        if not policy.DELAY_MS_MIN <= wanted.x_checkpoint_delay <= policy.DELAY_MS_MAX:
            raise ControlError(
                f"x-checkpoint-delay {wanted.x_checkpoint_delay}: expected {policy.DELAY_MS_MIN} to"
                f" {policy.DELAY_MS_MAX} ms"
            )
        self._check_rule(policy.choose(wanted.x_policy))
        heartbeat.check_timing(wanted.x_heartbeat_interval, wanted.x_heartbeat_silence)

    def _check_rule(self, rule: policy.Policy) -> None:
        if rule.life is not Life.WAIT and not self.replica.may_run_twice:
            raise ControlError(
                f"policy {rule.name} has both guests run, and this machine has a disk that keeps what each"
                " writes: use an overlay, or policy periodic"
            )

    async def quit(self) -> None:
        self._loop.call_soon(self._quit, 0)

    async def close(self) -> None:
        """End what is under way; the process is about to."""
        if self.pairing is not None:
            self.pairing.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
