"""A fault injector on QEMU: stop at a moment, flip a bit, go on, and judge what the guest says.

It does with QEMU what a campaign does with our machine: the same guest with the same workload and the same
faults (:class:`colo.faults.model.Trial`), judged by the same code (:class:`colo.campaign.outcome.Judge`).
It follows the usual design of injectors that are built on an emulator's debugger interface.

*Moments.*  QEMU's gdb stub and QMP cannot stop a guest at an instant of its own time.  There are two ways to
come close, and both are here.  :class:`AtClock`: let it run for a part of the time that the run without a
fault takes on the host's clock, then interrupt; where the guest is then depends on the host.
:class:`AtAddress`: a breakpoint at an instruction, whose first execution is the moment; that repeats, but
every execution that was counted would be a stop and a round trip, so only early ones are within reach.

*Where a trial begins.*  The workload has been typed and its echo has come: nothing enters the guest any more,
so that what follows depends on nothing but QEMU.

*Hangs* are decided by the processor time that QEMU has used, because it tells nobody the guest's time.

Not compared: that a trial's state becomes that of the run without faults again (a trial runs until it has
said everything), latent errors, permanent faults.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from colo.campaign.golden import GoldenRun, Mark
from colo.campaign.outcome import CONSOLE, Judge, Verdict
from colo.campaign.scenario import Scenario
from colo.campaign.subject import Said
from colo.faults.model import DataFault, Fault, RegisterFault
from tools.benchmarks.emulator import PROMPT, Lost
from tools.benchmarks.qemu_injector_gdb import SIGINT, SIGTRAP, GdbError
from tools.benchmarks.qemu_injector_machine import Qemu
from vmm.machine import Ended

LIMIT_TIMES, LIMIT_LEAST_S = 3.0, 0.5
"""A trial hangs when it takes so many times as long as the run without faults, and so long at least."""
AFTER_S = 0.1
"""The run without faults is heard for so much longer."""


@dataclass(frozen=True)
class AtClock:
    """So long after the trial's beginning, on the host's clock."""

    seconds: float


@dataclass(frozen=True)
class AtAddress:
    """Before the instruction at a linear address is executed for the first time."""

    address: int


class Injected(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial came to."""

    outcome: str
    why: str
    difference: str
    address: int | None
    """Where the guest was when the bit was flipped; None: it never came there."""


@dataclass
class Heard:
    """What a guest said and how it ended: what :class:`Judge` wants to know of a trial."""

    said: list[Said] = field(default_factory=list)
    tail: bytes = b""
    ended: Ended | None = None
    exit_code: int | None = None

    @classmethod
    def of(cls, data: bytes, ended: Ended | None = None) -> Heard:
        """Lines instead of times: the order is all that counts."""
        *lines, tail = data.split(b"\n")
        said = [Said(number, CONSOLE, line + b"\n") for number, line in enumerate(lines, 1)]
        return cls(said, tail, ended)


