"""The machine, pair or world of one test, and what each can tell when the test has failed.

A *witness* is asked before anything is taken down: for its last lines, which are shown, and for its files,
which are written.  What it needs for that it keeps while the test runs, within limits: a test that passes
pays for an append per event and per frame.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from colo.errors import ColoError
from colo.testing import booted
from vmm.api import Pc
from vmm.backends.net import Nowhere
from vmm.backends.pcap import PcapTap
from vmm.errors import GuestBuildError
from vmm.launch import LaunchOptions

if TYPE_CHECKING:
    from colo.checkers.history import History
    from colo.faults.guest import ArmedFault
    from colo.faults.model import Trial
    from colo.sim.events import Line
    from colo.sim.pair import SimPair
    from colo.sim.world import World
    from colo.testing.asked import Asked

FRAMES_KEPT = 50_000
LINES_KEPT = 200_000
"""Events of a world: some minutes of its time, and tens of megabytes."""
PROTECTED_WITHIN_S = 30.0
"""Virtual time until a new pair's nodes hold one epoch; a guest of 256 MiB needs less than a second."""
PROMPT, PROMPT_WITHIN_S = "~ # ", 10.0
"""Of the shell on the console, which comes right after the text by which a guest says that it is ready."""
CONSOLE_LINES = 12
EVENT_LINES = 20


Frame = tuple[int, bytes]
"""When it came to the switch, and what it is."""


class NoGuest(ColoError):
    """A guest cannot be built here; the test is skipped with the reason."""


class Witness(Protocol):
    def tail(self) -> list[tuple[str, list[str]]]:
        """Headings, each with the last lines of something."""

    def write(self, directory: Path) -> None:
        """Everything, as files."""


class MachineWitness:
    """Of one machine: its faults, its console, and what passed its card."""

    def __init__(self, pc: Pc, pcap: Path | None) -> None:
        self.armed: list[ArmedFault] = []
        self._pc, self._pcap = pc, pcap

    def tail(self) -> list[tuple[str, list[str]]]:
        happened = [
            f"{each.ns / 1e9:.9f} s at {each.address:#x}: {each.changed or each.failed}"
            for armed in self.armed
            for each in armed.happened
        ]
        said = [("what the faults did", happened)] if self.armed else []
        return [*said, (f"console at {self._pc.now_s:.6f} s", _last_lines(self._pc.console))]

    def write(self, directory: Path) -> None:
        (directory / "console.txt").write_text(self._pc.console)
        if self._pcap is not None:
            (directory / "net0.pcap").write_bytes(self._pcap.read_bytes())


class WorldWitness:
    """Of a world: its log, the console of each node, and what passed the switch."""

    def __init__(self, world: World, frames: Iterable[Frame]) -> None:
        self._world, self._frames = world, frames
        self._lines: deque[Line] = deque(maxlen=LINES_KEPT)
        world.log.sinks.append(self._lines.append)

    def tail(self) -> list[tuple[str, list[str]]]:
        said = [("last events", [str(line) for line in list(self._lines)[-EVENT_LINES:]])]
        said += [
            (f"console of {name}", _last_lines(node.console))
            for name, node in self._world.nodes.items()
            if node.console
        ]
        return [*said, ("digest", [self._world.digest_line])]

    def write(self, directory: Path) -> None:
        from colo.campaign.world_replay import write_timeline

        (directory / "events.log").write_text("".join(f"{line}\n" for line in self._lines))
        write_timeline(directory / "timeline.json", self._lines)
        _write_pcap(directory / "switch.pcap", self._frames)
        for name, node in self._world.nodes.items():
            (directory / f"console-{name}.txt").write_text(node.console)


def _write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    now_ns = 0
    capture = PcapTap(Nowhere(), str(path), lambda: now_ns)
    for at_ns, frame in frames:
        now_ns = at_ns
        capture.transmit(frame)
    capture.close()


