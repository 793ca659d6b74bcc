"""What a machine offers to those that replicate it: an open ear, deafness, whole states and what changed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.machine.support import MS, arp_request, machine, multiboot
from vmm.attached import Backends
from vmm.backends.disk import MemoryDisk
from vmm.backends.net import NetBackend, Nowhere
from vmm.clock import ManualClock
from vmm.config import DiskConfig, NetConfig, PcConfig, mac
from vmm.devices.uart import Register, Uart
from vmm.errors import StateError
from vmm.guest import open as open_guest
from vmm.inputs import REFUSED, Door
from vmm.launch import LaunchOptions, launch
from vmm.machine import Ended, Machine
from vmm.pace import Pacer
from vmm.ports import FEED_NS, SerialPort
from vmm.ram import MIB, PAGE_SIZE, Ram

# The door


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def door(clock: ManualClock) -> Door:
    return Door(lambda: clock.now_ns)


def test_a_door_tells_what_was_taken_and_nothing_else(door: Door) -> None:
    """In the pieces in which it was taken: those are what another machine has to be given."""
    answers, heard = [2, 0, REFUSED, 3, 1, 4], list[bytes]()
    door.open("com", lambda payload: answers.pop(0))
    door.enter("com", b"ab")
    door.heard = lambda port, payload: heard.append(payload)
    door.enter("com", b"cdef")
    door.retry("com")
    assert heard == []
    door.retry("com")
    assert heard == [b"cde"], "one attempt takes what it takes; the rest waits"
    door.enter("com", b"ghij")
    assert heard == [b"cde", b"f", b"ghij"]


def test_what_is_replayed_or_refused_is_not_heard(door: Door) -> None:
    heard: list[bytes] = []
    door.open("net0", lambda payload: REFUSED)
    door.heard = lambda port, payload: heard.append(payload)
    for _ in range(3):
        door.enter("net0", b"frame")
    assert heard == []
    assert door.waiting() == ["net0"]
    door.forget()
    assert door.waiting() == []
    assert not door.is_full("net0")


def test_bytes_that_came_by_the_door_are_fed_like_typed_ones(door: Door, clock: ManualClock) -> None:
    """A survivor repeats what was typed through the door: more than the chip takes at once."""

    class Line:
        def set(self, level: bool) -> None:
            """Nobody is interrupted."""

    serial = SerialPort("com1", door, clock)
    serial.uart = uart = Uart(Line(), serial.transmit)
    for piece in (b"ab", b"cd"):
        door.enter("com1", piece)
    heard = bytearray()
    for _ in range(10):
        while uart.read(Register.LSR, 1) & 1:
            heard.append(uart.read(Register.RBR_THR, 1))
        clock.advance(FEED_NS)
        serial.retry()
    assert heard == b"abcd"
    assert clock.deadlines() == {}


def test_an_announcement_goes_to_every_card_and_to_a_guest_without_one() -> None:
    with multiboot("udpecho") as pc:
        pc.run(20 * MS)
        before = pc.digest
        pc.door.enter("announce", b"\0")
        assert pc.digest == before, "this driver does not know the feature"
    with machine("spin: jmp spin") as pc:
        pc.door.enter("announce", b"\0")


# Deafness


@pytest.fixture
def pacer() -> Iterator[Pacer]:
    made = Pacer(paced=False)
    yield made
    made.close()


def test_a_deaf_machine_looks_at_no_descriptor_and_hears_all_of_it_later(pacer: Pacer) -> None:
    reading, writing = os.pipe()
    try:
        pacer.watch(reading)
        os.write(writing, b"x")
        pacer.deaf = True
        assert pacer.descriptor == -1
        assert pacer.ready() == set()
        assert pacer.rest(5, 9) == (9, set())
        pacer.wake()
        assert pacer.ready() == set()
        pacer.deaf = False
        assert pacer.descriptor >= 0
        assert pacer.ready() == {reading}
        pacer.watch(reading, wanted=False)
    finally:
        os.close(reading)
        os.close(writing)


# Whole states

JUMPS = """
    xor ax, ax
    mov ds, ax
turn:
    call 0x8000
    jmp turn
