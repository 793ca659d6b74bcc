"""Two machines from one snapshot, side by side as policy ``colo`` runs them.

    python -m tools.benchmarks.twins --load SNAPSHOT --tap NAME --out DIRECTORY

The primary serves the clients behind the TAP interface.  The secondary, a process of its own, is mute: it is
given the frames that the primary's card took, at the moment it took them, through a rewriter
(:mod:`colo.rewrite`).  A frame of the primary goes out when :mod:`colo.compare` finds that the secondary said
the same.  When it finds that the two differ a checkpoint is made: the secondary becomes what the primary is,
pages and devices, and what the primary said goes out.

Every frame that either says is written down with the wall's time, epoch by epoch.  Both run from "ready" on
standard output to the end of standard input; then each leaves a file in DIRECTORY.  A line on standard input
makes a checkpoint as well, answered by "cut", from which on it counts: before it, while code is translated
for the first time, nothing is written down and differences are passed over.

Not modelled: the cost of a checkpoint.  Both stand still while all of RAM is compared, and no epoch has that
time in it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from colo.filters.compared import ComparedOutput
from colo.rewrite.rewriter import Rewriter, Settings
from vmm.backends.net import FRAME_MAX, VNET_HEADER
from vmm.backends.tap import Tap
from vmm.machine import Backends, Ended, Machine, resume
from vmm.ram import PAGE_SIZE

PORT = "net0"
PRIMARY, SECONDARY = "primary", "secondary"
TICK_NS = 4_000_000
HERE, CUT = b"here", b"cut"
SECTIONS = "sections"
Pages = npt.NDArray[np.uint64]
Changed = npt.NDArray[np.uint32]
MESSAGE_MAX = FRAME_MAX + VNET_HEADER + 1


class Heard(msgspec.Struct, array_like=True, gc=False):
    """One frame that a guest said."""

    at_ns: int
    frame: bytes
    shown: bytes = b""
    """Of the secondary: as its rewriter left it; empty: the same."""


class Epoch(msgspec.Struct, array_like=True):
    """What one guest said between two checkpoints."""

    begin_ns: int
    end_ns: int
    heard: list[Heard]


class Passage:
    """Memory of both processes: RAM at the last checkpoint."""

    def __init__(self) -> None:
        self._file = os.memfd_create("twins-ram", os.MFD_CLOEXEC)

    def pages(self, machine: Machine) -> tuple[Pages, Pages]:
        """The passage, and the machine's RAM, a row a page."""
        ram = machine.ram.array
        os.ftruncate(self._file, ram.size)
        shared = np.frombuffer(mmap.mmap(self._file, ram.size), np.uint64)
        return shared.reshape(-1, PAGE_SIZE // 8), ram.view(np.uint64).reshape(-1, PAGE_SIZE // 8)


def copied(source: Pages, target: Pages) -> Changed:
    """Make ``target`` the same; which pages that changed."""
    changed = np.flatnonzero((source != target).any(axis=1)).astype(np.uint32)
    target[changed] = source[changed]
    return changed


class Link:
    """One end of the connection between the two processes; a message is a frame or a word of theirs."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._waiting: deque[bytes] = deque()
        self.ended = False

    def fileno(self) -> int:
        return self._end.fileno()

    def meet(self, word: bytes = b"") -> None:
        """Wait until both are here; one of them may have said ``word`` first.  Frames until then are void."""
        self._end.setblocking(True)
        while self._waiting:
            self._end.send(self._waiting.popleft())
        for each in filter(None, (word, HERE)):
            self._end.send(each)
        while (heard := self._end.recv(MESSAGE_MAX)) != HERE:
            if not heard:
                raise SystemExit("twins: the other process ended")
        self._end.setblocking(False)

    def send(self, frame: bytes) -> None:
        self._waiting.append(frame)
        self.flush()

    def flush(self) -> None:
        try:
            while self._waiting and not self.ended:
                self._end.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            return  # later, in order
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def receive(self) -> bytes | None:
        try:
            frame = self._end.recv(MESSAGE_MAX)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            frame = b""
        self.ended |= not frame
        return frame or None

    def close(self) -> None:
        self._end.close()


class Speaker:
    """A card's back end that brings nothing; what the guest says is somebody else's business."""

    offloads = True
    pending_output = False
    dropped = 0

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say

    def fileno(self) -> int:
        return -1

    def receive(self) -> bytes | None:
        return None

    def transmit(self, frame: bytes | memoryview) -> None:
        self._say(bytes(frame))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Served(Tap):
    """The clients' TAP interface, with somebody else before its way out."""

    __slots__ = ("say",)
    say: Callable[[bytes], None]

    def transmit(self, frame: bytes | memoryview) -> None:
        self.say(bytes(frame))


class Twin:
    """What both halves have in common."""

    def __init__(self, link: Link, machine: Machine, place: Place) -> None:
        self.epochs: list[Epoch] = []
        self.heard: list[Heard] = []
        self._counts = False
        self._passage, self._ram = place.passage.pages(machine)
        self._link = link
        self._machine = machine
        self._out = place.out
        self._over = False
        self._cut_wanted = False
        machine.watch(lambda _waits: link.flush())
        machine.call(link.fileno(), self._hear)

    def _hear(self) -> None:
        while not self._cut_wanted and (frame := self._link.receive()) is not None:
            self._take(frame)  # what is behind a cut belongs to what comes after it
        if self._link.ended:
            self._machine.call(self._link.fileno(), None)
            self.end()

    def _take(self, frame: bytes) -> None:
        raise NotImplementedError

    def end(self) -> None:
        self._over = True
        self._machine.pause()

    def run(self) -> None:
        machine = self._machine
        machine.pacer.start(machine.clock.now_ns)
        begin_ns = time.monotonic_ns()
        while not self._over:
            ended = machine.run(machine.clock.now_ns + TICK_NS)
            if ended not in (Ended.TIME, Ended.PAUSED):
                raise SystemExit(f"twins: a guest ended: {ended.value}")
            if self._cut_wanted:
                self._note(begin_ns)
                self._cut_wanted = False
                self._cut()
                self._counts = True
                machine.pacer.start(machine.clock.now_ns)
                begin_ns = time.monotonic_ns()
            self._between()
        self._note(begin_ns)

    def _note(self, begin_ns: int) -> None:
        """An epoch is over."""
        if self._counts:
            self.epochs.append(Epoch(begin_ns, time.monotonic_ns(), self.heard))
        self.heard = []

    def want_cut(self) -> None:
        self._cut_wanted = True
        self._machine.pause()

    def _cut(self) -> None:
        raise NotImplementedError

    def _between(self) -> None:
        """Every ``TICK_NS``, and when somebody paused the machine."""


class Primary(Twin):
    def __init__(self, link: Link, machine: Machine, place: Place, tap: Served) -> None:
        super().__init__(link, machine, place)
        self._tap = tap
        tap.say = self._say
        self._differs = self._asked = False
        self._gate = ComparedOutput(
            lambda _port, frame: Tap.transmit(tap, frame),
            self._diverged,
            lambda: time.monotonic_ns() / 1e6,
            {PORT: True},
        )
        self._gate.open([])
        machine.door.heard = self._mirror
        machine.call(sys.stdin.fileno(), self._told)

    def _told(self) -> None:
        if os.read(sys.stdin.fileno(), 1):
            self._asked = True
            self.want_cut()
        else:
            self._machine.call(sys.stdin.fileno(), None)
            self.end()

    def _cut(self) -> None:
        copied(self._ram, self._passage)
        (self._out / SECTIONS).write_bytes(msgspec.msgpack.encode(self._machine.everything()))
        self._release_all(lambda: self._link.meet(CUT))
        self._differs = False
        if self._asked:
            self._asked = False
            print("cut", flush=True)

    def _release_all(self, commit: Callable[[], None] = lambda: None) -> None:
        """A checkpoint, as far as the gate knows."""
        waiting = self._gate.cut()
        commit()
        for _, frame in waiting:
            Tap.transmit(self._tap, frame)
        self._gate.open([])

    def _mirror(self, port: str, payload: bytes) -> None:
        if port == PORT:
            self._link.send(payload)

    def _say(self, frame: bytes) -> None:
        self.heard.append(Heard(time.monotonic_ns(), frame))
        if not self._gate.offer(PORT, frame):
            Tap.transmit(self._tap, frame)

    def _take(self, frame: bytes) -> None:
        self._gate.heard(PORT, frame)

    def _diverged(self, _cause: str) -> None:
        self._differs = True
        self._machine.pause()

    def _between(self) -> None:
        self._gate.tick()
        if self._differs and self._counts:
            self.want_cut()
        elif self._differs:
            self._differs = False
            self._release_all()


class Secondary(Twin):
    def __init__(self, link: Link, machine: Machine, place: Place) -> None:
        super().__init__(link, machine, place)
        self._rewriter = Rewriter(Settings(vnet=True))

    def say(self, frame: bytes) -> None:
        now_ns = time.monotonic_ns()
        shown = self._rewriter.outward(frame, now_ns / 1e6)
        self.heard.append(Heard(now_ns, frame, b"" if shown is frame else shown))
        self._link.send(shown)

    def _take(self, frame: bytes) -> None:
        if frame == CUT:
            self.want_cut()
            return
        self._machine.door.enter(PORT, self._rewriter.inward(frame, time.monotonic_ns() / 1e6))

    def _cut(self) -> None:
        """Become what the primary is; code that was translated from pages that stay the same is kept."""
        machine = self._machine
        changed = copied(self._passage, self._ram)
        machine.door.forget()
        sections = msgspec.msgpack.decode((self._out / SECTIONS).read_bytes(), type=dict[str, bytes])
        machine.load_sections(sections, changed)
        self._rewriter.reset()
        self._link.meet()


class Place(NamedTuple):
    """Where the two leave things, for each other and for whoever started them."""

    out: Path
    passage: Passage


def primary(link: Link, snapshot: Path, place: Place, tap_name: str) -> list[Epoch]:
    tap = Served(tap_name)
    with resume(snapshot, Backends(nets=[tap]), paced=True) as machine:
        half = Primary(link, machine, place, tap)
        link.meet()
        print("ready", flush=True)
        half.run()
    return half.epochs


def secondary(link: Link, snapshot: Path, place: Place) -> list[Epoch]:
    half: Secondary
    speaker = Speaker(lambda frame: half.say(frame))
    with resume(snapshot, Backends(nets=[speaker]), paced=True) as machine:
        half = Secondary(link, machine, place)
        link.meet()
        half.run()
    return half.epochs


def main() -> int:
    parser = argparse.ArgumentParser(prog="twins")
    parser.add_argument("--load", type=Path, required=True)
    parser.add_argument("--tap", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = Place(given.out, Passage())
    child = os.fork()
    if not child:
        ours.close()
        epochs = secondary(Link(theirs), given.load, place)
        (given.out / SECONDARY).write_bytes(msgspec.msgpack.encode(epochs))
        return 0
    theirs.close()
    link = Link(ours)
    epochs = primary(link, given.load, place, given.tap)
    link.close()
    (given.out / PRIMARY).write_bytes(msgspec.msgpack.encode(epochs))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
