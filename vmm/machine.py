"""The machine: a PC whose memory map is on this page, and its life.

The chips and their wires are in :mod:`vmm.board`; how the machine runs is in :mod:`vmm.runloop`, how it
is saved, loaded and compared in :mod:`vmm.saving`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vmm import media, saving
from vmm.attached import Backends
from vmm.backends.console import Capture
from vmm.board import Board, Outcomes
from vmm.boot import acpi, bios_rom
from vmm.boot.source import BootSource
from vmm.bus import Bus
from vmm.clock import NEVER_NS
from vmm.config import PcConfig
from vmm.cpu import control
from vmm.cpu.cpu import Cpu
from vmm.cpu.engine import Costs, describe
from vmm.devices.acpi_pm import SPAN as ACPI_PM_SPAN
from vmm.devices.block import BlockBackend
from vmm.inject import PORT as INJECT_PORT
from vmm.inject import Injector
from vmm.inputs import Door
from vmm.pace import Pacer
from vmm.ports import NetPort, SerialPort
from vmm.ram import Ram
from vmm.runloop import RESETS_MAX, Ended, RunLoop
from vmm.saving import resume
from vmm.snapshot import About, Progress, Snapshot
from vmm.state import State
from vmm.stops import Stops

__all__ = ["MEMORY_MAP", "PORT_MAP", "RESETS_MAX", "Backends", "BlockBackend", "Ended", "Machine", "resume"]

Range = tuple[int, int, str | None, str]

PORT_MAP: tuple[Range, ...] = (
    # base, size, chip or its face (None: known and absent), what
    (0x0000, 0x20, None, "8237 DMA, not fitted"),
    (0x0020, 2, "pic.master", "8259A master, IRQ 0-7"),
    (0x0040, 4, "pit", "8254 timer, IRQ 0"),
    (0x0060, 1, "keyboard", "8042 data, IRQ 1"),
    (0x0061, 1, "port61", "speaker, timer 2, refresh"),
    (0x0064, 1, "keyboard.command", "8042 command and status"),
    (0x0070, 2, "rtc", "MC146818 RTC and CMOS, IRQ 8"),
    (0x0080, 0x10, None, "POST code, DMA pages: written as a delay, nobody listens"),
    (0x0092, 1, "port92", "system control A: fast A20 and reset"),
    (0x00A0, 2, "pic.slave", "8259A slave, IRQ 8-15"),
    (0x00C0, 0x20, None, "second 8237 DMA, not fitted"),
    (bios_rom.CALL_PORT, 1, "bios", "BIOS services, from its ROM only; boot sectors have it"),
    (0x00ED, 1, None, "I/O delay of some kernels"),
    (0x00F0, 2, None, "x87 error: native reporting only"),
    (0x00F4, 1, "debug-exit", "ISA debug exit"),
    (0x0170, 8, "ide1.command", "second IDE channel, IRQ 15"),
    (0x01F0, 8, "ide0.command", "first IDE channel, IRQ 14"),
    (0x0278, 3, None, "LPT2, not fitted"),
    (0x02E8, 8, None, "COM4, not fitted"),
    (0x02F8, 8, None, "COM2, not fitted"),
    (0x0376, 1, "ide1.control", "second IDE channel, control"),
    (0x0378, 3, None, "LPT1, not fitted"),
    (0x03B0, 0x10, None, "monochrome adapter, not fitted"),
    (0x03C0, 0x20, "vga", "VGA registers (text mode)"),
    (0x03E8, 8, None, "COM3, not fitted"),
    (0x03F0, 6, None, "diskette controller, not fitted"),
    (0x03F6, 1, "ide0.control", "first IDE channel, control"),
    (0x03F8, 8, "com1", "16550A COM1, IRQ 4"),
    (0x04D0, 2, "pic.elcr", "edge/level control of the 8259As"),
    (0x0510, 2, "fw-cfg", "firmware configuration"),
    (acpi.PM_BASE, ACPI_PM_SPAN, "acpi-pm", "ACPI PM1a and timer, IRQ 9"),
    (0x0CF8, 8, "pci", "PCI configuration, and reset control at 0xCF9"),
    # 0xC000-0xFFFF: PCI I/O window, virtio notification registers
)
MEMORY_MAP: tuple[Range, ...] = (
    # 0x000A_0000-0x000B_FFFF: RAM, of which 0xB_8000 is shown as VGA text
    # 0x000E_0000-0x000E_FFFF: RAM with ACPI tables
    # 0x000F_0000-0x000F_FFFF: RAM with MP tables, and the BIOS of boot sectors
    # 0x0010_0000-0xBFFF_FFFF: RAM; what exceeds 3 GiB continues at 0x1_0000_0000
    # 0xE000_0000-0xFEBF_FFFF: PCI memory window
    (0xFEC0_0000, 0x1000, "ioapic", "82093AA I/O APIC"),
    (0xFEE0_0000, 0x1000, "lapic", "local APIC; messages (MSI) do not go through the map"),
)


class Machine:
    """One PC.

    ``config`` says what the guest sees, ``backends`` what is behind it on the host.  ``boot``
    is what a reset loads.  A machine is powered on when it has been made.
    """

    def __init__(
        self,
        config: PcConfig,
        boot: BootSource | None = None,
        backends: Backends | None = None,
        *,
        paced: bool = False,
        ram: Ram | None = None,
        patching: bool = True,
    ) -> None:
        config.check()
        self.config = config
        self.boot = boot
        self.restart_on_reset = True
        self.exit_code: int | None = None
        self.attached = (backends or Backends()).fitted(config)
        self.ram = ram or Ram(config.ram_mib)
        costs = config.costs
        self.cpu = Cpu(
            self.ram, Costs(costs.instruction, costs.access, costs.pause, costs.tsc), patching=patching
        )
        self.clock = self.cpu.clock
        self.pacer = Pacer(paced)
        self.door = Door(lambda: self.clock.now_ns)
        self._loop = RunLoop(self)
        self._build()
        if ram is None:
            try:
                self.power_on()
            except BaseException:  # an image that does not load
                self.close()
                raise

    # Building

    def _build(self) -> None:
        """Board, map, and the host's ends of its sockets."""
        self.ports, self.mmio = Bus("ports"), Bus("memory map")
        outcomes = Outcomes(self.want_reset, lambda: self._end(Ended.POWEROFF), self._debug_exit)
        self.board = Board(self.config, self.cpu, self.ram, (self.ports, self.mmio), self.attached, outcomes)
        self.devices = self.board.chips
        self.console = Capture()
        self.serial = SerialPort("com1", self.door, self.clock)
        self.serial.consoles = [self.console, *self.attached.consoles]
        self.board.attach_serial(self.serial)
        self._claim(self.ports, PORT_MAP)
        self._claim(self.mmio, MEMORY_MAP)
        self.nets = [
            NetPort(f"net{n}", backend, self.door, self.cpu.request_stop)
            for n, backend in enumerate(self.attached.nets)
        ]
        self.board.plug_pci(self.nets)
        self.cpu.attach(self.board.questions())
        self.cpu.hear(self._loop.hear)
        self._open_doors()
        self._loop.listen_to_attached()

    def _claim(self, bus: Bus, ranges: tuple[Range, ...]) -> None:
        for base, size, face, what in ranges:
            if face is None:
                bus.claim(base, size, None, what)
                continue
            name, _, attribute = face.partition(".")
            chip = self.devices.get(name)
            bus.claim(base, size, getattr(chip, attribute) if attribute else chip, what)

    def _open_doors(self) -> None:
        """What may enter a machine, besides the frames and bytes of its sockets."""
        for port, act in (
            ("keyboard", self.devices["keyboard"].press),
            ("nmi", lambda _: self.cpu.raise_nmi()),
            ("reset", lambda _: self._loop.reset()),
            ("power-button", lambda _: self.devices["acpi-pm"].press_power_button()),
            ("announce", lambda _: self._announce()),
            ("snapshot", lambda _: self.cpu.flush_tlb()),
            (INJECT_PORT, lambda payload: self.injector.take(payload)),
        ):

            def deliver(payload: bytes, act: Any = act) -> int:
                act(payload)
                return len(payload)

            self.door.open(port, deliver)

    def _announce(self) -> None:
        """Every card asks its driver to tell the network where it is now."""
        for port in self.nets:
            assert port.card is not None
            port.card.announce()

    # Life

    def power_on(self) -> None:
        """Cold start: empty RAM, every device as at power-on, the boot image loaded again."""
        self.forget_host_side()
        self.ram.clear()
        self.reset()

    def reset(self) -> None:
        """What a PC's reset and its firmware do; RAM keeps what the boot image does not replace."""
        self.cpu.reset()
        self.board.reset()
        if self.boot is not None:
            self.cpu.enter(self.boot.load(self.ram))

    def forget_host_side(self) -> None:
        """The guest was replaced: nothing that was meant for the old one may reach the new one."""
        self._loop.reset_wanted, self.exit_code = False, None
        self.serial.restart()
        for port in self.nets:
            port.rx_ready = True

    def want_reset(self) -> None:
        """A chip pulled the reset line: done between two blocks."""
        self._loop.reset_wanted = True
        self.cpu.request_stop()

    def _debug_exit(self, code: int) -> None:
        self.exit_code = code
        self._end(Ended.DEBUG_EXIT)

    def after_fork(self) -> None:
        """To be called first by a child of ``os.fork()`` that runs this machine on, beside its parent.

        RAM and translated code are copy-on-write.  Back ends are still shared: those that read or write
        something on the host must be nobody's any more, or the child's alone.
        """
        self.pacer.after_fork()

    def close(self) -> None:
        """Give back the engine and the descriptors; back ends belong to who opened them."""
        self.cpu.close()
        self.pacer.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Running

    def run(self, until_ns: int = NEVER_NS) -> Ended:
        """Run the guest until virtual ``until_ns`` or until something of :class:`Ended` happens.

        It returns between two blocks, with nothing left undone that was due: what is saved there is
        whole.  A stop that was asked for before the run began ends it at once.
        """
        return self._loop.run(until_ns)

    def stop(self) -> None:
        """Make run() return soon; safe from any thread and from signal handlers."""
        self._loop.ended = self._loop.ended or Ended.REQUEST
        self.cpu.request_stop_later()
        self.pacer.wake()

    def pause(self) -> None:
        """Make run() return before the next block.  For the machine's own thread (devices, watchers)."""
        self._end(Ended.PAUSED)

    def _end(self, reason: Ended) -> None:
        self._loop.end(reason)
        self.cpu.request_stop()

    def listen(self, wanted: bool) -> None:
        """Whether what is attached may bring input; what enters through the door enters anyway."""
        self._loop.listen(wanted)

    @cached_property
    def stops(self) -> Stops:
        """Exact places in the program at which to stop or to act."""
        return Stops(self)

    @cached_property
    def injector(self) -> Injector:
        """Faults of the processor, of RAM, of the clock and of interrupts."""
        return Injector(self)

    @property
    def loop(self) -> RunLoop:
        """For what is part of running: exact stops and injection."""
        return self._loop

    def call(self, descriptor: int, act: Callable[[], None] | None) -> None:
        """While it runs, ``act`` between two blocks whenever ``descriptor`` has input; None: no longer."""
        self._loop.call(descriptor, act)

    def arrived(self, descriptor: int) -> None:
        """Between two runs: input for :meth:`call` that no kernel knows of, such as a simulated world's."""
        self._loop.arrived(descriptor)

    def watch(self, watch: Callable[[bool], None] | None) -> None:
        """While it runs, ``watch`` between two blocks, with whether the guest waits; it enters no inputs."""
        self._loop.watch = watch

    def expect_nothing_from(self, descriptor: int) -> None:
        """This end of the host will bring no more input: nobody need wait for it."""
        self._loop.expect_nothing_from(descriptor)

    def counters(self) -> dict[str, int]:
        """What the engine's callbacks counted since this machine was made; no part of its state."""
        return {name[2:].lower(): self.cpu.block[name] for name in control.NAMES if name.startswith("N_")}

    # State (vmm.saving)

    @property
    def components(self) -> dict[str, Any]:
        """Everything with state, in the order in which it is saved: the processor, then the chips."""
        return {"cpu": self.cpu, **self.devices}

    @property
    def disks(self) -> list[BlockBackend]:
        """What is behind the configuration's disks, in order."""
        return list(self.attached.disks)

    @property
    def layout_digest(self) -> str:
        return saving.layout(self)

    @property
    def engine_digest(self) -> str:
        return describe()

    def states(self) -> dict[str, State]:
        return saving.states(self)

    def sections(self) -> dict[str, bytes]:
        """Every component's packed state."""
        return saving.sections(self)

    def state_hash(self) -> bytes:
        """Digest of all that the guest can notice: processor, devices, RAM."""
        return saving.state_hash(self)

    @property
    def digest(self) -> str:
        """:meth:`state_hash` as text."""
        return self.state_hash().hex()

    def about(self) -> About:
        return saving.about(self)

    def save(self, path: Path | str, progress: Progress | None = None) -> None:
        """Write a snapshot file.  The machine goes on as the loaded one would."""
        self.stops.require_boundary()
        saving.save(self, path, progress)

    def hold(self) -> Snapshot:
        """A snapshot in memory: :func:`resume` it as often as wanted."""
        self.stops.require_boundary()
        return saving.hold(self)

    def everything(self) -> dict[str, bytes]:
        """All but RAM: every component's packed state, and what copy-on-write disks hold."""
        return saving.everything(self)

    def everything_unchecked(self) -> dict[str, bytes]:
        """:meth:`everything` in a hurry: for a machine that will check it before it loads it."""
        return saving.everything_unchecked(self)

    def check_sections(self, saved: Mapping[str, bytes]) -> None:
        """StateError, naming the field, when this is not the whole state of such a machine."""
        components, changes = media.split(saved)
        saving.unpacked(self, components)
        media.check(self.attached.disks, changes)

    def load_sections(
        self, saved: Mapping[str, bytes], changed: npt.NDArray[np.uint32] | None = None
    ) -> None:
        """Replace every component's state: all are unpacked before any is touched.

        ``changed``: which pages of RAM were changed before; None: any may have been.
        """
        saving.load_sections(self, saved, changed)

    def section_differences(self, left: Mapping[str, bytes], right: Mapping[str, bytes]) -> list[str]:
        """Where two packed states of such a machine differ: device fields and registers."""
        return saving.compare_sections(self, left, right)

    def differences(self, other: Machine) -> list[str]:
        """Where two machines differ: device fields, registers, pages."""
        return saving.compare(self, other)
