"""The machine: a PC board, wired on one page, and its life (power, run, save, load, fork).

:func:`_wire` reads as the memory map: every range, every line, and what is known to be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from vmm import hashing, media, snapshot
from vmm.backends.console import Capture, Console
from vmm.backends.net import NetBackend, Nowhere
from vmm.boot import acpi, bios_rom, mptable
from vmm.boot.bios import Bios
from vmm.boot.source import BootSource
from vmm.bus import Bus
from vmm.clock import NEVER_NS
from vmm.compare import Side, differences
from vmm.config import PcConfig
from vmm.cpu import control, cpuid, layout, msr_table
from vmm.cpu.cpu import Board, Cpu, Stop
from vmm.cpu.engine import Costs, describe
from vmm.cpu.register_file import RegisterFile
from vmm.devices.acpi_pm import SPAN as ACPI_PM_SPAN
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.block import BlockBackend
from vmm.devices.debug_exit import DebugExit
from vmm.devices.fwcfg import FwCfg
from vmm.devices.i8042 import I8042
from vmm.devices.ide import IdeChannel
from vmm.devices.ioapic import IoApic
from vmm.devices.lapic import Lapic
from vmm.devices.pci import INTA_IRQS, PciHost
from vmm.devices.pci_function import PciFunction
from vmm.devices.pic import Pic
from vmm.devices.pit import Pit
from vmm.devices.rtc import Rtc
from vmm.devices.sysctl import ResetControl, SystemControlA, SystemControlB
from vmm.devices.uart import Uart
from vmm.devices.vga import Vga
from vmm.devices.virtio_blk import VirtioBlk
from vmm.devices.virtio_net import VirtioNet
from vmm.devices.virtio_rng import VirtioRng
from vmm.errors import ConfigError, StateError
from vmm.inputs import Door
from vmm.pace import Pacer
from vmm.ports import NetPort, SerialPort
from vmm.ram import MIB, Ram
from vmm.snapshot import About, Progress, Snapshot
from vmm.state import State, layout_digest, pack, unpack
from vmm.wiring import Fan, Gate, WiredOr

ELCR_LEVEL = sum(1 << (irq - 8) for irq in (acpi.SCI_IRQ, *INTA_IRQS))
"""Firmware's setting of the second edge/level register: PCI interrupts and the SCI are levels."""
RESETS_MAX = 100
"""Resets within one run after which a machine that only resets itself is given up."""


class Ended(Enum):
    """Why :meth:`Machine.run` returned."""

    TIME = "time"
    """The virtual time that was asked for."""
    DEBUG_EXIT = "debug-exit"
    POWEROFF = "poweroff"
    """The guest entered S5 (soft off), or halted with interrupts disabled: it will not run again."""
    RESET = "reset"
    """The guest asked for a reset (or shut down by a triple fault) and resets were not wanted."""
    REQUEST = "request"
    """Somebody called :meth:`Machine.stop`."""
    PAUSED = "paused"
    """Something that watches the guest called :meth:`Machine.pause`."""
    IDLE = "idle"
    """The guest waits for something that cannot come: no alarm, no input."""


