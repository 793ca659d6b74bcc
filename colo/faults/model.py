"""The fault model: what can go wrong, when, and for how long, as values.

A fault is *what* (its kind and parameters), *where* (``target``: the name of a machine, link, disk, node
or arbiter; empty when there is only one), *when* (a trigger) and *how long* (its persistence).  Terms are
the field's: fault, error, failure, transient, intermittent and permanent of Avizienis and others (*Basic
Concepts and Taxonomy of Dependable and Secure Computing*, 2004); bit operations on instructions, data and
registers, and classes of outcomes, of fault injection by software (Hsueh and others, *Fault Injection
Techniques and Tools*, 1997).  Disk faults are named as in the storage literature.

Everything is frozen and checked when it is made, so a fault that exists makes sense.  A :class:`Trial` is
all that is needed to do it again: what is drawn while it runs (which frame is dropped, which bit rots) is
drawn from ``random.Random(f"{trial.seed} {purpose}")``.

How long.  ``transient`` is once: one change of bits; for a link or disk the next ``times`` frames or
requests (1 when 0 is given), or those within ``for_ns``.  ``intermittent`` is that again every
``period_ns``.  ``permanent`` is from the trigger to the end: a bit that is stuck, a link that stays cut.

Not modelled: faults inside the engine's own state (TLB, caches, pipelines), more than one bit pattern a
fault (use several faults), heat and voltage.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

import msgspec

from colo.faults.bases import Base, Bits, Effect, Lasting
from colo.faults.delay import NS_MAX, Delay
from colo.faults.errors import FaultError
from colo.faults.fields import U64_MAX, Real, Text, Whole, check
from colo.faults.triggers import (
    TRIGGERS,
    U64,
    AtAddress,
    AtInstruction,
    AtStep,
    AtText,
    AtTime,
    Count,
    Intermittent,
    Persistence,
    Probability,
    Times,
    Trigger,
)

__all__ = [
    "FAULTS_MAX",
    "KINDS",
    "REGISTERS",
    "TRIGGERS",
    "ArbiterFault",
    "AtAddress",
    "AtInstruction",
    "AtStep",
    "AtText",
    "AtTime",
    "ClockDrift",
    "ClockJump",
    "DataFault",
    "Delay",
    "DiskFault",
    "Fault",
    "FaultError",
    "InstructionFault",
    "Intermittent",
    "LinkFault",
    "LostInterrupt",
    "NodeFault",
    "Outcome",
    "Persistence",
    "RegisterFault",
    "Trial",
    "Trigger",
]

FAULTS_MAX = 64
"""In one trial."""
SECTOR_MAX = 1 << 48
REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14"),
    *("r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer"),
)
"""SDM vol. 1, 3.4, and vol. 3, 2.5: what an instruction can see of 64 bits each."""


class RegisterFault(Bits, frozen=True, kw_only=True, tag="register"):
    """Bits of a register of the processor."""

    register: Annotated[
        str, Text("|".join(REGISTERS), 8, "a 64-bit register: rax ... r15, rip, rflags, cr0 ...")
    ]


class DataFault(Bits, frozen=True, kw_only=True, tag="data"):
    """Bits of RAM, little-endian from ``address`` on; ``width`` is in bytes."""

    address: U64
    space: Literal["virtual", "physical"] = "virtual"
    width: Annotated[int, Whole(1, 8, "bytes")] = 8

    def rule(self) -> None:
        super().rule()
        if self.mask >> (8 * self.width):
            expected = f"bits of {self.width} bytes"
            raise FaultError(("mask",), hex(self.mask), expected, "widen width or narrow the mask")


class InstructionFault(Bits, frozen=True, kw_only=True, tag="instruction"):
    """Bits of an instruction as it is fetched: memory keeps what it has.

    ``mask`` and ``value`` cover its first eight bytes, little-endian.
    """

    address: U64 | None = None
    """Virtual; without it, the instruction at the trigger."""


class ClockJump(Base, frozen=True, kw_only=True, tag="clock-jump"):
    """The guest's clocks jump, forwards or back; the virtual time of the world does not."""

    by_ns: Annotated[int, Whole(-NS_MAX, NS_MAX, "virtual nanoseconds, not 0")]

    def rule(self) -> None:
        self._never("permanent")
        if self.by_ns == 0:
            raise FaultError(("by_ns",), "0", "a jump", "give nanoseconds, negative for back")


