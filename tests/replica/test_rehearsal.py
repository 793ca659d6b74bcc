"""A rehearsal leaves no trace: neither in the machine that stands by, nor in what it says later.

A *twin* is a machine that took over the same state and never rehearsed.  After any number of rehearsals
of any length, ended at any time, the other one goes on from that state exactly like its twin.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from colo.messages import Packet
from colo.node import rehearsal
from colo.node.rehearsal import Rehearsal
from colo.node.standby_ram import NO_PAGES
from tests.machine.support import MS, arp_request, sector, udp_echo
from tests.replica.support import RAM_MIB, Node, bare, descriptors, started, until
from vmm.backends.disk import MemoryDisk, RawFile
from vmm.boot.acpi import PM_BASE
from vmm.boot.source import BootSource
from vmm.devices.acpi_pm import PM1_CNT, SLP_EN, SLP_TYP_S5, SLP_TYP_SHIFT
from vmm.devices.block import BlockBackend
from vmm.machine import Ended

FRAMES = [("net0", arp_request()), ("net0", udp_echo(b"are you there?"))]
LENGTHS_NS = [1, 777, 50_000, 1 * MS + 1, rehearsal.LENGTH_NS, 40 * MS]


class Said(NamedTuple):
    """What became of a state: why and when the machine stopped, what it was, what was said."""

    ends: list[tuple[Ended, int, str]]
    console: bytes
    frames: int


class Origin:
    """A guest as a primary had it at some time, and machines that stand by for it."""

    def __init__(
        self,
        boot: BootSource,
        at_ns: int = 0,
        ram_mib: int = RAM_MIB,
        disks: Callable[[], Sequence[BlockBackend]] = lambda: (),
    ) -> None:
        self._boot, self._ram_mib, self._disks = boot, ram_mib, disks
        node = Node(boot, ram_mib=ram_mib, disks=disks())
        node.machine.run(at_ns)
        self.ram, self.sections = node.machine.ram.array.copy(), node.machine.everything()
        node.close()

    def standing_by(self) -> Node:
        node = Node(self._boot, standing_by=True, ram_mib=self._ram_mib, disks=self._disks())
        assert node.standby is not None
        node.standby.image[:] = self.ram
        return node

    def future(self, node: Node, inputs: Sequence[Packet] = ()) -> Said:
        """The machine of ``node`` takes over from here."""
        machine, ends = node.machine, list[tuple[Ended, int, str]]()
        machine.load_sections(self.sections, NO_PAGES)
        frames, before = node.net.muted_frames, machine.console.total
        for port, payload in inputs:
            machine.door.enter(port, payload)
        began = machine.clock.now_ns
        for after_ns in (1000, 1 * MS, 7 * MS, 30 * MS):
            while (ended := machine.run(began + after_ns)) is Ended.REQUEST:
                """A stop was left over."""
            ends.append((ended, machine.clock.now_ns, machine.digest))
        said = machine.console.total - before
        return Said(ends, machine.console.data[-said:] if said else b"", node.net.muted_frames - frames)

    def expected(self, inputs: Sequence[Packet] = ()) -> Said:
        """From a twin."""
        twin = self.standing_by()
        found = self.future(twin, inputs)
        twin.close()
        return found

    def untouched(self, node: Node) -> bool:
        """RAM is the image, byte for byte, and neither changed."""
        assert node.standby is not None
        return bool(
            (node.standby.image == self.ram).all()
            and (node.machine.ram.array == self.ram).all()
            and not node.standby.own_pages().size
        )


def rehearsal_of(node: Node) -> Rehearsal:
    assert node.standby is not None
    return Rehearsal(node.replica, node.standby)


def whole(trial: Rehearsal, origin: Origin, inputs: Sequence[Packet]) -> None:
    """One that is played to its end."""
    trial.begin(origin.sections, inputs)
    assert trial._running is not None
    assert trial._running.result()
    trial.finish_now()


GUESTS: dict[str, Callable[[], tuple[Origin, list[Packet]]]] = {
    "counter": lambda: (Origin(bare("counter", "mib=2 ms=1"), 77 * MS), []),
    "udpecho": lambda: (Origin(bare("udpecho"), 20 * MS), FRAMES),
}


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("length_ns", LENGTHS_NS)
def test_the_machine_goes_on_as_one_that_never_rehearsed(
    name: str, length_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "LENGTH_NS", length_ns)
    origin, inputs = GUESTS[name]()
    node = origin.standing_by()
    with started(node):
        trial = rehearsal_of(node)
        for _ in range(3):
            whole(trial, origin, inputs)
            assert origin.untouched(node)
        assert trial.count == 3
        assert node.guest.call(lambda: origin.future(node, inputs)) == origin.expected(inputs)


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_rehearsal_may_be_ended_at_any_time(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it began, in the middle, when it is over; by a checkpoint or by a take-over."""
    monkeypatch.setattr(rehearsal, "LENGTH_NS", 300 * MS)
    rng = random.Random(seed)
    origin, inputs = GUESTS[name]()
    node = origin.standing_by()
    start_ns = node.machine.clock.now_ns
    with started(node):
        trial = rehearsal_of(node)
        for turn in range(12):
            trial.begin(origin.sections, inputs)
            comes_to(node, trial, start_ns + rng.choice([0, 1, 50_000, 10 * MS, 100 * MS, 1 << 60]))
            if turn % 2:
                trial.finish_now()
            else:
                asyncio.run(trial.finish())
            assert origin.untouched(node)
        assert node.guest.call(lambda: origin.future(node, inputs)) == origin.expected(inputs)


