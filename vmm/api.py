"""The Python interface: a PC that is started, talked to, looked into, copied and compared.

Thin on purpose: each method is a few calls of :class:`vmm.machine.Machine`, which is there as
``pc.machine`` for what is not here.  Every duration is in seconds of virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmm import recording
from vmm.addressing import Memory
from vmm.backends.disk import CopyOnWrite
from vmm.boot.source import BootSource
from vmm.cpu.register_file import RegisterFile
from vmm.devices.block import BlockBackend
from vmm.errors import ConfigError
from vmm.launch import LaunchOptions, launch
from vmm.machine import Backends, Ended, Machine
from vmm.machine import resume as resume_machine
from vmm.session import Session
from vmm.snapshot import Snapshot

_NS = 1_000_000_000


class Pc:
    """One PC and its console.  Use it in a ``with`` statement, or ``close`` it.

    ``expect``, ``send`` and ``command`` talk on COM1 (:class:`vmm.session.Session`).
    """

    def __init__(self, machine: Machine, close: Callable[[], None] | None = None) -> None:
        """``close`` gives back the machine and what belongs to it; without it, the machine alone."""
        self.machine = machine
        self._close = close or machine.close
        self._session = Session(machine)
        self.expect = self._session.expect
        self.send = self._session.send
        self.command = self._session.command

    # Running

    def run_for(self, seconds: float) -> Ended:
        """Run for so long, or until something of :class:`vmm.machine.Ended` comes first."""
        return self.machine.run(self.machine.clock.now_ns + round(seconds * _NS))

    def run_until(self, seconds: float) -> Ended:
        """Run until so long after power-on."""
        return self.machine.run(round(seconds * _NS))

    @property
    def now_s(self) -> float:
        """Virtual time since power-on; ``machine.clock.now_ns`` is exact."""
        return self.machine.clock.now_ns / _NS

    @property
    def console(self) -> str:
        """The last few MiB of what the guest said on COM1."""
        self.machine.serial.show()
        return self.machine.console.text

    @property
    def screen(self) -> list[str]:
        """The 25 lines that a monitor would show."""
        lines: list[str] = self.machine.devices["vga"].text()
        return lines

    @property
    def exit_code(self) -> int | None:
        """What the guest wrote to the debug exit port, as QEMU's exit status; None while it did not."""
        return self.machine.exit_code

    # Looking inside

    @property
    def registers(self) -> dict[str, int]:
        """General registers, rip, rflags, cr0 to cr4, efer and the segment selectors, by name."""
        return RegisterFile(self.machine.cpu).as_dict()

    def read_physical(self, address: int, length: int) -> bytes:
        """RAM at a physical address; BadAddress when that is not all RAM."""
        return self.machine.ram.read(address, length)

    def write_physical(self, address: int, data: bytes) -> None:
        """Change RAM, which is an input that no recording knows of."""
        self.machine.ram.write(address, data)

    def translate(self, address: int) -> int | None:
        """Physical address of a virtual (linear) one by the page tables as they are now, or None."""
        return self._memory.translate(address)

    def read_virtual(self, address: int, length: int) -> bytes:
        """Memory at a virtual address; BadAddress when a page of it is not mapped or not RAM."""
        return self._memory.read(self._memory.places(address, length, virtual=True))

    @property
    def _memory(self) -> Memory:
        return Memory(self.machine.cpu, self.machine.ram)

    # State

    @property
    def hash(self) -> str:
        """Digest of all that the guest can notice: processor, devices, RAM."""
        return self.machine.digest

    def differences(self, other: Pc) -> list[str]:
        """Where two PCs differ: device fields, registers, pages of RAM."""
        return self.machine.differences(other.machine)

    def snapshot(self) -> Snapshot:
        """The whole PC, in memory: ``vmm.resume`` it as often as wanted.  Close it when done."""
        return self.machine.hold()

    def save(self, path: Path | str) -> None:
        """The whole PC, in a file: ``vmm.load`` it, in any process."""
        self.machine.save(path)

    def fork(self) -> Pc:
        """A second PC that goes on from here.  Its network cards are plugged into nothing."""
        with self.snapshot() as held:
            copies = [_copy_of(disk) for disk in self.machine.disks]
            twin = resume_machine(held, Backends((), copies), boot=self.machine.boot)
        return Pc(twin, lambda: _close_all([twin, *copies]))

    # Recording

    def record(self, path: Path | str) -> None:
        """Log every input from here on, with its virtual time, until ``stop_recording``."""
        recording.start(self.machine, path)

    def stop_recording(self, reason: str = "finished") -> None:
        """End the log; nothing more is recorded."""
        recording.finish(self.machine, reason)

    def replay(self, path: Path | str) -> str:
        """Run a log to its end, on a PC made like the recorded one; why the recording ended.

        ReplayError says at which virtual time and how this PC departs from the log.
        """
        recording.follow(self.machine, path)
        return recording.run(self.machine)

    # Life

    def stop(self) -> None:
        """Make the run in progress return soon; safe from any thread and from signal handlers."""
        self.machine.stop()

    def close(self) -> None:
        """Give back everything that the PC holds on the host; twice is once."""
        self._close()

    def __enter__(self) -> Pc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    what: str | LaunchOptions, *, progress: Callable[[str], None] = lambda message: None, **options: Any
) -> Pc:
    """A PC that is switched on and has not run yet.

    ``what`` is a guest's name (``colo guest list``), which is built first if need be, telling
    ``progress``.  Options are those of :class:`vmm.launch.LaunchOptions`, which are those of
    ``colo run``: ``ram_mib=512``, ``append="quiet"``, ``nets=("tap=tap0",)``, ``disks=("disk.img,ro",)``.
    Images are started by ``vmm.start(vmm.LaunchOptions(kernel="bzImage", initrd="initrd.gz"))``.
    """
    asked = LaunchOptions(guest=what) if isinstance(what, str) else what
    launched = launch(replace(asked, **options), say=progress)
    return Pc(launched.machine, launched.close)


def load(path: Path | str, **options: Any) -> Pc:
    """A PC that goes on where ``save`` was called; options as for ``start``.

    A PC with disks needs the same images: what it had changed in overlays comes with the snapshot.
    ``guest="linux"`` names them, and what a reset loads; without it a reset ends the run.
    """
    return start(LaunchOptions(load=str(path)), **options)


def resume(snapshot: Snapshot, backends: Backends | None = None, boot: BootSource | None = None) -> Pc:
    """A PC that goes on where ``snapshot`` was taken, in this process."""
    return Pc(resume_machine(snapshot, backends, boot=boot))


def _close_all(things: Sequence[Machine | CopyOnWrite]) -> None:
    for each in things:
        each.close()


def _copy_of(disk: BlockBackend) -> CopyOnWrite:
    if isinstance(disk, CopyOnWrite):
        return disk.sibling()
    raise ConfigError("a PC whose disk is a file cannot fork: both would write it; use an overlay")