class ClockDrift(Lasting, frozen=True, kw_only=True, tag="clock-drift"):
    """The guest's clocks run fast (or slow, when negative)."""

    ppm: Annotated[int, Whole(-999_999, 10_000_000, "parts per million")]


class LostInterrupt(Base, frozen=True, kw_only=True, tag="lost-interrupt"):
    """The next ``times`` interrupts of one line, or with one vector, are not delivered."""

    line: Annotated[int, Whole(0, 23, "an ISA or IOAPIC line")] | None = None
    vector: Annotated[int, Whole(32, 255, "an interrupt vector")] | None = None
    times: Count = 1

    def rule(self) -> None:
        if (self.line is None) == (self.vector is None):
            found = "neither" if self.line is None else "both"
            raise FaultError(("line",), f"{found} of line and vector", "one of them", "say which interrupt")
        if self.persistence == "permanent" and self.times != 1:
            raise FaultError(("times",), str(self.times), "none with 'permanent'", "leave one of them out")


_FRAMES = frozenset({"for_ns", "times", "probability"})


class LinkFault(Effect, frozen=True, kw_only=True, tag="link"):
    """A network link: frames are lost, doubled, overtaken, damaged, late; or the link is thin or cut.

    ``half-open``: one side believes that the connection exists and the other does not; what is sent in
    ``direction`` is swallowed and acknowledged by nobody, without an error to the sender.
    """

    effect: Literal["drop", "duplicate", "reorder", "corrupt", "delay", "bandwidth", "partition", "half-open"]
    direction: Literal["both", "to", "from"] = "both"
    """As the target sees it."""
    probability: Probability = 1.0
    """That a frame is hit."""
    times: Times = 0
    copies: Count = 1
    """Of a duplicated frame, beside itself."""
    overtaken: Annotated[int, Whole(1, 1024, "frames that pass it")] = 1
    bits: Annotated[int, Whole(1, 4096, "bits of a frame that flip")] = 1
    delay: Delay | None = None
    bytes_per_s: Annotated[int, Whole(0, 1 << 40)] = 0

    uses: ClassVar[dict[str, frozenset[str]]] = {
        "drop": _FRAMES,
        "duplicate": _FRAMES | {"copies"},
        "reorder": _FRAMES | {"overtaken"},
        "corrupt": _FRAMES | {"bits"},
        "delay": _FRAMES | {"delay"},
        "bandwidth": frozenset({"for_ns", "bytes_per_s"}),
        "partition": frozenset({"for_ns"}),
        "half-open": frozenset({"for_ns"}),
    }
    conditions: ClassVar[frozenset[str]] = frozenset({"bandwidth", "partition", "half-open"})
    needs: ClassVar[dict[str, str]] = {"delay": "delay", "bandwidth": "bytes_per_s"}