def comes_to(node: Node, trial: Rehearsal, at_ns: int) -> None:
    """Until the rehearsed guest has come to this time, or to the end."""
    running = trial._running
    assert running is not None
    until(lambda: running.done() or node.machine.clock.now_ns >= at_ns, "the rehearsal comes that far")


def test_ending_one_that_is_over_does_not_end_the_next_one() -> None:
    """A stop that nobody waits for stays with the machine; once it made every later rehearsal empty."""
    origin, inputs = GUESTS["udpecho"]()
    node = origin.standing_by()
    with started(node):
        trial = rehearsal_of(node)
        for _ in range(5):
            before = node.net.muted_frames
            whole(trial, origin, inputs)
            assert node.net.muted_frames - before == len(inputs), "each answered both"


def test_it_is_due_now_and_then_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    origin, inputs = GUESTS["udpecho"]()
    node = origin.standing_by()
    with started(node):
        trial = rehearsal_of(node)
        assert trial.is_due
        trial.begin(origin.sections, inputs)
        assert not trial.is_due
        assert trial._running is not None
        trial._running.result()
        trial.finish_now()
        assert not trial.is_due, "it has just been"
        trial.finish_now()
        monkeypatch.setattr(rehearsal, "EVERY_S", 0.0)
        whole(trial, origin, inputs)
        assert trial.is_due


def test_nobody_hears_of_it() -> None:
    """Neither back end nor console, nor the machine's own record; and nothing is taken from the card."""
    origin, inputs = GUESTS["udpecho"]()
    talker = Origin(sector("mov dx, 0x3f8\nspin: mov al, 'x'\nout dx, al\njmp spin"), ram_mib=1)
    for each, given, frames in ((origin, inputs, 2), (talker, [], 0)):
        node = each.standing_by()
        with started(node):
            node.cable.arrive(b"a frame of a client, which the survivor must be given")
            node.ear.type(b"typed for the survivor")
            total = node.machine.console.total
            trial = rehearsal_of(node)
            for _ in range(3):
                whole(trial, each, given)
            assert node.net.muted_frames == 3 * frames
            assert node.cable.heard == []
            assert node.ear.heard == b""
            assert node.console.muted_bytes == 0
            assert node.machine.console.total == total
            assert node.cable.receive() is not None
            assert node.ear.receive() == b"typed for the survivor"
            assert node.ended == []
            assert not node.guest.has_run


# Guests that do something that cannot be undone

ON_A_BYTE = """
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
spin:
    inc dword ptr [0x600]
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz spin
    mov dx, 0x3f8
    in al, dx
{then}
    jmp spin
"""
"""Counts until a byte comes on its serial line."""
OFF = SLP_EN | SLP_TYP_S5 << SLP_TYP_SHIFT
FATAL = {
    "ACPI soft off": f"mov dx, {PM_BASE + PM1_CNT}\nmov ax, {OFF}\nout dx, ax",
    "halt for good": "cli\nhlt",
    "debug exit": "mov al, 5\nout 0xf4, al",
    "reset at 0xCF9": "mov dx, 0xcf9\nmov al, 2\nout dx, al\nmov al, 6\nout dx, al",
    "reset at 0x92": "in al, 0x92\nor al, 1\nout 0x92, al",
    "triple fault": "lidt cs:[none]\nud2\nnone: .word 0\n.long 0",
    "fills its memory": "mov ax, 0x1000\nmov es, ax\nxor di, di\nmov cx, 0x7fff\nrep stosw",
    "address line 20": "mov al, 0\nout 0x92, al",
    "timer and mask": "mov al, 0x34\nout 0x43, al\nout 0x40, al\nout 0x40, al\nmov al, 0\nout 0x21, al",
}


