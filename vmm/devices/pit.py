"""8254 programmable interval timer: three 16-bit counters at 1.193182 MHz.

Source: Intel 8254 data sheet (order 231164), sections "Programming the 8254", "Read Operations",
"Mode Definitions" and "Operation Common to All Modes".

Nothing counts here.  A counter holds the CLK pulse at which its count was loaded, and what the
guest may see is computed from the present pulse.  Pulse ``p`` happens at the nanosecond
``ceil(p * 10**9 / 1193182)`` since power-on, in integers, so that a timer never drifts.

Counter 0 drives IRQ 0.  The alarm rings once per rising edge of OUT: in modes 2 and 3 the line is
lowered and raised in that instant, and stays high in between.  An edge-triggered input cannot tell
the difference, but that its request is not withdrawn in the low half of a mode 3 period; half the
alarms are saved.

Not modelled: CLK pulses inside a nanosecond, the undefined count between a write and its loading
(the new count is shown), mode 2 and 3 with a count of 1, which the data sheet forbids (taken as 2).
GATE 0 and GATE 1 are tied high as on the PC.  At power-on, which the data sheet leaves undefined,
every counter is in mode 0 and waits for a count.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vmm.device import Clock, Line
from vmm.devices.isa import read_bytes, write_bytes
from vmm.state import State, field, i64, length, u8, u16, u64

HZ = 1_193_182
NS_PER_S = 1_000_000_000

CONTROL_WORD = 3  # offset; 0 to 2 are the counters
SELECT_READ_BACK = 3
RW_LATCH, RW_LSB, RW_MSB, RW_BOTH = range(4)
CONTROL_BCD = 0x01
CONTROL_STORED = 0x3F
READ_BACK_NO_COUNT = 0x20
READ_BACK_NO_STATUS = 0x10
STATUS_OUTPUT = 0x80
STATUS_NULL_COUNT = 0x40


class Mode:
    """The six modes by their data sheet names."""

    INTERRUPT_ON_TERMINAL_COUNT = 0
    HARDWARE_ONE_SHOT = 1
    RATE_GENERATOR = 2
    SQUARE_WAVE = 3
    SOFTWARE_STROBE = 4
    HARDWARE_STROBE = 5


TRIGGERED = (Mode.HARDWARE_ONE_SHOT, Mode.HARDWARE_STROBE)
PERIODIC = (Mode.RATE_GENERATOR, Mode.SQUARE_WAVE)
MODE_OF_BITS = (0, 1, 2, 3, 4, 5, 2, 3)  # M2 is "don't care" in modes 2 and 3


class Counter(State):
    """One of the three.  Times are CLK pulses since power-on."""

    control: u8 = RW_BOTH << 4  # RW, M2-M0 and BCD as programmed
    loaded: bool = False  # a count was written since the control word
    running: bool = False  # the counting element counts (or waits for GATE with its count)
    count: Annotated[int, Meta(ge=1, le=0x10000)] = 1  # the count in force
    next_count: Annotated[int, Meta(ge=0, le=0x10000)] = 0  # written, not yet taken over; 0 = none
    start: i64 = 0  # the pulse that loaded ``count``
    switch: i64 = 0  # the pulse that takes ``next_count`` over (modes 2 and 3)
    held: i64 = 0  # pulses counted when GATE fell (modes 0, 2, 3 and 4)
    gate: bool = True
    edge: u64 = 0  # the pulse of the next rising edge of OUT, 0 = none (counter 0)
    write_low: u8 = 0  # first byte of a two-byte count
    write_high_next: bool = False
    read_high_next: bool = False
    latch: u16 = 0
    latch_bytes: u8 = 0  # latched bytes not yet read: 0, 1 or 2
    status: u8 = 0
    status_latched: bool = False


def _three() -> list[Counter]:
    return [Counter(), Counter(), Counter(gate=False)]


class PitState(State):
    counters: Annotated[list[Counter], length(3)] = field(default_factory=_three)


def pulse_at(now_ns: int) -> int:
    """CLK pulses since power-on."""
    return now_ns * HZ // NS_PER_S


def ns_of(pulse: int) -> int:
    """The first nanosecond at which ``pulse`` has happened."""
    return -(-pulse * NS_PER_S // HZ)


class Pit:
    """The timer chip; ``irq`` is OUT 0."""

    __slots__ = ("_alarm", "_clock", "_irq", "state")

    def __init__(self, irq: Line, clock: Clock) -> None:
        self.state = PitState()
        self._irq = irq
        self._clock = clock
        self._alarm = clock.timer("pit.out0", self._fire)

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        if not 0 <= offset < CONTROL_WORD:
            return 0xFF
        counter = self.state.counters[offset]
        if counter.status_latched:
            counter.status_latched = False
            return counter.status
        access = counter.control >> 4
        if counter.latch_bytes:
            value = counter.latch
            counter.latch_bytes -= 1
        else:
            value = _value(counter, self._pulse())
        if access == RW_LSB:
            return value & 0xFF
        if access == RW_MSB:
            return value >> 8
        high = counter.read_high_next
        counter.read_high_next = not high
        return value >> 8 if high else value & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
        elif offset == CONTROL_WORD:
            self._control_word(value)
        elif 0 <= offset < CONTROL_WORD:
            self._count_byte(offset, value)

    # Board side

    def set_gate2(self, level: bool) -> None:
        """GATE 2, from system control port B."""
        counter = self.state.counters[2]
        if counter.gate == level:
            return
        pulse = self._pulse()
        _settle(counter, pulse)
        mode = _mode(counter)
        counter.gate = level
        if not level:
            counter.held = pulse - counter.start
        elif mode in (Mode.INTERRUPT_ON_TERMINAL_COUNT, Mode.SOFTWARE_STROBE):
            counter.start = pulse - counter.held
        elif counter.loaded:
            _load(counter, counter.next_count or counter.count, pulse + 1)

    def output2(self) -> bool:
        """OUT 2, for system control port B."""
        return _out(self.state.counters[2], self._pulse())

    # Life cycle

    def reset(self) -> None:
        self.state = PitState()
        self.restored()

    def restored(self) -> None:
        """Drive OUT 0 and set the alarm for its next rise."""
        counter = self.state.counters[0]
        self._irq.set(_line0(counter))
        if counter.edge:
            self._alarm.arm(ns_of(counter.edge))
        else:
            self._alarm.cancel()

    # Private

    def _pulse(self) -> int:
        return self._clock.now_ns * HZ // NS_PER_S

    def _fire(self) -> None:
        """OUT 0 rises."""
        counter = self.state.counters[0]
        pulse = self._clock.now_ns * HZ // NS_PER_S
        if counter.next_count:
            _settle(counter, pulse)
        counter.edge = _next_edge(counter, pulse)
        self._irq.set(False)
        self._irq.set(True)
        if counter.edge:
            self._alarm.arm(ns_of(counter.edge))

    def _control_word(self, value: int) -> None:
        select = value >> 6
        if select == SELECT_READ_BACK:
            self._read_back(value)
            return
        counter = self.state.counters[select]
        if value >> 4 & 3 == RW_LATCH:
            _latch_count(counter, self._pulse())
            return
        self.state.counters[select] = Counter(control=value & CONTROL_STORED, gate=counter.gate)
        if select == 0:
            self.restored()

    def _read_back(self, value: int) -> None:
        pulse = self._pulse()
        for index, counter in enumerate(self.state.counters):
            if not value >> index + 1 & 1:
                continue
            if not value & READ_BACK_NO_COUNT:
                _latch_count(counter, pulse)
            if not value & READ_BACK_NO_STATUS and not counter.status_latched:
                _settle(counter, pulse)
                counter.status = _status(counter, pulse)
                counter.status_latched = True

    def _count_byte(self, index: int, value: int) -> None:
        counter = self.state.counters[index]
        access = counter.control >> 4
        if access == RW_BOTH and not counter.write_high_next:
            counter.write_low = value
            counter.write_high_next = True
            if _mode(counter) == Mode.INTERRUPT_ON_TERMINAL_COUNT:
                # "Writing the first byte disables counting.  OUT is set low immediately."
                counter.running = False
                counter.edge = 0
                if index == 0:
                    self.restored()
            return
        if access == RW_BOTH:
            counter.write_high_next = False
            written = counter.write_low | value << 8
        else:
            written = value if access == RW_LSB else value << 8
        pulse = self._pulse()
        _settle(counter, pulse)
        _count_written(counter, _count_of(counter, written), pulse)
        if index == 0:
            counter.edge = _next_edge(counter, pulse)
            self.restored()


def _mode(counter: Counter) -> int:
    return MODE_OF_BITS[counter.control >> 1 & 7]


def _count_of(counter: Counter, written: int) -> int:
    """Pulses that a written count stands for; zero is the largest count of the number system."""
    if not counter.control & CONTROL_BCD:
        count = written or 0x10000
    else:
        count = sum((written >> 4 * digit & 0xF) * 10**digit for digit in range(4)) or 10_000
    return max(2, count) if _mode(counter) in PERIODIC else count


def _load(counter: Counter, count: int, pulse: int) -> None:
    """CR goes to CE at ``pulse``: counting starts from ``count``."""
    counter.count = count
    counter.next_count = 0
    counter.start = pulse
    counter.held = 0
    counter.running = True


def _count_written(counter: Counter, count: int, pulse: int) -> None:
    """What a new count does in each mode ("Mode Definitions")."""
    counter.loaded = True
    mode = _mode(counter)
    if mode in TRIGGERED:
        counter.next_count = count  # waits for the trigger
    elif mode in PERIODIC and counter.running and counter.gate:
        counter.next_count = count
        counter.switch = _reload_after(counter, pulse, mode)
    else:
        _load(counter, count, pulse + 1)


def _reload_after(counter: Counter, pulse: int, mode: int) -> int:
    """When a new count is taken over: after the period, in mode 3 after the half period."""
    elapsed = max(0, pulse - counter.start)
    period = counter.start + elapsed // counter.count * counter.count
    half = period + (counter.count + 1) // 2
    return half if mode == Mode.SQUARE_WAVE and pulse < half else period + counter.count


def _start_after_switch(counter: Counter) -> int:
    """``start`` once ``next_count`` is in force; taken over mid-period it begins with the low half."""
    if (counter.switch - counter.start) % counter.count == 0:
        return counter.switch
    return counter.switch - (counter.next_count + 1) // 2


def _settle(counter: Counter, pulse: int) -> None:
    """Take a new count over whose reload has come (modes 2 and 3)."""
    if counter.next_count and pulse >= counter.switch and _mode(counter) in PERIODIC:
        _load(counter, counter.next_count, _start_after_switch(counter))


def _elapsed(counter: Counter, pulse: int) -> int:
    """Pulses counted since the count was loaded."""
    if not counter.gate and _mode(counter) not in TRIGGERED:
        return max(0, counter.held)
    return max(0, pulse - counter.start)


def _value(counter: Counter, pulse: int) -> int:
    """The counting element as the guest reads it."""
    _settle(counter, pulse)
    if not counter.running:
        return 0
    count = counter.count
    elapsed = _elapsed(counter, pulse)
    mode = _mode(counter)
    if mode == Mode.RATE_GENERATOR:
        left = count - elapsed % count
    elif mode == Mode.SQUARE_WAVE:
        # "decremented by two"; an odd count is loaded as count - 1 and the high half is one longer
        at = elapsed % count
        half = (count + 1) // 2
        left = (count & ~1) - 2 * (at if at < half else at - half)
    else:
        left = count - elapsed
    if not counter.control & CONTROL_BCD:
        return left & 0xFFFF
    left %= 10_000
    return left % 10 | left // 10 % 10 << 4 | left // 100 % 10 << 8 | left // 1000 << 12


def _out(counter: Counter, pulse: int) -> bool:
    """The OUT pin."""
    _settle(counter, pulse)
    mode = _mode(counter)
    if not counter.running:
        return mode != Mode.INTERRUPT_ON_TERMINAL_COUNT
    elapsed = _elapsed(counter, pulse)
    match mode:
        case Mode.INTERRUPT_ON_TERMINAL_COUNT:
            return elapsed >= counter.count
        case Mode.HARDWARE_ONE_SHOT:
            return pulse < counter.start or elapsed >= counter.count
        case Mode.RATE_GENERATOR:
            return not counter.gate or counter.count - elapsed % counter.count != 1
        case Mode.SQUARE_WAVE:
            return not counter.gate or elapsed % counter.count < (counter.count + 1) // 2
        case _:
            return elapsed != counter.count


def _status(counter: Counter, pulse: int) -> int:
    """Status byte: OUT, NULL COUNT and the control word ("Read-Back Command")."""
    null = not counter.loaded or counter.next_count != 0 or pulse < counter.start
    return (
        counter.control | (STATUS_OUTPUT if _out(counter, pulse) else 0) | (STATUS_NULL_COUNT if null else 0)
    )


def _latch_count(counter: Counter, pulse: int) -> None:
    """Counter latch: holds until read; a second latch before that is ignored."""
    if not counter.latch_bytes:
        counter.latch = _value(counter, pulse)
        counter.latch_bytes = 2 if counter.control >> 4 == RW_BOTH else 1


def _next_edge(counter: Counter, pulse: int) -> int:
    """The pulse after ``pulse`` at which OUT 0 rises, 0 when it does not."""
    if not counter.running:
        return 0
    match _mode(counter):
        case Mode.RATE_GENERATOR | Mode.SQUARE_WAVE:
            start, count = counter.start, counter.count
            if counter.next_count:
                start = _start_after_switch(counter)
                if start == counter.switch:
                    return start
                count = counter.next_count
            return start + (max(0, pulse - start) // count + 1) * count
        case Mode.INTERRUPT_ON_TERMINAL_COUNT:
            rise = counter.start + counter.count
        case Mode.SOFTWARE_STROBE:
            rise = counter.start + counter.count + 1
        case _:
            return 0
    return rise if rise > pulse else 0


def _line0(counter: Counter) -> bool:
    """The level on IRQ 0 between edges."""
    if _mode(counter) == Mode.INTERRUPT_ON_TERMINAL_COUNT:
        return counter.running and not counter.edge
    return True