class DiskFault(Effect, frozen=True, kw_only=True, tag="disk"):
    """A disk, from ``first_sector`` on (512 bytes each); ``sectors`` 0 is to its end.

    eio: the request fails.  slow: it is late.  torn: a write stops half way, and says nothing.  lost: a
    write does nothing, and says that it did.  misdirected: a write lands elsewhere.  rot: bits of what is
    stored flip.  full: writes fail for want of space.
    """

    effect: Literal["eio", "slow", "torn", "lost", "misdirected", "rot", "full"]
    first_sector: Annotated[int, Whole(0, SECTOR_MAX)] = 0
    sectors: Annotated[int, Whole(0, SECTOR_MAX)] = 0
    requests: Literal["both", "read", "write"] = "both"
    probability: Probability = 1.0
    """That a request is hit."""
    times: Times = 0
    delay: Delay | None = None
    by_sectors: Annotated[int, Whole(-SECTOR_MAX, SECTOR_MAX)] = 0
    """How far away a misdirected write lands."""
    bits: Annotated[int, Whole(1, 4096, "bits that rot")] = 1

    uses: ClassVar[dict[str, frozenset[str]]] = {
        "eio": _FRAMES | {"requests"},
        "slow": _FRAMES | {"requests", "delay"},
        "torn": _FRAMES,
        "lost": _FRAMES,
        "misdirected": _FRAMES | {"by_sectors"},
        "rot": _FRAMES | {"bits"},
        "full": frozenset({"for_ns"}),
    }
    conditions: ClassVar[frozenset[str]] = frozenset({"full"})
    needs: ClassVar[dict[str, str]] = {"slow": "delay", "misdirected": "by_sectors"}


class NodeFault(Effect, frozen=True, kw_only=True, tag="node"):
    """A node: killed for good, paused, slow by a factor, or killed and back after ``for_ns``."""

    effect: Literal["kill", "pause", "slow", "restart"]
    factor: Annotated[float, Real(1.0, 1e6)] = 1.0

    uses: ClassVar[dict[str, frozenset[str]]] = {
        "kill": frozenset(),
        "pause": frozenset({"for_ns"}),
        "slow": frozenset({"for_ns", "factor"}),
        "restart": frozenset({"for_ns"}),
    }
    conditions: ClassVar[frozenset[str]] = frozenset({"pause", "slow", "restart"})

    def rule(self) -> None:
        super().rule()
        if self.effect == "kill":
            self._never("intermittent", "permanent")
        if self.effect == "restart":
            self._never("permanent")
        if self.effect == "slow" and self.factor == 1.0:
            raise FaultError(("factor",), "1.0", "more than 1", "how many times slower")


class ArbiterFault(Effect, frozen=True, kw_only=True, tag="arbiter"):
    """The arbiter answers late, not at all, or everyone that he has won."""

    effect: Literal["slow", "unreachable", "wrong"]
    delay: Delay | None = None

    uses: ClassVar[dict[str, frozenset[str]]] = {
        "slow": frozenset({"for_ns", "delay"}),
        "unreachable": frozenset({"for_ns"}),
        "wrong": frozenset({"for_ns"}),
    }
    conditions: ClassVar[frozenset[str]] = frozenset({"slow", "unreachable", "wrong"})
    needs: ClassVar[dict[str, str]] = {"slow": "delay"}


Fault = (
    RegisterFault
    | DataFault
    | InstructionFault
    | ClockJump
    | ClockDrift
    | LostInterrupt
    | LinkFault
    | DiskFault
    | NodeFault
    | ArbiterFault
)
KINDS: dict[str, type[Base]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        *(RegisterFault, DataFault, InstructionFault, ClockJump, ClockDrift),
        *(LostInterrupt, LinkFault, DiskFault, NodeFault, ArbiterFault),
    )
}


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: its seed and its faults, in the order of the plan."""

    seed: Annotated[int, Whole(0, U64_MAX)]
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        if len(self.faults) > FAULTS_MAX:
            raise FaultError(("faults",), str(len(self.faults)), f"at most {FAULTS_MAX}", "make more trials")


class Outcome(StrEnum):
    """What a trial came to, from harmless to worst."""

    MASKED = "masked"
    """Nobody could tell: the same output, and in the end the same state where that is asked."""
    DETECTED = "detected"
    """Somebody said so: the guest, its service, a checker or the comparison."""
    FAILED_OVER = "failed-over"
    """A survivor serves, and what clients saw is right."""
    CRASH = "crash"
    """The guest or the service ended, and nothing took over."""
    HANG = "hang"
    """It did not end within the limit of virtual time."""
    SDC = "sdc"
    """Silent data corruption: wrong, and nobody said so."""
