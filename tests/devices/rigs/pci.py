"""The host bridge with two functions that collide at will, and an MSI-X table by itself."""

from __future__ import annotations

from random import Random

from tests.devices.promises import Rig, register
from vmm.bus import Bus
from vmm.clock import ManualClock
from vmm.devices.msix import Msix
from vmm.devices.pci import PciHost
from vmm.devices.pci_function import Bar, Identity, PciFunction, Window

ADDRESSES = (0xC000, 0xC010, 0xE000_0000, 0xE000_1000, 0xFFFF_FFFF, 0, 0xB000, 7, 0x407)


class Card(PciFunction):
    """Sixteen ports and 4 KiB of memory that answer with where they are."""

    __slots__ = ()

    def __init__(self, irq: object, mark: int) -> None:
        super().__init__(Identity(vendor=0x1234, device=mark, revision=0, class_code=0xFF_00_00), irq)  # type: ignore[arg-type]
        ports = Window(
            lambda offset, size: mark + offset & (1 << 8 * size) - 1, lambda offset, size, value: None
        )
        memory = Window(
            lambda offset, size: mark, lambda offset, size, value: self._set_intx(bool(value & 1))
        )
        self._add_bar(Bar(0, True, 16, ports, f"card {mark} ports"))
        self._add_bar(Bar(1, False, 4096, memory, f"card {mark} memory"))
        self.reset()


def _pci(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    io, mmio = Bus("io"), Bus("mmio")
    host = rig.device = PciHost(io, mmio, reset_control=Window(lambda offset, size: 5, rig.sink("reset")))
    cards = [Card(rig.line(f"card {slot}"), slot) for slot in (1, 2)]
    for slot, card in enumerate(cards, 1):
        host.plug(slot, card)
    rig.companions = tuple(cards)
    rig.views = {"ports": (host, 8)}

    def select(rng: Random) -> None:
        register = rng.choice((0x00, 0x04, 0x10, 0x14, 0x3C))
        host.write(0, 4, 1 << 31 | rng.randrange(4) << 11 | register)

    rig.actions = {
        "select": select,
        "assign": lambda _: host.assign(),
        "program": lambda rng: host.write(4, 4, rng.choice(ADDRESSES)),
        "reset card": lambda rng: rng.choice(cards).reset(),
        "memory": lambda rng: mmio.write(0xE000_0000 + 0x1000 * rng.randrange(2), 4, rng.randrange(2)),
    }
    rig.observe = lambda: [(claim.base, claim.what) for bus in (io, mmio) for claim in bus.claims()]
    rig.values = (*ADDRESSES, *(1 << 31 | slot << 11 | 4 * n for slot in range(3) for n in range(6)))
    return rig


def _msix(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    msix = rig.device = Msix(4, control=lambda: 0x80, msi=rig.sink("msi"))
    rig.views = {"bar": (msix, 0x810)}
    rig.actions = {"signal": lambda rng: msix.signal(rng.randrange(4))}
    rig.values = (0, 1, 0xFEE0_0000)
    return rig


register("pci", _pci)
register("msix", _msix)
