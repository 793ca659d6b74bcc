"""What every virtio device on PCI has in common: the modern transport.

Source: VIRTIO version 1.2, chapter 2 (status, features, queues), section 3.1 (initialisation) and
section 4.1 (virtio over PCI).

BAR 0 is a handful of ports for notifications, BAR 1 holds the MSI-X table, BAR 2 everything else.
A port write costs the machine half of what a memory-mapped one does, and a notification is the one
access that a driver makes per packet: so the first notification capability points at BAR 0 (a
driver takes the first whose BAR it can use; Linux maps either kind).  A second one in BAR 2 serves
drivers without port space.

A driver that breaks a ring is told so by DEVICE_NEEDS_RESET and a configuration interrupt, the
queue is left alone from then on, and the reason is counted.  Nothing is raised.

Not modelled: the legacy and transitional interfaces, packed rings, notification data, queue reset,
shared memory, administration virtqueues.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Annotated

from vmm.device import Line, Memory, all_ones
from vmm.devices import msix, pci_function
from vmm.devices.msix import Msix, MsixState
from vmm.devices.pci_function import Bar, Identity, PciFunction, PciState, Registers, Window
from vmm.devices.virtio_queue import NO_VECTOR, QueueState, RingViolation, Violation, VirtQueue
from vmm.errors import BadAddress
from vmm.state import at_most, field, length, u8, u16, u32, u64

VENDOR_RED_HAT, DEVICE_ID_BASE, SUBSYSTEM_ID = 0x1AF4, 0x1040, 0x1100

STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK = 1, 2, 4, 8
STATUS_NEEDS_RESET, STATUS_FAILED = 0x40, 0x80
ISR_QUEUE, ISR_CONFIG = 1, 2

F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32

CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 1, 2, 3, 4, 5
CAP_VENDOR, PCI_CAP_LENGTH = 0x09, 16

BAR_NOTIFY, BAR_MSIX, BAR_REGISTERS = 0, 1, 2
REGISTERS_SIZE = 0x1000
COMMON, ISR, DEVICE, NOTIFY = 0x000, 0x100, 0x200, 0x300
"""Where the structures lie in BAR 2, 256 bytes each."""
NOTIFY_MULTIPLIER = 4

COMMON_LAYOUT = struct.Struct("<IIIIHHBBHHHHHQQQHH")
QUEUES_MAX = msix.VECTORS_MAX - 1
"""One vector each, and one for the configuration."""


class Common:
    """Offsets of the writable fields of the common configuration structure (4.1.4.3)."""

    DEVICE_FEATURE_SELECT = 0x00
    DRIVER_FEATURE_SELECT = 0x08
    DRIVER_FEATURE = 0x0C
    CONFIG_MSIX_VECTOR = 0x10
    DEVICE_STATUS = 0x14
    QUEUE_SELECT = 0x16
    QUEUE_SIZE = 0x18
    QUEUE_MSIX_VECTOR = 0x1A
    QUEUE_ENABLE = 0x1C
    QUEUE_DESC = 0x20
    QUEUE_DRIVER = 0x28
    QUEUE_DEVICE = 0x30


RING_REGISTERS = ("desc", "driver", "device")
"""Fields of QueueState in the order of their registers."""


class VirtioState(PciState):
    """The transport's registers.  ``isr`` is the interrupt pin's level as well."""

    msix: MsixState = field(default_factory=MsixState)
    device_feature_select: u32 = 0
    driver_feature_select: u32 = 0
    driver_features: u64 = 0
    status: u8 = 0
    isr: u8 = 0
    config_vector: u16 = NO_VECTOR
    config_generation: u8 = 0
    queue_select: u16 = 0
    queues: Annotated[list[QueueState], at_most(QUEUES_MAX)] = field(default_factory=list)
    violations: Annotated[list[u32], length(len(Violation))] = field(
        default_factory=lambda: [0] * len(Violation)
    )


class VirtioPci(PciFunction):
    """A virtio device of ``device_type`` with one queue per entry of ``queue_sizes``.

    Device types implement ``_fresh`` and ``_notified``; their constructors end with ``self.reset()``.
    """

    __slots__ = ("_config_data", "_features", "_memory", "_msix_at", "msix", "queues")

    state: VirtioState

    def __init__(
        self,
        device_type: int,
        class_code: int,
        features: int,
        queue_sizes: Sequence[int],
        config_size: int,
        memory: Memory,
        irq: Line | None,
        msi: Callable[[int, int], None],
    ) -> None:
        identity = Identity(
            VENDOR_RED_HAT, DEVICE_ID_BASE + device_type, 1, class_code, VENDOR_RED_HAT, SUBSYSTEM_ID
        )
        super().__init__(identity, irq)
        self._memory = memory
        self._features = features | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
        self.queues = [VirtQueue(memory, size) for size in queue_sizes]
        self.msix = Msix(len(queue_sizes) + 1, self._msix_control, msi)
        self._add_registers(f"virtio {device_type}", config_size)

    # Guest side: configuration space.

    def config_read(self, offset: int, size: int) -> int:
        if offset & ~3 == self._config_data:
            access = self._config_access()
            if access is None:
                return all_ones(size)
            return access[0].read(access[1], access[2]) & all_ones(size)
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        if offset & ~3 == self._config_data:
            access = self._config_access()
            if access is not None:
                registers, at, width = access
                registers.write(at, width, value & all_ones(width))
        else:
            super().config_write(offset, size, value)

    # Guest side: BAR 2.

    def registers_read(self, offset: int, size: int) -> int:
        structure = offset & ~0xFF
        if structure == ISR:
            return self._read_isr() if offset == ISR else all_ones(size)
        if structure == COMMON:
            image = self._common()
        elif structure == DEVICE:
            image = self._device_config()
        else:
            return all_ones(size)
        data = image[offset & 0xFF : (offset & 0xFF) + size]
        return int.from_bytes(data, "little") if len(data) == size else all_ones(size)

    def registers_write(self, offset: int, size: int, value: int) -> None:
        structure = offset & ~0xFF
        if structure == NOTIFY:
            self.notify(offset - NOTIFY, size, value)
        elif structure != COMMON:
            return
        elif size == 8 and offset in (Common.QUEUE_DESC, Common.QUEUE_DRIVER, Common.QUEUE_DEVICE):
            self._write_common(offset, 4, value & 0xFFFF_FFFF)
            self._write_common(offset + 4, 4, value >> 32)
        else:
            self._write_common(offset, size, value & all_ones(size))

    # Guest side: BAR 0, the doorbells.

    def notify(self, offset: int, size: int, value: int) -> None:
        """The driver has made buffers available in the queue of this doorbell."""
        index = offset // NOTIFY_MULTIPLIER
        if 0 <= index < len(self.queues) and self._live(self.queues[index]):
            self._guarded(index, self._notified)

    # Life cycle.

    def restored(self) -> None:
        self.msix.state = self.state.msix
        for queue, state in zip(self.queues, self.state.queues, strict=True):
            queue.state = state
        super().restored()

    # For device types.

    def _device_config(self) -> bytes:
        """The device-specific configuration structure."""
        return b""

    def _acceptable(self, features: int) -> bool:
        """Do these offered features make sense together?"""
        return True

    def _notified(self, index: int) -> bool:
        """Serve queue ``index``; does its driver want an interrupt?  RingViolation, BadAddress may pass."""
        raise NotImplementedError

    def _driver_reset(self) -> None:
        """The driver has reset the device; the transport is already in its initial state."""

    def _has(self, feature: int) -> bool:
        """Was ``feature`` negotiated?"""
        return bool(self.state.driver_features & feature)

    def _live(self, queue: VirtQueue) -> bool:
        """May ``queue`` be served now?"""
        registers, state = queue.state, self.state
        ready = registers.enabled and not registers.broken and state.status & STATUS_DRIVER_OK
        return bool(ready and state.config[pci_function.COMMAND] & pci_function.COMMAND_MASTER)

    def _guarded(self, index: int, serve: Callable[..., bool], *arguments: object) -> bool:
        """Let ``serve`` work on a queue, and interrupt if it says so; False if the driver broke the rules."""
        queue = self.queues[index]
        try:
            wanted = serve(index, *arguments)
        except RingViolation as violation:
            self._broken(queue, violation.kind)
            return False
        except BadAddress:
            self._broken(queue, Violation.OUTSIDE_RAM)
            return False
        if wanted and not queue.state.broken:
            self._interrupt(queue.state.vector, ISR_QUEUE)
        return True

    def _config_changed(self) -> None:
        """The device-specific configuration differs from what the driver may have read."""
        self.state.config_generation = (self.state.config_generation + 1) & 0xFF
        if self.state.status & STATUS_DRIVER_OK:
            self._interrupt(self.state.config_vector, ISR_CONFIG)

    # Private: interrupts and violations.

    def _interrupt(self, vector: int, cause: int) -> None:
        if not self.msix.signal(vector):
            self.state.isr |= cause
            self._set_intx(True)

    def _read_isr(self) -> int:
        """Reading acknowledges: 4.1.4.5."""
        value, self.state.isr = self.state.isr, 0
        self._set_intx(False)
        return value

    def _broken(self, queue: VirtQueue, kind: Violation) -> None:
        state = self.state
        queue.state.broken = True
        state.violations[kind] = min(state.violations[kind] + 1, 0xFFFF_FFFF)
        if not state.status & STATUS_NEEDS_RESET:
            state.status |= STATUS_NEEDS_RESET
            if state.status & STATUS_DRIVER_OK:
                self._interrupt(state.config_vector, ISR_CONFIG)

    # Private: the common configuration structure (4.1.4.3).

    def _common(self) -> bytes:
        state = self.state
        queue = self._selected() or QueueState()  # size 0: there is no such queue
        select, offering = state.device_feature_select, state.driver_feature_select
        offered = self._features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0
        accepted = state.driver_features >> 32 * offering & 0xFFFF_FFFF if offering < 2 else 0
        notify_off = state.queue_select if state.queue_select < len(self.queues) else 0
        features = (select, offered, offering, accepted)
        device = (state.config_vector, len(self.queues), state.status, state.config_generation)
        registers = (state.queue_select, queue.size, queue.vector, queue.enabled, notify_off)
        rings = (queue.desc, queue.driver, queue.device)
        return COMMON_LAYOUT.pack(*features, *device, *registers, *rings, 0, 0)

    def _write_common(self, offset: int, size: int, value: int) -> None:
        """Fields are written whole (4.1.3.1); anything else is ignored."""
        state = self.state
        match offset, size:
            case (Common.DEVICE_FEATURE_SELECT, 4):
                state.device_feature_select = value
            case (Common.DRIVER_FEATURE_SELECT, 4):
                state.driver_feature_select = value
            case (Common.DRIVER_FEATURE, 4):
                self._write_features(value)
            case (Common.CONFIG_MSIX_VECTOR, 2):
                state.config_vector = value if value < self.msix.vectors else NO_VECTOR
            case (Common.DEVICE_STATUS, 1):
                self._write_status(value)
            case (Common.QUEUE_SELECT, 2):
                state.queue_select = value
            case _:
                queue = self._selected()
                if queue is not None:
                    self._write_queue(queue, offset, size, value)

    def _write_features(self, value: int) -> None:
        """Half of the driver's features; fixed once FEATURES_OK is set."""
        state = self.state
        if state.driver_feature_select < 2 and not state.status & STATUS_FEATURES_OK:
            shift = 32 * state.driver_feature_select
            state.driver_features = state.driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def _write_status(self, value: int) -> None:
        state = self.state
        if value == 0:
            self._reset_by_driver()
            return
        if value & ~state.status & STATUS_FEATURES_OK:
            features = state.driver_features
            if features & ~self._features or not features & F_VERSION_1 or not self._acceptable(features):
                value &= ~STATUS_FEATURES_OK
            else:  # final from here on, so each queue may know what concerns it
                for queue in state.queues:
                    queue.event_idx = bool(features & F_EVENT_IDX)
                    queue.indirect = bool(features & F_INDIRECT_DESC)
        state.status = value & ~STATUS_NEEDS_RESET | state.status & STATUS_NEEDS_RESET

    def _write_queue(self, queue: QueueState, offset: int, size: int, value: int) -> None:
        """Registers of the selected queue; none but the vector may change once it is enabled."""
        if (offset, size) == (Common.QUEUE_MSIX_VECTOR, 2):
            queue.vector = value if value < self.msix.vectors else NO_VECTOR
        elif queue.enabled:
            return
        elif (offset, size) == (Common.QUEUE_SIZE, 2):
            queue.size = value
        elif (offset, size) == (Common.QUEUE_ENABLE, 2):
            if value == 1:
                self._guarded(self.state.queue_select, self._enable)
        elif size == 4 and offset % 4 == 0 and Common.QUEUE_DESC <= offset < Common.QUEUE_DEVICE + 8:
            name = RING_REGISTERS[(offset & ~7) - Common.QUEUE_DESC >> 3]
            shift = 8 * (offset & 4)
            keep = 0xFFFF_FFFF << (32 - shift)
            setattr(queue, name, getattr(queue, name) & keep | value << shift)

    def _enable(self, index: int) -> bool:
        self.queues[index].enable()
        return False

    def _selected(self) -> QueueState | None:
        select = self.state.queue_select
        return self.state.queues[select] if select < len(self.queues) else None

    def _reset_by_driver(self) -> None:
        """Writing 0 to the status: everything of the transport, nothing of PCI (4.1.4.3.1)."""
        state, fresh = self.state, VirtioState()
        for name in VirtioState.__struct_fields__:
            if name not in ("config", "msix", "queues", "violations"):
                setattr(state, name, getattr(fresh, name))
        for queue in self.queues:
            queue.state = QueueState(size=queue.size_max)
        state.queues = [queue.state for queue in self.queues]
        self._set_intx(False)
        self._driver_reset()

    # Private: what PCI sees.

    def _add_registers(self, what: str, config_size: int) -> None:
        """The three BARs, MSI-X, and where the structures are, in the order of preference."""
        count = len(self.queues)
        ports = 1 << (NOTIFY_MULTIPLIER * count - 1).bit_length()
        doorbells = Window(lambda offset, size: all_ones(size), self.notify)
        registers = Window(self.registers_read, self.registers_write)
        self._add_bar(Bar(BAR_NOTIFY, True, ports, doorbells, f"{what} notifications"))
        self._add_bar(Bar(BAR_MSIX, False, msix.BAR_SIZE, self.msix, f"{what} MSI-X"))
        self._add_bar(Bar(BAR_REGISTERS, False, REGISTERS_SIZE, registers, f"{what} registers"))
        self._msix_at = self._add_capability(
            msix.CAPABILITY_ID, self.msix.capability(BAR_MSIX), msix.CONTROL_WRITABLE
        )
        multiplier = struct.pack("<I", NOTIFY_MULTIPLIER)
        self._add_structure(CAP_COMMON, BAR_REGISTERS, COMMON, COMMON_LAYOUT.size)
        self._add_structure(CAP_NOTIFY, BAR_NOTIFY, 0, NOTIFY_MULTIPLIER * count, multiplier)
        self._add_structure(CAP_NOTIFY, BAR_REGISTERS, NOTIFY, NOTIFY_MULTIPLIER * count, multiplier)
        self._add_structure(CAP_ISR, BAR_REGISTERS, ISR, 1)
        if config_size:
            self._add_structure(CAP_DEVICE, BAR_REGISTERS, DEVICE, config_size)
        window = bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 8
        at = self._add_structure(CAP_PCI, 0, 0, 0, bytes(4), window)
        self._config_data = at + PCI_CAP_LENGTH

    def _add_structure(
        self, kind: int, bar: int, offset: int, size: int, more: bytes = b"", writable: bytes = b""
    ) -> int:
        """One vendor capability (4.1.4): which structure, and where."""
        body = struct.pack("<BBBxxxII", PCI_CAP_LENGTH + len(more), kind, bar, offset, size) + more
        return self._add_capability(CAP_VENDOR, body, writable)

    def _config_access(self) -> tuple[Registers, int, int] | None:
        """What the window in configuration space (4.1.4.9) points at, if anything."""
        at = self._config_data - PCI_CAP_LENGTH
        number, offset, size = struct.unpack_from("<BxxxII", self.state.config, at + 4)
        for bar in self.bars:
            if bar.index == number and size in (1, 2, 4) and offset % size == 0 and offset + size <= bar.size:
                return bar.registers, offset, size
        return None

    def _msix_control(self) -> int:
        """The upper byte of Message Control."""
        return self.state.config[self._msix_at + 3]

    def _config_written(self, offset: int) -> None:
        self._set_intx(bool(self.state.isr) and not self.msix.enabled)
        self.msix.send_pending()
