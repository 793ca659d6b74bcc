"""What every device promises, and the register of devices that are held to it.

A *rig* is one device on the bench: its lines and outputs recorded, its clock moved by hand.  A
module in ``tests/devices/rigs/`` registers a factory under a name::

    def _uart(clock: ManualClock) -> Rig:
        rig = Rig(clock)
        rig.device = Uart(irq=rig.line("irq"), transmit=rig.sink("transmit"))
        rig.views = {"uart": (rig.device, 8)}
        rig.actions = {"receive": lambda rng: rig.device.receive(rng.randbytes(3))}
        return rig

    register("uart", _uart)

``tests/devices/test_promises.py`` finds the modules by itself and runs every promise on every rig.
The factory is called often and must give equal rigs each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vmm.clock import ManualClock
from vmm.state import pack, unpack

SIZES = (1, 2, 4, 8)
STEPS = 200
ADVANCES_NS = (0, 1, 838, 15_085, 1_000_000, 250_000_000, 1_000_000_000)
"""From one nanosecond to one second: each device finds its own time scale among them."""


class RecordingLine:
    """A wire that writes its changes into the rig's log."""

    __slots__ = ("_log", "level", "name")

    def __init__(self, log: list[Any], name: str) -> None:
        self._log = log
        self.name = name
        self.level = False

    def set(self, level: bool) -> None:
        assert isinstance(level, bool), f"line {self.name} was given {level!r}"
        if level != self.level:
            self.level = level
            self._log.append((self.name, level))


@dataclass
class Rig:
    """One device, its wiring, and everything a test may do to it.

    ``device``      what is under test: it has state, reset() and restored()
    ``views``       name -> (object with read and write, number of offsets that mean something)
    ``actions``     name -> what the host may do; takes the seeded generator, and what it gives
                    back is compared between twins
    ``companions``  other devices that are part of the bench; their state travels along
    ``world``       what else travels to a twin, such as guest memory: name -> (copy out, copy in)
    ``observe``     further outputs, compared between twins after each step
    ``values``      values worth writing more often than chance would
    ``advances_ns`` how far one step may move the clock
    """

    clock: ManualClock
    device: Any = None
    views: dict[str, tuple[Any, int]] = field(default_factory=dict)
    actions: dict[str, Callable[[random.Random], object]] = field(default_factory=dict)
    companions: tuple[Any, ...] = ()
    world: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = field(default_factory=dict)
    observe: Callable[[], object] = lambda: None
    values: tuple[int, ...] = ()
    advances_ns: tuple[int, ...] = ADVANCES_NS
    log: list[Any] = field(default_factory=list)
    lines: dict[str, RecordingLine] = field(default_factory=dict)

    def line(self, name: str) -> RecordingLine:
        """A new recorded wire."""
        self.lines[name] = RecordingLine(self.log, name)
        return self.lines[name]

    def sink(self, name: str) -> Callable[..., None]:
        """A new recorded output: any arguments, no answer."""

        def record(*values: object) -> None:
            self.log.append((name, *values))

        return record

    def levels(self) -> dict[str, bool]:
        return {name: line.level for name, line in self.lines.items()}

    def step(self, rng: random.Random) -> object:
        """One random access, advance or host action; the answer is everything it showed."""
        before = len(self.log)
        kind = rng.choices(("write", "read", "advance", "action"), (6, 5, 2, 2 if self.actions else 0))[0]
        name, answer = "", None
        if kind == "advance" or not (self.views or self.actions):
            self.clock.advance(rng.choice(self.advances_ns))
        elif kind == "action" or not self.views:
            name = rng.choice(sorted(self.actions))
            answer = self.actions[name](rng)
        else:
            name = rng.choice(sorted(self.views))
            view, count = self.views[name]
            offset, size = rng.randrange(count), rng.choices(SIZES, (12, 2, 2, 1))[0]
            if kind == "read":
                answer = view.read(offset, size)
            else:
                view.write(offset, size, self._value(rng, size))
        return kind, name, answer, self.log[before:], self.observe()

    def _value(self, rng: random.Random, size: int) -> int:
        if self.values and rng.random() < 0.5:
            return rng.choice(self.values) & (1 << 8 * size) - 1
        return rng.getrandbits(8 * size)

    def used(self, seed: int, steps: int = STEPS) -> Rig:
        """This rig after a random past."""
        rng = random.Random(seed)
        for _ in range(steps):
            self.step(rng)
        return self


Factory = Callable[[ManualClock], Rig]
RIGS: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Hold the device that ``factory`` builds to all promises."""
    assert name not in RIGS, f"two rigs are named {name}"
    RIGS[name] = factory


def build(name: str, now_ns: int = 0) -> Rig:
    """A fresh rig, reset as the board does at power-on."""
    rig = RIGS[name](ManualClock(now_ns))
    rig.device.reset()
    for companion in rig.companions:
        companion.reset()
    rig.log.clear()
    return rig


def covered_classes() -> set[type]:
    """Classes that some rig exercises: what a style test compares with ``vmm/devices``."""
    classes: set[type] = set()
    for name in RIGS:
        rig = build(name)
        classes.add(type(rig.device))
        classes.update(type(view) for view, _ in rig.views.values())
    return classes


def twin_of(name: str, rig: Rig) -> Rig:
    """Another rig, built in another place and given what a snapshot carries, and nothing else."""
    twin = RIGS[name](ManualClock(rig.clock.now_ns))
    for what, (copy_out, _) in rig.world.items():
        twin.world[what][1](copy_out())
    pairs = [(rig.device, twin.device), *zip(rig.companions, twin.companions, strict=True)]
    for old, new in pairs:
        new.state = unpack(type(old.state), pack(old.state))
    for _, new in pairs:
        new.restored()
    twin.log.clear()
    return twin


def wiring(device: Any) -> dict[str, Any]:
    """Every slot of ``device`` but its state."""
    names = [name for kind in type(device).__mro__ for name in _slots(kind)]
    return {name: getattr(device, name) for name in names if name != "state" and hasattr(device, name)}


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
