"""The chips of the PC and the wires between them; where they answer is in :mod:`vmm.machine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vmm.attached import Backends
from vmm.boot import acpi, mptable
from vmm.boot.bios import Bios
from vmm.bus import Bus
from vmm.config import DiskConfig, PcConfig
from vmm.cpu import cpuid, layout, msr_table
from vmm.cpu.cpu import Cpu, Questions
from vmm.cpu.register_file import RegisterFile
from vmm.device import Line
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
from vmm.ports import NetPort, SerialPort
from vmm.ram import MIB, Ram
from vmm.wiring import Fan, Gate, WiredOr

ELCR_LEVEL = sum(1 << (irq - 8) for irq in (acpi.SCI_IRQ, *INTA_IRQS))
"""Firmware's setting of the second edge/level register: PCI interrupts and the SCI are levels."""
IDE_SLOTS = 4
_U64 = (1 << 64) - 1
TABLES_RAM_MIN = 2 * MIB
"""A machine with less RAM than this has no place for firmware's tables."""


@dataclass(frozen=True)
class Outcomes:
    """What chips can make happen to the whole machine."""

    reset: Callable[[], None]
    power_off: Callable[[], None]
    debug_exit: Callable[[int], None]


class Board:
    """``chips`` by name, in the order in which they are reset and saved."""

    def __init__(
        self,
        config: PcConfig,
        cpu: Cpu,
        ram: Ram,
        buses: tuple[Bus, Bus],
        attached: Backends,
        outcomes: Outcomes,
    ) -> None:
        self._config = config
        self._cpu = cpu
        self._ram = ram
        self._ports, self._mmio = buses
        self._attached = attached
        self.chips: dict[str, Any] = {}
        self._pci_lines: list[WiredOr] = []
        self._slots = 1
        self._irq = self._interrupt_controllers()
        self._add_isa_chips(outcomes)

    def _add(self, name: str, chip: Any) -> Any:
        assert name not in self.chips, name
        self.chips[name] = chip
        return chip

    # Wires

    def _interrupt_controllers(self) -> list[Fan]:
        """Both controllers get every ISA request; IRQ 0 is pin 2 of the I/O APIC."""
        ioapic = IoApic(lambda vector, level, mode: lapic.deliver(vector, level, mode))
        lapic = Lapic(
            self._cpu.clock,
            self._cpu.interrupt_line,
            lambda: pic.acknowledge(),
            self._cpu.raise_nmi,
            ioapic.eoi,
            self._cpu.local_apic,
        )
        pic = Pic(lapic.lint0)
        self._add("lapic", lapic)
        self._add("ioapic", ioapic)
        self._add("pic", pic)
        return [Fan(pic.line(n), ioapic.line(2 if n == 0 else n)) for n in range(16)]

    def _add_isa_chips(self, outcomes: Outcomes) -> None:
        add, irq, clock, reset = self._add, self._irq, self._cpu.clock, outcomes.reset
        a20 = Gate(("port 92", "keyboard"), self._cpu.set_a20)
        pit = add("pit", Pit(irq[0], clock))
        add("rtc", Rtc(irq[8], clock, self._config.epoch_s))
        add("keyboard", I8042(irq[1], irq[12], reset, a20.wish("keyboard")))
        add("port92", SystemControlA(reset, a20.wish("port 92")))
        add("port61", SystemControlB(pit, clock))
        for number, channel in enumerate(self._ide_channels()):
            add(f"ide{number}", channel)
        add("reset", ResetControl(reset))
        add("pci", PciHost(self._ports, self._mmio, self.chips["reset"]))
        add("vga", Vga(self._ram))
        add("acpi-pm", AcpiPm(irq[acpi.SCI_IRQ], clock, outcomes.power_off))
        add("fw-cfg", FwCfg(self._ram.size, 1))
        add("debug-exit", DebugExit(outcomes.debug_exit))
        if self._config.bios:
            registers = RegisterFile(self._cpu)
            add("bios", Bios(registers, self._ram, self._ports, clock, self._bios_drives()))

    def attach_serial(self, port: SerialPort) -> None:
        """COM1 on IRQ 4."""
        port.uart = self._add("com1", Uart(self._irq[4], port.transmit))

    def plug_pci(self, nets: list[NetPort]) -> None:
        """Slots in order: cards, disks, the random number generator."""
        self._pci_lines = [WiredOr(self._irq[number]) for number in INTA_IRQS]
        for net, port in zip(self._config.nets, nets, strict=True):
            line, msi = self._slot_wires()
            port.card = VirtioNet(
                net.mac, port.transmit, self._ram, line, msi, net.offloads, port.posted, port.direct
            )
            self._plug(port.port, port.card)
        for number, (disk, medium) in enumerate(self._disks(ide=False)):
            line, msi = self._slot_wires()
            self._plug(f"disk{number}", VirtioBlk(medium, self._ram, line, msi, disk.serial))
        line, msi = self._slot_wires()
        self._plug("rng", VirtioRng(self._config.seed, self._ram, line, msi))

    def _slot_wires(self) -> tuple[Line, Callable[[int, int], None]]:
        """The next slot's interrupt pin, shared with every second slot, and its message port."""
        return self._pci_lines[self._slots % len(INTA_IRQS)].input(), self.chips["lapic"].message

    def _plug(self, name: str, function: PciFunction) -> None:
        self.chips["pci"].plug(self._slots, self._add(name, function))
        self._slots += 1

    def questions(self) -> Questions:
        """What the processor asks of the board."""
        lapic: Lapic = self.chips["lapic"]
        offset = self._cpu.read_tsc_offset

        def read_msr(register: int) -> int:
            if register == msr_table.IA32_APIC_BASE:
                return lapic.apic_base
            return lapic.tsc_deadline and lapic.tsc_deadline + offset() & _U64

        def write_msr(register: int, value: int) -> bool:
            if register == msr_table.IA32_APIC_BASE:
                return lapic.write_apic_base(value)
            at_ns = value - offset() & _U64  # the counter wraps
            lapic.write_tsc_deadline(value and (1 if at_ns >> 63 else max(at_ns, 1)))
            return True

        return Questions(
            self._ports,
            self._mmio,
            acknowledge=lapic.acknowledge,
            read_msr=read_msr,
            write_msr=write_msr,
            read_tpr=lambda: lapic.tpr >> 4,
            write_tpr=lambda value: lapic.set_tpr(value << 4),
        )

    # Disks

    def _disks(self, ide: bool) -> list[tuple[DiskConfig, BlockBackend]]:
        pairs = zip(self._config.disks, self._attached.disks, strict=True)
        return [(disk, medium) for disk, medium in pairs if disk.ide == ide]

    def _ide_channels(self) -> list[IdeChannel]:
        media: list[BlockBackend | None] = [medium for _, medium in self._disks(ide=True)]
        media += [None] * (IDE_SLOTS - len(media))
        return [
            IdeChannel(self._irq[14], (media[0], media[1])),
            IdeChannel(self._irq[15], (media[2], media[3]), number=2),
        ]

    def _bios_drives(self) -> Mapping[int, BlockBackend]:
        ordered = [medium for _, medium in self._disks(ide=True) + self._disks(ide=False)]
        return {0x80 + number: medium for number, medium in enumerate(ordered)}

    # Life

    def release_lines(self) -> None:
        """Shared wires forget who pulls them, before every chip says so again."""
        for line in self._pci_lines:
            line.release()

    def reset(self) -> None:
        """Every chip as at power-on, then what firmware's POST leaves behind."""
        self.release_lines()
        for chip in self.chips.values():
            chip.reset()
        self._firmware()

    def _firmware(self) -> None:
        """Virtual wire mode, edge or level, BARs, CMOS, tables, and the BIOS of boot sectors."""
        chips, ram = self.chips, self._ram
        chips["lapic"].virtual_wire()
        chips["pic"].elcr.write(1, 1, ELCR_LEVEL)
        chips["pci"].assign()
        chips["rtc"].set_memory_size(ram.size)
        Vga.blank(ram)
        if ram.size >= TABLES_RAM_MIN:
            pci_irqs = [(slot, 0, INTA_IRQS[slot % len(INTA_IRQS)]) for slot in range(1, self._slots)]
            features = cpuid.FEATURE_WORDS[layout.FEATURE_1_EDX]
            mptable.place(ram, ram.size, pci_irqs, cpuid.SIGNATURE, features)
            acpi.place(ram, pci_irqs)
        if "bios" in chips:
            chips["bios"].install()