@dataclass
class Backends:
    """The host side of a configuration: one entry per card and per disk, in order."""

    nets: Sequence[NetBackend] = ()
    disks: Sequence[BlockBackend] = ()
    consoles: Sequence[Console] = field(default_factory=list)


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
        self._backends = _checked(config, backends or Backends())
        self._ended: Ended | None = None
        self._ready: set[int] = set()
        self._reset_wanted = False
        self._resets = 0
        self.ram = ram or Ram(config.ram_mib)
        costs = config.costs
        self.cpu = Cpu(
            self.ram,
            Costs(costs.instruction, costs.access, costs.pause, costs.tsc),
            patching=patching,
        )
        self.clock = self.cpu.clock
        self.pacer = Pacer(paced)
        self.door = Door(lambda: self.clock.now_ns)
        self.ports, self.mmio = Bus("ports"), Bus("memory map")
        self.devices: dict[str, Any] = {}
        self._pci_lines: list[WiredOr] = []
        self.console = Capture()
        self.serial = SerialPort("com1", self.door, self.clock)
        self.serial.consoles = [self.console, *self._backends.consoles]
        self.nets = [
            NetPort(f"net{n}", backend, self.door, self.cpu.request_stop)
            for n, backend in enumerate(self._backends.nets)
        ]
        self._wire()
        self._open_doors()
        if ram is None:
            try:
                self.power_on()
            except BaseException:  # an image that does not load
                self.close()
                raise

    def _wire(self) -> None:
        """The board."""
        add, ports, mmio, clock = self._add, self.ports, self.mmio, self.clock
        ioapic = IoApic(lambda vector, level, mode: lapic.deliver(vector, level, mode))
        lapic = Lapic(
            clock, self.cpu.interrupt_line, lambda: pic.acknowledge(), self.cpu.raise_nmi, ioapic.eoi
        )
        pic = Pic(lapic.lint0)
        add("lapic", lapic), add("ioapic", ioapic), add("pic", pic)
        irq = [Fan(pic.line(n), ioapic.line(2 if n == 0 else n)) for n in range(16)]
        a20 = Gate(("port 92", "keyboard"), self.cpu.set_a20)
        pit = add("pit", Pit(irq[0], clock))
        uart = add("com1", Uart(irq[4], self.serial.transmit))
        rtc = add("rtc", Rtc(irq[8], clock, self.config.epoch_s))
        keyboard = add("keyboard", I8042(irq[1], irq[12], self.want_reset, a20.wish("keyboard")))
        system_a = add("port92", SystemControlA(self.want_reset, a20.wish("port 92")))
        reset = add("reset", ResetControl(self.want_reset))
        ide = [add(f"ide{n}", channel) for n, channel in enumerate(self._ide(irq))]
        pci = add("pci", PciHost(ports, mmio, reset))
        vga = add("vga", Vga(self.ram))
        power = add("acpi-pm", AcpiPm(irq[acpi.SCI_IRQ], clock, lambda: self._end(Ended.POWEROFF)))
        #            base    size  device           what
        ports.claim(0x0000, 0x20, None, "8237 DMA, not fitted")
        ports.claim(0x0020, 2, pic.master, "8259A master, IRQ 0-7")
        ports.claim(0x0040, 4, pit, "8254 timer, IRQ 0")
        ports.claim(0x0060, 1, keyboard, "8042 data, IRQ 1")
        ports.claim(0x0061, 1, add("port61", SystemControlB(pit, clock)), "speaker, timer 2, refresh")
        ports.claim(0x0064, 1, keyboard.command, "8042 command and status")
        ports.claim(0x0070, 2, rtc, "MC146818 RTC and CMOS, IRQ 8")
        ports.claim(0x0080, 0x10, None, "POST code, DMA pages: written as a delay, nobody listens")
        ports.claim(0x0092, 1, system_a, "system control A: fast A20 and reset")
        ports.claim(0x00A0, 2, pic.slave, "8259A slave, IRQ 8-15")
        ports.claim(0x00C0, 0x20, None, "second 8237 DMA, not fitted")
        if self.config.bios:
            bios = Bios(RegisterFile(self.cpu), self.ram, ports, clock, self._bios_drives())
            ports.claim(bios_rom.CALL_PORT, 1, add("bios", bios), "BIOS services, from its ROM only")
        ports.claim(0x00ED, 1, None, "I/O delay of some kernels")
        ports.claim(0x00F0, 2, None, "x87 error: native reporting only")
        ports.claim(0x00F4, 1, add("debug-exit", DebugExit(self._debug_exit)), "ISA debug exit")
        ports.claim(0x0170, 8, ide[1].command, "second IDE channel, IRQ 15")
        ports.claim(0x01F0, 8, ide[0].command, "first IDE channel, IRQ 14")
        ports.claim(0x0278, 3, None, "LPT2, not fitted")
        ports.claim(0x02E8, 8, None, "COM4, not fitted")
        ports.claim(0x02F8, 8, None, "COM2, not fitted")
        ports.claim(0x0376, 1, ide[1].control, "second IDE channel, control")
        ports.claim(0x0378, 3, None, "LPT1, not fitted")
        ports.claim(0x03B0, 0x10, None, "monochrome adapter, not fitted")
        ports.claim(0x03C0, 0x20, vga, "VGA registers (text mode)")
        ports.claim(0x03E8, 8, None, "COM3, not fitted")
        ports.claim(0x03F0, 6, None, "diskette controller, not fitted")
        ports.claim(0x03F6, 1, ide[0].control, "first IDE channel, control")
        ports.claim(0x03F8, 8, uart, "16550A COM1, IRQ 4")
        ports.claim(0x04D0, 2, pic.elcr, "edge/level control of the 8259As")
        ports.claim(0x0510, 2, add("fw-cfg", FwCfg(self.ram.size, 1)), "firmware configuration")
        ports.claim(acpi.PM_BASE, ACPI_PM_SPAN, power, "ACPI PM1a and timer, IRQ 9")
        ports.claim(0x0CF8, 8, pci, "PCI configuration, and reset control at 0xCF9")
        #   0xC000-0xFFFF                     PCI I/O window: virtio notification registers
        mmio.claim(0xFEC0_0000, 0x1000, ioapic, "82093AA I/O APIC")
        mmio.claim(0xFEE0_0000, 0x1000, lapic, "local APIC, MSI")
        #   0xE000_0000-0xFEBF_FFFF           PCI memory window
        #   0xA_0000-0xB_FFFF                 RAM, of which 0xB_8000 is shown as VGA text
        #   0xE_0000-0xE_FFFF                 RAM with ACPI tables
        #   0xF_0000-0xF_FFFF                 RAM with MP tables, and the BIOS of boot sectors
        self._plug_pci(pci, irq)
        self.serial.uart = uart
        self.cpu.attach(self._board(pic, lapic))

    def _plug_pci(self, pci: PciHost, irq: Sequence[Fan]) -> None:
        """Slots in order: cards, disks, the random number generator."""
        self._pci_lines = [WiredOr(irq[number]) for number in INTA_IRQS]
        slot = 1

        def plug(name: str, make: Callable[[Any, Callable[[int, int], None]], PciFunction]) -> PciFunction:
            nonlocal slot
            line = self._pci_lines[slot % len(INTA_IRQS)].input()
            function = make(line, self._message)
            pci.plug(slot, self._add(name, function))
            slot += 1
            return function

        for net, port in zip(self.config.nets, self.nets, strict=True):
            card = plug(
                port.port,
                lambda line, msi, net=net, port=port: VirtioNet(  # type: ignore[misc]
                    net.mac, port.transmit, self.ram, line, msi, net.offloads, port.posted
                ),
            )
            assert isinstance(card, VirtioNet)
            port.card = card
        for number, (disk, medium) in enumerate(self._disks(ide=False)):
            plug(
                f"disk{number}",
                lambda line, msi, disk=disk, medium=medium: VirtioBlk(  # type: ignore[misc]
                    medium, self.ram, line, msi, disk.serial
                ),
            )
        plug("rng", lambda line, msi: VirtioRng(self.config.seed, self.ram, line, msi))
        self._slots = slot

    def _ide(self, irq: Sequence[Fan]) -> list[IdeChannel]:
        media: list[BlockBackend | None] = [medium for _, medium in self._disks(ide=True)]
        media += [None] * (4 - len(media))
        return [
            IdeChannel(irq[14], (media[0], media[1])),
            IdeChannel(irq[15], (media[2], media[3]), number=2),
        ]

    def _disks(self, ide: bool) -> list[tuple[Any, BlockBackend]]:
        pairs = zip(self.config.disks, self._backends.disks, strict=True)
        return [(disk, medium) for disk, medium in pairs if disk.ide == ide]

    def _bios_drives(self) -> Mapping[int, BlockBackend]:
        ordered = [medium for _, medium in self._disks(ide=True) + self._disks(ide=False)]
        return {0x80 + number: medium for number, medium in enumerate(ordered)}

    def _board(self, pic: Pic, lapic: Lapic) -> Board:
        offset = self.cpu.read_tsc_offset

        def read_msr(register: int) -> int:
            if register == msr_table.IA32_APIC_BASE:
                return lapic.apic_base
            return lapic.tsc_deadline and lapic.tsc_deadline + offset()

        def write_msr(register: int, value: int) -> bool:
            if register == msr_table.IA32_APIC_BASE:
                return lapic.write_apic_base(value)
            lapic.write_tsc_deadline(value and max(value - offset(), 1))
            return True

        return Board(
            self.ports,
            self.mmio,
            acknowledge=lapic.acknowledge,
            read_msr=read_msr,
            write_msr=write_msr,
            read_tpr=lambda: lapic.tpr >> 4,
            write_tpr=lambda value: lapic.set_tpr(value << 4),
        )

    def _message(self, address: int, data: int) -> None:
        """An MSI write (SDM vol. 3 11.11): address 0xFEExxxxx, vector and mode in the data."""
        if address >> 20 == 0xFEE:
            self.devices["lapic"].deliver(data & 0xFF, bool(data & 0x8000), data >> 8 & 7)

    def _add(self, name: str, device: Any) -> Any:
        assert name not in self.devices, name
        self.devices[name] = device
        return device

    def _open_doors(self) -> None:
        keyboard: I8042 = self.devices["keyboard"]

        def press(scancodes: bytes) -> int:
            keyboard.press(scancodes)
            return len(scancodes)

        def nmi(payload: bytes) -> int:
            self.cpu.raise_nmi()
            return len(payload)

        def power_button(payload: bytes) -> int:
            self.devices["acpi-pm"].press_power_button()
            return len(payload)

        def forget_translations(payload: bytes) -> int:
            self.cpu.flush_tlb()
            return len(payload)

        self.door.open("keyboard", press)
        self.door.open("nmi", nmi)
        self.door.open("power-button", power_button)
        self.door.open("snapshot", forget_translations)
        self._sources: dict[int, tuple[str, Callable[[], None]]] = {}
        for console in self._backends.consoles:
            self._listen(console.fileno(), self.serial.port, partial(self.serial.pump, console))
        for port in self.nets:
            self._listen(port.backend.fileno(), port.port, port.pump)

    def _listen(self, descriptor: int, port: str, pump: Callable[[], None]) -> None:
        if descriptor >= 0:
            self._sources[descriptor] = (port, pump)
            self.pacer.watch(descriptor)

    def expect_nothing_from(self, descriptor: int) -> None:
        """This end of the host will bring no more input: nobody need wait for it."""
        self._sources.pop(descriptor, None)
        self.pacer.watch(descriptor, False)

    # Life

    def power_on(self) -> None:
        """Cold start: empty RAM, every device as at power-on, the boot image loaded again."""
        self._reset_wanted, self.exit_code = False, None
        self.ram.clear()
        self.reset()

    def reset(self) -> None:
        """What a PC's reset and its firmware do; RAM keeps what the boot image does not replace."""
        self.cpu.reset()
        for line in self._pci_lines:
            line.release()
        for device in self.devices.values():
            device.reset()
        self._firmware()
        if self.boot is not None:
            self.cpu.enter(self.boot.load(self.ram))

    def _firmware(self) -> None:
        """What POST leaves behind: virtual wire mode, BARs, CMOS, tables."""
        devices = self.devices
        devices["lapic"].virtual_wire()
        devices["pic"].elcr.write(1, 1, ELCR_LEVEL)
        devices["pci"].assign()
        devices["rtc"].set_memory_size(self.ram.size)
        Vga.blank(self.ram)
        if self.ram.size >= 2 * MIB:
            pci_irqs = [(slot, 0, INTA_IRQS[slot % len(INTA_IRQS)]) for slot in range(1, self._slots)]
            features = cpuid.FEATURE_WORDS[layout.FEATURE_1_EDX]
            mptable.place(self.ram, self.ram.size, pci_irqs, cpuid.SIGNATURE, features)
            acpi.place(self.ram, pci_irqs)
        if "bios" in devices:
            devices["bios"].install()

    def want_reset(self) -> None:
        """A chip pulled the reset line: done between two blocks."""
        self._reset_wanted = True
        self.cpu.request_stop()

    def _debug_exit(self, code: int) -> None:
        self.exit_code = code
        self._end(Ended.DEBUG_EXIT)

    def stop(self) -> None:
        """Make run() return soon; safe from any thread and from signal handlers."""
        self._ended = self._ended or Ended.REQUEST
        self.cpu.request_stop_later()
        self.pacer.wake()

    def pause(self) -> None:
        """Make run() return before the next block.  For the machine's own thread (devices, watchers)."""
        self._end(Ended.PAUSED)

    def _end(self, reason: Ended) -> None:
        """The guest's own end counts for more than that somebody wanted to look."""
        if self._ended is None or self._ended is Ended.PAUSED:
            self._ended = reason
        self.cpu.request_stop()

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
        self._resets = 0
        try:
            while True:
                self._serve()
                if self._ended is not None:
                    ended, self._ended = self._ended, None
                    return ended
                if self.clock.now_ns >= until_ns:
                    return Ended.TIME
                self._advance(until_ns)
        finally:
            self.serial.show()

    def _serve(self) -> None:
        """Between two blocks: alarms, resets, inputs, in this order.

        While the guest runs its inputs enter here and nowhere else, after all else that was due at
        that time, so a replay delivers them in the same place.
        """
        self.clock.fire_due()
        if self._reset_wanted:
            self._do_reset()
        if self.door.replayer is not None:
            self.door.replay_due(self.state_hash)
        self._take_inputs()
        self.serial.show()

    def _take_inputs(self) -> None:
        """What the host has, and what waited until its device has room."""
        ready, self._ready = self._ready, set()
        self.serial.retry()
        for port in self.nets:
            if port.rx_ready:
                port.rx_ready = False
                self.door.retry(port.port)
                port.pump()
        for descriptor in sorted(ready):
            self._sources[descriptor][1]()
        for descriptor, (name, _) in self._sources.items():
            self.pacer.watch(descriptor, not self.door.is_full(name))

    def _advance(self, until_ns: int) -> None:
        """Run to the next stop, or let a halted guest wait for its next alarm or input."""
        if self.devices["acpi-pm"].off:
            self._ended = Ended.POWEROFF
            return
        if self.exit_code is not None:
            self._ended = Ended.DEBUG_EXIT
            return
        limit = min(until_ns, self.door.next_ns)
        if self.cpu.halted and not self.cpu.can_take_interrupt:
            if self.cpu.is_dead:
                self._ended = Ended.POWEROFF
                return
            self._rest(limit)
            return
        self.clock.set_limit(min(limit, self.pacer.limit_ns(self.clock.now_ns)))
        self.cpu.poll(self.pacer.descriptor)
        stop = self.cpu.run()
        if stop is Stop.HOST_INPUT:
            self._ready = self.pacer.ready()
        elif stop is Stop.SHUTDOWN:
            self._reset_wanted = True
        elif stop is Stop.DEADLINE and self.pacer.paced:
            self._hold_back()

    def _rest(self, limit_ns: int) -> None:
        deadline = min(self.clock.next_deadline_ns, limit_ns)
        if deadline == NEVER_NS and not self.pacer.can_wake:
            self._ended = Ended.IDLE
            return
        reached, self._ready = self.pacer.rest(self.clock.now_ns, deadline)
        self.clock.jump(reached)

    def _hold_back(self) -> None:
        """A paced guest that is ahead of the wall waits for it."""
        now = self.clock.now_ns
        ahead = now - self.pacer.wall_ns(now)
        if ahead > 0:
            self._ready = self.pacer.ready(ahead)

    def _do_reset(self) -> None:
        """Start again, or end; a machine that ended so stays reset until it is switched on."""
        self._resets += 1
        if not self.restart_on_reset or self.boot is None or self._resets > RESETS_MAX:
            self._ended = Ended.RESET
            return
        self.power_on()

    # State

    @property
    def components(self) -> dict[str, Any]:
        """Everything with state, in the order in which it is saved: the processor, then the chips."""
        return {"cpu": self.cpu, **self.devices}

    @property
    def disks(self) -> list[BlockBackend]:
        """What is behind the configuration's disks, in order."""
        return list(self._backends.disks)

    @property
    def layout_digest(self) -> str:
        return layout_digest({name: type(part.state) for name, part in self.components.items()})

    @property
    def engine_digest(self) -> str:
        return describe()

    def states(self) -> dict[str, State]:
        return {name: part.state for name, part in self.components.items()}

    def sections(self) -> dict[str, bytes]:
        """Every component's packed state."""
        return {name: pack(state) for name, state in self.states().items()}

    def state_hash(self) -> bytes:
        """Digest of all that the guest can notice: processor, devices, RAM."""
        return hashing.state_digest(self.sections(), hashing.ram_digest(self.ram.array))

    def about(self) -> About:
        return About(self.layout_digest, self.engine_digest, pack(self.config), self.clock.now_ns)

    def save(self, path: Path | str, progress: Progress | None = None) -> None:
        """Write a snapshot file.  The machine goes on as the loaded one would."""
        self.door.enter("snapshot", b"\0")
        snapshot.write(path, self.about(), self.sections() | self._media(), self.ram, progress)

    def hold(self) -> Snapshot:
        """A snapshot in memory: :func:`resume` it as often as wanted."""
        self.door.enter("snapshot", b"\0")
        return Snapshot.hold(self.about(), self.sections() | self._media(), self.ram)

    def _media(self) -> dict[str, bytes]:
        return media.export(self._backends.disks)

    def load_sections(self, sections: Mapping[str, bytes]) -> None:
        """Replace every component's state: all are unpacked before any is touched."""
        parts = self.components
        packed, changes = media.split(sections)
        if set(packed) != set(parts):
            raise StateError(f"components {sorted(set(packed) ^ set(parts))} are on one side only")
        states = {name: unpack(type(part.state), packed[name]) for name, part in parts.items()}
        media.load(self._backends.disks, changes)
        for line in self._pci_lines:
            line.release()
        for name, part in parts.items():
            part.state = states[name]
        for part in parts.values():
            part.restored()
        self._reset_wanted, self.exit_code = False, None
        self.serial.restart()
        for port in self.nets:
            port.rx_ready = True

    def counters(self) -> dict[str, int]:
        """What the engine's callbacks counted since this machine was made; no part of its state."""
        return {name[2:].lower(): self.cpu.block[name] for name in control.NAMES if name.startswith("N_")}

    def differences(self, other: Machine) -> list[str]:
        """Where two machines differ: device fields, registers, pages."""
        mine, theirs = Side(self.states(), self.ram.array), Side(other.states(), other.ram.array)
        return [str(difference) for difference in differences(mine, theirs)]

    @property
    def digest(self) -> str:
        """:meth:`state_hash` as text."""
        return self.state_hash().hex()


