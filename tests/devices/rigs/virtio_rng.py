"""The entropy device."""

from __future__ import annotations

from random import Random

from tests.devices.promises import Rig, register
from tests.devices.virtio_bench import BUFFERS, SIZE, bench, offer
from vmm.clock import ManualClock
from vmm.devices.virtio_rng import VirtioRng
from vmm.ram import Ram


def _rng(clock: ManualClock) -> Rig:
    rig = Rig(clock)
    ram = Ram(1)
    device = VirtioRng(b"a seed", ram, rig.line("intx"), rig.sink("msi"))
    bench(rig, device, ram, 1 << 32 | 1 << 29)

    def draw(rng: Random) -> bytes:
        offer(ram, 0, b"", rng.choice((1, 64, 100, 2048)), rng.randrange(SIZE))
        device.notify(0, 2, 0)
        return ram.read(BUFFERS, 0x1_0000)

    rig.actions["draw"] = rig.actions["draw again"] = draw
    return rig


register("virtio_rng", _rng)