@pytest.mark.parametrize("then", FATAL.values(), ids=FATAL)
def test_whatever_the_guest_does_to_itself_is_taken_back(then: str) -> None:
    origin = Origin(sector(ON_A_BYTE.format(then=then)), 2 * MS, ram_mib=1)
    node = origin.standing_by()
    with started(node):
        trial = rehearsal_of(node)
        for _ in range(3):
            whole(trial, origin, [("com1", b"!")])
            assert origin.untouched(node)
        assert node.ended == []
        assert node.machine.restart_on_reset
        assert node.guest.call(lambda: origin.future(node)) == origin.expected()
        again = node.guest.call(lambda: origin.future(node))
        assert again.ends[0][0] is Ended.TIME
        assert node.machine.exit_code is None


def test_code_that_was_changed_in_a_rehearsal_is_forgotten() -> None:
    """`p` patches an instruction and `r` runs it: a translation of the patched one must not survive."""
    then = """
    cmp al, 'p'
    je patch
run:
    nop
changed:
    mov al, 0x11
    add [0x604], al
    jmp spin
patch:
    mov byte ptr [changed + 1], 0x22
    jmp run
"""
    origin = Origin(sector(ON_A_BYTE.format(then=then)), 2 * MS, ram_mib=1)
    node = origin.standing_by()
    run = [("com1", b"r")]

    def sum_after(inputs: list[Packet]) -> int:
        found = origin.future(node, inputs)
        assert found == origin.expected(inputs)
        value = node.machine.ram.read(0x604, 1)[0]
        assert node.standby is not None
        trial._take_back()
        return value

    with started(node):
        trial = rehearsal_of(node)
        for inputs in ([("com1", b"p")], run, [("com1", b"prr")], [("com1", b"p")]):
            whole(trial, origin, inputs)
            assert node.guest.call(lambda: sum_after(run)) == 0x11
        assert node.guest.call(lambda: sum_after([("com1", b"p")])) == 0x22
        assert node.guest.call(lambda: sum_after(run)) == 0x11


WRITE_A_SECTOR = """
    mov ax, 0x0301          # INT 13h, 03: write one sector
    mov cx, 2
    mov dx, 0x80
    mov bx, 0x7c00
    int 0x13
"""


def test_what_was_written_to_an_overlay_is_taken_back() -> None:
    origin = Origin(
        sector(ON_A_BYTE.format(then=WRITE_A_SECTOR)), 2 * MS, ram_mib=1, disks=lambda: [MemoryDisk(1 << 20)]
    )
    node = origin.standing_by()
    with started(node):
        (disk,) = node.machine.disks
        trial = rehearsal_of(node)
        assert trial.is_due
        whole(trial, origin, [("com1", b"w")])
        assert disk.read(1, 1) != bytes(512), "the rehearsed guest did write"
        assert node.guest.call(lambda: origin.future(node)) == origin.expected()
        assert disk.read(1, 1) == bytes(512)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_disk_that_would_keep_it_is_not_rehearsed_with(read_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    disk = RawFile(str(path), read_only=read_only)
    node = Node(sector("spin: jmp spin"), standing_by=True, ram_mib=1, disks=[disk])
    assert rehearsal_of(node).is_due is read_only
    node.close()
    disk.close()


# Inputs


@pytest.mark.parametrize("typed", [b"r", b"more than sixteen bytes!"])
def test_a_survivor_gets_all_that_was_typed(typed: bytes) -> None:
    """Not only what the chip takes at once: one byte, or sixteen with its FIFO."""
    origin = Origin(sector(ON_A_BYTE.format(then="inc word ptr [0x604]")), 2 * MS, ram_mib=1)
    node = origin.standing_by()
    pieces = [("com1", typed[at : at + 16]) for at in range(0, len(typed), 16)]
    with started(node):
        trial = rehearsal_of(node)
        whole(trial, origin, pieces)
        assert origin.untouched(node)
        found = node.guest.call(lambda: origin.future(node, pieces))
        assert int.from_bytes(node.machine.ram.read(0x604, 2), "little") == len(typed)
        assert found == origin.expected(pieces)


def test_what_a_rehearsal_could_not_take_is_not_typed_later() -> None:
    deaf = Origin(sector("spin: inc dword ptr [0x600]\njmp spin"), 2 * MS, ram_mib=1)
    node = deaf.standing_by()
    with started(node):
        trial = rehearsal_of(node)
        whole(trial, deaf, [("com1", b"x" * 100), *FRAMES])
        assert node.machine.door.waiting() == []
        assert node.guest.call(lambda: deaf.future(node)) == deaf.expected()


def test_descriptors_do_not_grow() -> None:
    origin, inputs = GUESTS["udpecho"]()
    node = origin.standing_by()
    with started(node):
        trial = rehearsal_of(node)
        whole(trial, origin, inputs)
        before = descriptors()
        for _ in range(5):
            whole(trial, origin, inputs)
        assert descriptors() == before