def resume(
    source: Snapshot | Path | str,
    backends: Backends | None = None,
    *,
    boot: BootSource | None = None,
    paced: bool = False,
    verify: bool = True,
) -> Machine:
    """A machine that goes on where the snapshot was taken; refused snapshots leave nothing behind.

    ``boot`` is what a reset of the resumed machine loads; without it a reset ends the run.
    """
    opened = source if isinstance(source, Snapshot) else Snapshot.open(source)
    try:
        config = unpack(PcConfig, opened.about.config)
        machine = Machine(config, boot, backends, paced=paced, ram=opened.ram(verify))
        try:
            opened.require(machine.layout_digest, machine.engine_digest, machine.ram.size)
            machine.load_sections(opened.sections)
        except BaseException:
            machine.close()
            raise
        return machine
    finally:
        if opened is not source:
            opened.close()


def _checked(config: PcConfig, backends: Backends) -> Backends:
    """Back ends that fit the configuration; cards without one are plugged into nothing."""
    nets = list(backends.nets) or [Nowhere() for _ in config.nets]
    if len(nets) != len(config.nets) or len(backends.disks) != len(config.disks):
        raise ConfigError(
            f"the configuration has {len(config.nets)} network cards and {len(config.disks)} disks,"
            f" {len(nets)} and {len(backends.disks)} back ends were given"
        )
    for net, backend in zip(config.nets, nets, strict=True):
        if net.offloads != backend.offloads and not isinstance(backend, Nowhere):
            raise ConfigError("a card and its back end do not agree on offloads (NetConfig.offloads)")
    for disk, medium in zip(config.disks, backends.disks, strict=True):
        if (disk.sectors, disk.read_only) != (medium.sectors, medium.read_only):
            raise ConfigError(
                f"a disk of {disk.sectors} sectors (read-only: {disk.read_only}) is configured,"
                f" its back end has {medium.sectors} (read-only: {medium.read_only})"
            )
    return Backends(nets, list(backends.disks), list(backends.consoles))