class HistoryWitness:
    """Of what clients asked and were told."""

    def __init__(self, history: History) -> None:
        self._history = history

    def tail(self) -> list[tuple[str, list[str]]]:
        events = self._history.events
        return [
            (
                f"what clients heard, of {len(events)} events",
                [self._history.line(each) for each in events[-CONSOLE_LINES:]],
            )
        ]

    def write(self, directory: Path) -> None:
        self._history.write(directory / "history.jsonl")


def _last_lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r", "").splitlines()]
    return [line for line in lines if line][-CONSOLE_LINES:]


@contextmanager
def machine(asked: Asked, trial: Trial, scratch: Path, witnesses: list[Witness]) -> Iterator[Pc]:
    """The test's own copy of a booted guest: ready, and a Linux at its shell's prompt."""
    import vmm.guest
    from colo.sim.image import Image

    if not asked.guest:
        raise ColoError('the fixture machine needs a guest: @pytest.mark.colo(guest="linux")')
    info = vmm.guest.open(asked.guest).info
    with _buildable():
        path = booted.snapshot(asked.guest, asked.ram_mib, asked.append)
    pcap = scratch / "net0.pcap" if "net" in info.devices else None
    options = LaunchOptions(
        guest=asked.guest,
        load=str(path),
        append=asked.append,
        pcaps=() if pcap is None else (str(pcap),),
        paced=False,
    )
    launched = Image(asked.guest, options).launch((), lambda number, backend: backend, None)
    with Pc(launched.machine, launched.close) as pc:
        witness = MachineWitness(pc, pcap)
        witnesses.append(witness)
        if info.kind == "linux":
            pc.expect(PROMPT, PROMPT_WITHIN_S)
        witness.armed += _armed(pc, trial)
        yield pc


def _armed(pc: Pc, trial: Trial) -> list[ArmedFault]:
    """The trial's faults, waiting in the machine for their triggers."""
    from colo.faults import guest

    return [
        guest.arm(pc.machine, fault, source=random.Random(f"{trial.seed} fault {number}"))
        for number, fault in enumerate(trial.faults)
    ]


@contextmanager
def world(trial: Trial, witnesses: list[Witness]) -> Iterator[World]:
    """An empty world with the run's seed."""
    from colo.sim.world import World

    with World(trial.seed) as made:
        frames: deque[Frame] = deque(maxlen=FRAMES_KEPT)
        at_switch(made, lambda at_ns, who, frame: frames.append((at_ns, frame)))
        witnesses.append(WorldWitness(made, frames))
        yield made


def at_switch(made: World, told: Callable[[int, str, bytes], None]) -> None:
    """Tell of every frame that comes to the switch of ``made``: when, who sent it, and the frame.

    Each is told once, when it has passed its sender's cable; one that is lost there is not.
    """
    from colo.sim.impair import FROM

    def carried(who: str, what: str, frame: bytes) -> None:
        sender, _, direction = who.rpartition(".")
        if (direction, what) == (FROM, "carries"):
            told(made.now_ns, sender, frame)

    made.on_frame.append(carried)


def pair(asked: Asked, trial: Trial, made: World) -> SimPair:
    """A protected pair in ``made``, from now on under the trial's faults."""
    from colo.sim.image import Image

    if not asked.guest:
        raise ColoError('the fixture pair needs a guest: @pytest.mark.colo(guest="redis", policy="colo")')
    with _buildable(), booted.turn(asked.guest):
        image = Image.of(asked.guest, ram_mib=asked.ram_mib, append=asked.append)
    found = made.pair(image, asked.policy)
    made.run_until(lambda: found.is_protected, PROTECTED_WITHIN_S)
    made.inject(*trial.faults)
    return found


@contextmanager
def _buildable() -> Iterator[None]:
    try:
        yield
    except GuestBuildError as exc:
        raise NoGuest(str(exc)) from exc
