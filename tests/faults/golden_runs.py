"""Facts of golden runs, for tests of plans."""

from __future__ import annotations

from colo.faults.golden import Golden, Guest

PRIMARY = Guest(
    instructions=1000,
    virtual=((0x1001, 0x1FFF), (0x5000, 0x5008)),
    physical=((0x9000, 0x9004),),
    executed=((0x400000, 3), (0x400005, 1)),
    lines=(0, 4),
    vectors=(48,),
)
GOLDEN = Golden(
    end_ns=1_000_000,
    guests={"primary": PRIMARY, "secondary": Guest(instructions=10)},
    links=("client", "pair"),
    disks={"vda": 100},
    arbiters=("arbiter",),
    steps={"primary": {"Hello": 1, "VmstateSend": 20}, "secondary": {"VmstateReceived": 20}},
)
