"""Two halves of a pair in one process: real machines in real guest threads, joined by queues."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from colo.errors import PeerLost
from colo.filters import FilteredNet, OutputHold
from colo.filters.console import HeldConsole
from colo.messages import Message
from colo.node.guest_thread import GuestThread
from colo.node.replica import Replica
from colo.node.standby_ram import StandbyRam
from colo.transport.companion import Companion
from colo.transport.frames import FrameSocket
from tests.filters.cables import Cable
from vmm.boot.source import BootSource, MultibootBoot
from vmm.config import DiskConfig, NetConfig, PcConfig, mac
from vmm.devices.block import BlockBackend
from vmm.guest import open as open_guest
from vmm.machine import Backends, Ended, Machine

LIMIT_S = 60.0
"""Of every wait: far more than anything here takes on a busy host."""
RAM_MIB = 16

BUSY = "spin: jmp spin"
NAP = "again: sti\nhlt\njmp again"
"""Asleep, with nothing that could come."""


def bare(name: str, command_line: str | None = None) -> MultibootBoot:
    """The boot image of a guest that comes with the package."""
    built = open_guest(name).build()
    return MultibootBoot(built.kernel.read_bytes(), built.cmdline if command_line is None else command_line)


class Ear:
    """A console that remembers what it heard, and at which a test types."""

    pending_output = False

    def __init__(self) -> None:
        self.heard = bytearray()
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK)

    def type(self, data: bytes) -> None:
        os.write(self._writing, data)

    def fileno(self) -> int:
        return self._reading

    def receive(self) -> bytes | None:
        try:
            return os.read(self._reading, 4096)
        except BlockingIOError:
            return None

    def write(self, data: bytes) -> None:
        self.heard += data

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class Node:
    """A machine with a card, a console and a guest thread, as ``colo.node.process`` puts them together."""

    def __init__(
        self,
        boot: BootSource,
        *,
        standing_by: bool = False,
        ram_mib: int = RAM_MIB,
        disks: Sequence[BlockBackend] = (),
        name: str = "node",
    ) -> None:
        self.cable, self.ear, self.hold = Cable(), Ear(), OutputHold()
        self.net = FilteredNet(self.cable, "net0", muted=standing_by)
        self.console = HeldConsole(self.ear, self.hold, muted=standing_by)
        self.standby = StandbyRam(ram_mib) if standing_by else None
        self.machine = Machine(
            PcConfig(
                ram_mib=ram_mib,
                bios=bool(disks),
                nets=[NetConfig(mac(0))],
                disks=[DiskConfig(disk.sectors, read_only=disk.read_only, ide=True) for disk in disks],
            ),
            boot,
            Backends(nets=[self.net], disks=list(disks), consoles=[self.console]),
            ram=None if self.standby is None else self.standby.ram,
        )
        self.ended: list[Ended] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.on: dict[str, Callable[[], None]] = {}
        """Called in the thread that reports the event of this name."""
        self.guest = GuestThread(self.machine, self.ended.append)
        if standing_by:
            self.guest.freeze()
        self.replica = self._replica(name)

    def _replica(self, name: str) -> Replica:
        return Replica(
            guest=self.guest,
            nets=[self.net],
            consoles=[self.console],
            hold=self.hold,
            pair="pair",
            node=name,
            generation=0,
            report=self._report,
            now_s=time.monotonic,
            standby=self.standby,
        )

    def _report(self, event: str, facts: dict[str, Any]) -> None:
        self.events.append((event, facts))
        if event in self.on:
            self.on[event]()

    def told(self, event: str) -> dict[str, Any]:
        """The facts of the one event of this name."""
        ((_, facts),) = [each for each in self.events if each[0] == event]
        return facts

    def events_of(self, event: str) -> list[dict[str, Any]]:
        return [facts for name, facts in self.events if name == event]

    def close(self) -> None:
        self.machine.close()
        self.net.close()
        self.console.close()


def thread_of(pc: Machine) -> GuestThread:
    return GuestThread(pc, lambda ended: None)


@contextmanager
def running(guest: GuestThread) -> Iterator[threading.Thread]:
    """``guest.run()`` in a thread of its own, until the block ends; what it raised comes out here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            guest.run()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=run, name="guest")
    thread.start()
    try:
        yield thread
    finally:
        guest.quit()
        guest.submit(lambda: None)  # which wakes it: quit() alone is for signal handlers
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "the guest's thread does not end"
    if raised:
        raise raised[0]


@contextmanager
def started(*nodes: Node) -> Iterator[None]:
    """Every node's guest thread runs; machines are closed at the end."""
    with ExitStack() as opened:
        for node in nodes:
            opened.callback(node.close)
        for node in nodes:
            opened.enter_context(running(node.guest))
        yield


def until(happened: Callable[[], object], what: str) -> None:
    """Returns when it has; other threads make it happen."""
    deadline = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while not happened():
        assert time.monotonic() < deadline, f"in {LIMIT_S:g} s not: {what}"
        pause.wait(0.001)


def moved(node: Node, by_ns: int) -> Callable[[], bool]:
    """Has the guest come so much further?"""
    goal_ns = node.machine.clock.now_ns + by_ns
    return lambda: node.machine.clock.now_ns >= goal_ns


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class End:
    """One end of a connection between two halves in one loop (:class:`colo.peer.Peer`)."""

    def __init__(self) -> None:
        self.peer: End | None = None
        self.sent: list[Message] = []
        self._arrived: asyncio.Queue[Message | None] = asyncio.Queue()
        self._shut = self._cut = False

    async def send(self, message: Message) -> None:
        assert self.peer is not None
        if self._cut:
            raise PeerLost("the connection was cut")
        self.sent.append(message)
        self.peer._arrived.put_nowait(message)
        await asyncio.sleep(0)

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def receive(self) -> Message:
        """What arrived before the other end closed still comes."""
        message = None if self._shut else await self._arrived.get()
        if message is None or self._shut:
            raise PeerLost("the connection was cut")
        return message

    def close(self, reason: str = "closed here") -> None:
        assert self.peer is not None
        self._shut = True
        for end in (self, self.peer):
            end._cut = True
            end._arrived.put_nowait(None)


def companions() -> tuple[Companion, Companion]:
    """The connection of two guest threads, over a Unix socket."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    one, other = (Companion(FrameSocket(end), lambda _: None) for end in ends)
    return one, other


def connection() -> tuple[End, End]:
    one, other = End(), End()
    one.peer, other.peer = other, one
    return one, other
