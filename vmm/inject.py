"""Injection: faults of the processor, of RAM, of its clock and of interrupts, as inputs of the machine.

    machine.injector.enter(Injection(Register("rax", toggle=1 << 5)))
    machine.injector.enter(Injection(Memory(0x1000, virtual=True, clear=0xFF), after=3))

An injection enters by the door (:mod:`vmm.inputs`), so a recording has it and a replay does it again.  Inputs
enter between two blocks; ``after`` says how many instructions of the next block are executed first, and
:mod:`vmm.stops` calls with that number.  ``take`` is the same without the door: for one of two machines that
follow one log, where the fault is what makes them differ.

========== ======================================================================================
Register   bits of a register (:mod:`vmm.cpu.poke` has the names)
Memory     bits of RAM, by physical or virtual address
Code       bits of an instruction as it is fetched, for one execution.  RAM is changed, the
           instruction executed alone, and what it did not overwrite is put back.  An instruction
           that reads its own bytes sees them changed.  It ends its block.
ClockJump  the time stamp counter jumps.  Devices keep virtual time: for a guest whose clock source
           is the TSC its clock jumps, and its alarms are not moved.
ClockDrift the time stamp counter runs fast or slow
Lost       an interrupt is acknowledged, ended on behalf of the guest, and never reaches the
           processor.  A level that is still asserted asks again, and counts again.
========== ======================================================================================

``stuck`` bits of registers and RAM are forced to their level again before every block: see
:mod:`vmm.cpu.stuck` for that granularity and its price.  RAM is stuck where the address was when it began.

Nothing here costs anything before the first injection.  What lasts (stuck bits, drift, interrupts that will
be lost) is the host's: a snapshot does not have it, and a machine that resumes one has none of it.

Not modelled: x87 state, caches, TLB entries; faults of a device's registers (its state is a
:class:`vmm.state.State` and can be changed as such).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple

from vmm.addressing import Memory as Addressed
from vmm.errors import BadAddress, ConfigError, StateError
from vmm.inject_clock import GuestClock
from vmm.inject_interrupts import Losses
from vmm.state import State, at_most, i64, pack, u8, u64, unpack

if TYPE_CHECKING:
    from vmm.machine import Machine

PORT = "inject"
CODE_BYTES = 8
"""Of an instruction, what a Code injection can change."""


class Register(State, tag=1):
    """``(old & ~clear) ^ toggle``; with ``stuck``, from then on."""

    name: Annotated[str, at_most(16)]
    clear: u64 = 0
    toggle: u64 = 0
    stuck: bool = False


class Memory(State, tag=2):
    """The same for ``width`` bytes, little-endian."""

    address: u64
    virtual: bool = False
    width: u8 = 8
    clear: u64 = 0
    toggle: u64 = 0
    stuck: bool = False


class Code(State, tag=3):
    """The same for the next instruction's first bytes; with ``stuck``, for the RAM that they are in."""

    clear: u64 = 0
    toggle: u64 = 0
    stuck: bool = False


class ClockJump(State, tag=4):
    by_ns: i64


class ClockDrift(State, tag=5):
    """``for_ns`` 0: until another one."""

    ppm: i64
    for_ns: u64 = 0


class Lost(State, tag=6):
    """The next ``times`` (0: all) with this vector, or from this input of the interrupt controllers."""

    vector: int | None = None
    line: int | None = None
    times: u64 = 1


What = Register | Memory | Code | ClockJump | ClockDrift | Lost


class Injection(State):
    """``at``: only if that linear address is reached so; otherwise nothing happens."""

    what: What
    after: u64 = 0
    at: u64 | None = None


class Done(NamedTuple):
    """What became of an injection: where the guest was, what changed, or why nothing did."""

    ns: int
    instructions: int
    address: int
    injection: Injection
    changed: str
    failed: str