"""
"""Runs what is at 0x8000."""
ADDS_ONE, ADDS_TWO = bytes.fromhex("66ff060006 c3 90 90"), bytes.fromhex("6683060006 02 c3 90")
CODE = 0x8000


def pages(*addresses: int) -> npt.NDArray[np.uint32]:
    return np.array(addresses, np.uint32) // PAGE_SIZE


def turns(pc: Machine) -> int:
    return int.from_bytes(pc.ram.read(0x600, 4), "little")


def test_translated_code_goes_where_ram_was_changed_and_stays_elsewhere() -> None:
    """``changed`` is a promise of who loads: code of other places is believed to be what it was."""
    with machine(JUMPS) as pc:
        pc.ram.write(CODE, ADDS_ONE)
        pc.run(MS)
        sections = pc.everything()
        pc.run(2 * MS)
        one_each = turns(pc)
        for changed in (
            None,
            pages(CODE),
            pages(0, CODE, CODE + PAGE_SIZE),
            pages(*range(0, MIB, PAGE_SIZE)),
        ):
            pc.ram.array[CODE : CODE + len(ADDS_TWO)] = list(ADDS_TWO)  # behind the engine's back
            pc.ram.write(0x600, bytes(4))
            pc.load_sections(sections, changed)
            pc.run(2 * MS)
            assert turns(pc) % 2 == 0, changed
            assert turns(pc) > one_each // 2
            pc.ram.write(CODE, ADDS_ONE)
        pc.ram.write(0x600, bytes(4))
        pc.load_sections(sections, pages())
        pc.run(2 * MS)
        half = turns(pc)
        with machine(JUMPS) as twin:
            twin.ram.write(CODE, ADDS_ONE)
            twin.ram.write(0x600, bytes(4))
            twin.load_sections(sections)
            twin.run(2 * MS)
            assert turns(twin) == half, "with translated code and without it"
            assert twin.digest == pc.digest


def test_loading_without_a_flush_is_loading() -> None:
    """The same past again and again, with all of its code translated already."""
    with multiboot("counter", command_line="mib=1 ms=1") as pc:
        pc.run(30 * MS)
        sections, ram = pc.everything(), pc.ram.array.copy()
        pc.cpu.flush_tlb()
        pc.run(60 * MS)
        expected = pc.digest
        for _ in range(3):
            pc.ram.array[:] = ram
            pc.load_sections(sections, pages())
            assert pc.run(60 * MS) is Ended.TIME
            assert pc.digest == expected


def with_disk() -> Machine:
    config = PcConfig(ram_mib=1, disks=[DiskConfig(MemoryDisk(1 << 20).sectors)])
    return Machine(config, None, Backends(disks=[MemoryDisk(1 << 20)]))


def test_what_is_checked_can_be_loaded_and_checking_changes_nothing() -> None:
    with with_disk() as pc, with_disk() as other:
        other.disks[0].write(3, b"theirs!!" * 64)
        theirs, before = other.everything(), pc.digest
        pc.check_sections(theirs)
        assert pc.digest == before
        assert pc.disks[0].read(3, 1) == bytes(512)
        pc.load_sections(theirs)
        assert pc.disks[0].read(3, 1) == b"theirs!!" * 64
        for bad in (
            theirs | {"rtc": theirs["pit"]},
            {name: data for name, data in theirs.items() if name != "medium0"},
            theirs | {"medium0": theirs["medium0"][:-1]},
            theirs | {"medium1": theirs["medium0"]},
        ):
            with pytest.raises(StateError):
                pc.check_sections(bad)
        assert pc.disks[0].read(3, 1) == b"theirs!!" * 64


# Launched to stand by


def test_an_incoming_machine_has_the_ram_that_it_is_given_and_nothing_in_it() -> None:
    built = open_guest("udpecho").build()
    made: list[Ram] = []

    def incoming(size_mib: int) -> Ram:
        made.append(Ram(size_mib))
        return made[0]

    options = LaunchOptions(multiboot=str(built.kernel), ram_mib=16, nets=("none",), paced=False)
    with launch(options, incoming=incoming) as launched, launch(options) as origin:
        pc = launched.machine
        assert pc.ram is made[0]
        assert not pc.ram.array.any(), "the boot image was not loaded"
        assert pc.layout_digest == origin.machine.layout_digest
        assert pc.config == origin.machine.config
        origin.machine.run(20 * MS)
        pc.ram.array[:] = origin.machine.ram.array
        pc.load_sections(origin.machine.everything())
        assert pc.differences(origin.machine) == []
        for each in (pc, origin.machine):
            each.door.enter("net0", arp_request())
        origin.machine.cpu.flush_tlb()
        assert pc.run(40 * MS) is origin.machine.run(40 * MS) is Ended.TIME
        assert pc.digest == origin.machine.digest


class Wrapped:
    """Something around a back end."""

    def __init__(self, backend: NetBackend) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)


def test_a_card_with_offloads_fits_an_unplugged_cable_however_it_is_wrapped() -> None:
    config = PcConfig(ram_mib=1, nets=[NetConfig(mac(0), offloads=True)])
    cable: NetBackend = Nowhere()
    for backend in (cable, Wrapped(cable), Wrapped(Wrapped(cable))):  # type: ignore[arg-type]
        Backends([backend]).fitted(config)  # type: ignore[list-item]
