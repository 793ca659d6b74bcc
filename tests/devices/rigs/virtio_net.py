"""The network device, with frames from and to a recorded cable."""

from __future__ import annotations

from random import Random

from tests.devices.promises import Rig, register
from tests.devices.virtio_bench import SIZE, bench, offer
from vmm.clock import ManualClock
from vmm.devices.virtio_net import VirtioNet
from vmm.ram import Ram

MAC = bytes.fromhex("52540012ab01")


def _net(clock: ManualClock, offloads: bool, moderated: bool = False) -> Rig:
    rig = Rig(clock)
    ram = Ram(1)
    sent = rig.sink("transmit")
    net = VirtioNet(
        MAC,
        lambda frame: sent(bytes(frame)),
        ram,
        rig.line("intx"),
        rig.sink("msi"),
        offloads,
        rig.sink("rx ready"),
    )
    if moderated:
        net.moderate(clock, "net")
    bench(rig, net, ram, 1 << 32 | 1 << 29 | 0x0023_8020)

    def transmit(rng: Random) -> None:
        offer(ram, 1, bytes(12) + rng.randbytes(rng.choice((14, 60, 1500, 5))), 0, rng.randrange(SIZE))
        net.notify(4, 2, 1)

    def control(rng: Random) -> None:
        offer(ram, 2, bytes((rng.choice((3, 0)), 0)), 1, rng.randrange(SIZE))
        net.notify(8, 2, 2)

    def receive(rng: Random) -> bool:
        if rng.random() < 0.7:
            offer(ram, 0, b"", rng.choice((1536, 40)), rng.randrange(SIZE))
        return net.receive(rng.randbytes(rng.choice((26, 100, 1514, 3))))

    rig.actions |= {
        "transmit": transmit,
        "control": control,
        "post": lambda rng: offer(ram, 0, b"", rng.choice((1536, 40)), rng.randrange(SIZE)),
        "receive": receive,
        "receive more": receive,
        "link": lambda rng: net.set_link(rng.random() < 0.9),
        "announce": lambda _: net.announce(),
        "idle": lambda _: net.idle(),
    }
    return rig


register("virtio_net", lambda clock: _net(clock, offloads=False))
register("virtio_net with offloads", lambda clock: _net(clock, offloads=True))
register("virtio_net, moderated", lambda clock: _net(clock, offloads=False, moderated=True))