class Injector:
    """The faults of one machine."""

    __slots__ = ("_clock", "_losses", "_machine", "_stuck", "_waiting", "told")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._waiting: list[Injection] = []
        self._stuck: list[tuple[int, int, int, int, int]] = []
        self._clock = GuestClock(machine)
        self._losses = Losses(machine)
        self.told: list[Callable[[Done], bool]] = []
        """Told what became of each injection, in turn, until one says that it was its own."""

    # In

    def enter(self, injection: Injection) -> None:
        """By the door, at a boundary of blocks; recorded if the machine is."""
        self._machine.stops.require_boundary()
        self.check(injection.what)
        self._machine.door.enter(PORT, pack(injection))

    def take(self, injection: Injection | bytes) -> None:
        """As it comes in; not while the processor runs."""
        if isinstance(injection, bytes):
            injection = parse(injection)
        self.check(injection.what)
        if injection.after == 0 and injection.at is None and not isinstance(injection.what, Code):
            self._apply(injection)
            return
        if not self._waiting:
            self._machine.loop.errands.append(self._carry_out)
        self._waiting.append(injection)

    def check(self, what: What) -> None:
        """ConfigError for what cannot be injected."""
        from vmm.cpu import poke

        if isinstance(what, Register):
            known = tuple(poke.CELLS) if what.stuck else poke.NAMES
            if what.name not in known:
                kind = "a register that can be stuck" if what.stuck else "a register"
                raise ConfigError(
                    f"injection: {what.name!r} is not {kind}: expected one of {', '.join(known)}"
                )
        elif isinstance(what, Memory) and not 1 <= what.width <= 8:
            raise ConfigError(f"injection: a width of {what.width} bytes: expected 1 to 8")
        elif isinstance(what, Lost) and (what.vector is None) == (what.line is None):
            raise ConfigError("injection: a lost interrupt has a vector or a line: give one of them")

    # Carrying out

    def _carry_out(self) -> None:
        """In place of running on: the parts of a block that come before, and the changes between them."""
        waiting = sorted(self._waiting, key=lambda injection: injection.after)  # stable
        self._waiting.clear()
        stops, loop = self._machine.stops, self._machine.loop
        executed, inside = 0, True
        for injection in waiting:
            if inside and injection.after > executed:
                inside = loop.run_part(injection.after - executed)
                executed = injection.after
            self._apply(injection, injection.at is None or stops.address == injection.at)
            inside = inside and not isinstance(injection.what, Code)

    def _apply(self, injection: Injection, reached: bool = True) -> None:
        stops, changed, failed = self._machine.stops, "", ""
        now_ns, instructions, address = self._machine.clock.now_ns, stops.instructions, stops.address
        try:
            if reached:
                changed = self._carry(injection.what)
            else:
                failed = "an exception came before the address"
        except BadAddress as exc:
            failed = f"not mapped, or not RAM: {exc}"
        done = Done(now_ns, instructions, address, injection, changed, failed)
        any(tell(done) for tell in tuple(self.told))

    def _carry(self, what: What) -> str:
        """Do it; what changed, in words."""
        match what:
            case Register():
                return self._change_register(what)
            case Memory():
                return self._change_memory(what)
            case Code(stuck=True):
                at = self._machine.stops.address
                return self._change_memory(Memory(at, True, CODE_BYTES, what.clear, what.toggle, True))
            case Code():
                return self._execute_changed(what)
            case ClockJump():
                self._clock.jump(what.by_ns)
                return f"time stamp counter {what.by_ns:+,} ns"
            case ClockDrift():
                self._clock.drift(what.ppm, what.for_ns)
                return f"time stamp counter {what.ppm:+,} ppm"
            case Lost():
                self._losses.lose(what.vector, what.line, what.times)
                source = f"vector {what.vector}" if what.line is None else f"line {what.line}"
                return f"the next {what.times or ''} interrupts of {source}".replace("  ", " ")

    def _change_register(self, what: Register) -> str:
        from vmm.cpu import poke

        cpu = self._machine.cpu
        old = poke.read(cpu, what.name)
        poke.write(cpu, what.name, old & ~what.clear ^ what.toggle)
        if what.stuck:
            self._stick(cpu.env + poke.CELLS[what.name], what.clear, what.toggle, 0, 0)
        return f"{what.name}: {old:#x} -> {poke.read(cpu, what.name):#x}"

    def _change_memory(self, what: Memory) -> str:
        memory = Addressed(self._machine.cpu, self._machine.ram)
        places = memory.places(what.address, what.width, virtual=what.virtual)
        old = memory.read(places)
        new = _changed(old, what.clear, what.toggle)
        memory.write(places, new)
        if what.stuck:
            done = 0
            for address, size in places:
                mask = (1 << 8 * size) - 1
                self._stick_ram(address, size, what.clear >> 8 * done & mask, what.toggle >> 8 * done & mask)
                done += size
        return f"{what.address:#x}: {old.hex(' ')} -> {new.hex(' ')}"

    def _stick_ram(self, address: int, size: int, clear: int, level: int) -> None:
        """The processor forces whole words: one that holds these bytes and lies in RAM."""
        ram = self._machine.ram
        offset = ram.offset(address, size)
        word = min(offset, ram.size - 8)
        shift = 8 * (offset - word)
        self._stick(ram.host_address + word, clear << shift, level << shift, address, address + size)

    def _stick(self, word: int, clear: int, level: int, begin: int, end: int) -> None:
        self._stuck.append((word, clear, level & clear, begin, end))
        self._machine.cpu.parts.stick(self._stuck)

    def _execute_changed(self, what: Code) -> str:
        machine = self._machine
        memory, stops = Addressed(machine.cpu, machine.ram), machine.stops
        at = stops.address
        places = memory.places(at, memory.mapped(at, CODE_BYTES), virtual=True)
        old = memory.read(places)
        new = _changed(old, what.clear, what.toggle)
        memory.write(places, new)
        machine.loop.run_part(1)
        machine.cpu.parts.leave_block()
        left = memory.read(places)
        memory.write(places, bytes(o if n == b else b for o, n, b in zip(old, new, left, strict=True)))
        return f"code at {at:#x}: {old.hex(' ')} -> {new.hex(' ')}"


def _changed(old: bytes, clear: int, toggle: int) -> bytes:
    new = int.from_bytes(old, "little") & ~clear ^ toggle
    return (new & (1 << 8 * len(old)) - 1).to_bytes(len(old), "little")


def parse(payload: bytes) -> Injection:
    """What an input on PORT says; ConfigError when it says nothing that can be injected."""
    try:
        return unpack(Injection, payload)
    except StateError as exc:
        raise ConfigError(f"injection of {len(payload)} bytes: {exc}") from None