class Injector:
    """A QEMU whose guest stands where trials begin, and how the run without a fault goes on from there."""

    def __init__(self, qemu: Qemu, scenario: Scenario) -> None:
        self._qemu = qemu
        self._scenario = scenario
        self._judge: Judge | None = None
        self.golden_s = 0.0
        """On the host's clock."""
        self._span_s = self._limit_s = 0.0
        """Of the time that QEMU computes: what the run without a fault needs, and what a trial may need."""

    async def begin(self, ready: str, typed: str, echoed: str) -> None:
        """Boot the guest, type the workload, and stop when its echo ends with ``echoed``."""
        qemu = self._qemu
        await qemu.go_on()
        await qemu.expect(ready)
        await qemu.expect(PROMPT)
        qemu.console.clear()
        qemu.console.type(typed)
        await qemu.expect(echoed)
        await qemu.stop()
        qemu.console.clear()

    async def golden(self, last: str) -> None:
        """The run without a fault, to its ``last`` line and the prompt."""
        qemu = self._qemu
        began, used_s = time.perf_counter(), qemu.cpu_seconds()
        await qemu.go_on()
        await qemu.expect(last)
        self.golden_s = time.perf_counter() - began
        self._span_s = qemu.cpu_seconds() - used_s
        self._limit_s = max(LIMIT_TIMES * self._span_s, LIMIT_LEAST_S)
        await qemu.expect(PROMPT)
        needed = bytes(qemu.console.data).count(b"\n")
        await qemu.run_for(AFTER_S)
        await qemu.stop()
        self._judge = Judge(_golden_run(self._scenario, bytes(qemu.console.data), needed))

    def judge_as(self, other: Injector) -> None:
        """Compare with the other's run without a fault, because this QEMU has none of its own."""
        self._judge, self.golden_s = other._judge, other.golden_s
        self._span_s, self._limit_s = other._span_s, other._limit_s

    # Trials

    async def trial(self, fault: Fault, moment: AtClock | AtAddress) -> Injected:
        """From where the guest stands now."""
        address = await self._to(moment)
        if address is not None:
            await self._flip(fault)
        heard = await self._to_the_end()
        assert self._judge is not None, "there was no golden run"
        verdict: Verdict = self._judge.verdict(heard)  # type: ignore[arg-type]
        return Injected(
            outcome=verdict.outcome.value,
            why=verdict.why,
            difference=verdict.difference,
            address=address,
        )

    async def _to(self, moment: AtClock | AtAddress) -> int | None:
        """Run to the moment; where that is, or None: the guest did not come there."""
        qemu = self._qemu
        if isinstance(moment, AtAddress):
            await qemu.gdb.set_breakpoint(moment.address)
        await qemu.go_on()
        if isinstance(moment, AtClock):
            await qemu.run_for(moment.seconds)
        else:
            await qemu.run_until(self._is_complete, self._limit_s)
        signal = await qemu.stop()
        if isinstance(moment, AtAddress):
            await qemu.gdb.clear_breakpoint(moment.address)
            return moment.address if signal == SIGTRAP else None
        if signal != SIGINT:
            raise Lost(f"QEMU's guest stopped by itself before a fault, with signal {signal}")
        return await qemu.gdb.register("rip")

    async def _flip(self, fault: Fault) -> None:
        gdb = self._qemu.gdb
        match fault:
            case RegisterFault(register=name, mask=mask):
                await gdb.set_register(name, await gdb.register(name) ^ mask)
            case DataFault(space="physical", address=address, width=width, mask=mask):
                await gdb.physical(True)
                old = int.from_bytes(await gdb.memory(address, width), "little")
                await gdb.set_memory(address, (old ^ mask).to_bytes(width, "little"))
                await gdb.physical(False)
            case _:
                raise GdbError(f"a fault of kind {type(fault).__name__}: not one of this injector's")

    async def _to_the_end(self) -> Heard:
        """Until everything was said, the guest ended, or it is late."""
        qemu = self._qemu
        await qemu.go_on()
        used_s = qemu.cpu_seconds()
        await qemu.run_until(
            lambda: self._is_complete(qemu.cpu_seconds() - used_s > self._span_s), self._limit_s
        )
        signal = await qemu.stop()
        if signal == SIGINT:
            return Heard.of(bytes(qemu.console.data))
        await qemu.reset()
        return Heard.of(bytes(qemu.console.data), Ended.RESET)

    def _is_complete(self, late: bool = False) -> bool:
        """Was as much said as without a fault?  A guest that says something else is heard until ``late``,

        because what follows may tell that it is about to end.
        """
        assert self._judge is not None, "there was no golden run"
        heard = Heard.of(bytes(self._qemu.console.data))
        complete = self._judge.complete(heard)  # type: ignore[arg-type]
        return complete and (late or self._judge.first_difference(heard.said) is None)


def _golden_run(scenario: Scenario, console: bytes, needed: int) -> GoldenRun:
    """As a campaign keeps one, with lines instead of times and without states."""
    heard = Heard.of(console)
    return GoldenRun(
        scenario=scenario,
        start=b"",
        marks=(Mark(needed, 0, b"", b"", {}),),
        said=tuple(heard.said),
        tail=heard.tail,
        ended=None,
        ended_ns=len(heard.said),
        exit_code=None,
        pages=(),
        virtual=(),
        executed=(),
        disks=(),
    )
