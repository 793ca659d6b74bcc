"""The stage: an epoch is whole or it is nothing, and what is sealed can be installed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import ProtocolViolation
from colo.messages import RamPages, VmstateSize
from colo.node.stage import ROWS_MIN, FirstStage, Stage
from colo.pages.delta import HEADER, LZ4, PLAIN, Bytes, Outgoing
from tests.machine.support import MS, machine
from vmm.backends.disk import MemoryDisk
from vmm.config import DiskConfig, PcConfig
from vmm.machine import Backends, Machine
from vmm.ram import MIB, PAGE_SIZE

PAGES = 4 * MIB // PAGE_SIZE
COUNT = """
    xor ax, ax
    mov ds, ax
turn:
    inc dword ptr [0x600]
    jmp turn
"""


@pytest.fixture(scope="module")
def pc() -> Iterator[Machine]:
    """Of 4 MiB, with a copy-on-write disk: it has every kind of section."""
    config = PcConfig(ram_mib=4, disks=[DiskConfig(MemoryDisk(MIB).sectors)])
    with Machine(config, None, Backends(disks=[MemoryDisk(MIB)])) as pc:
        pc.disks[0].write(8, b"x" * 512)
        yield pc


@cache
def _noise(seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, 4 * MIB, dtype=np.uint8)


def noise(seed: int) -> Bytes:
    return _noise(seed).copy()


class Sender:
    """The other side: memory that changes, and what the receiver is taken to have."""

    def __init__(self, seed: int = 1, compress: bool = False) -> None:
        self.ram, self.shadow = noise(seed), noise(seed)
        self.rows = self.ram.reshape(-1, PAGE_SIZE)
        self._outgoing = Outgoing(self.ram.size, compress)
        self.count = 0

    def batches(self, epoch: int = 0) -> list[RamPages]:
        self._outgoing.capture(self.ram, self.shadow, None)
        made = [RamPages(epoch, count, data) for count, data in self._outgoing.batches(self.shadow)]
        self.count += sum(each.count for each in made)
        return made


def vmstate(pc: Machine, pages: int, **changes: bytes) -> VmstateSize:
    return VmstateSize(0, b"", pages, pc.everything() | changes, [])


def test_an_epoch_is_applied_over_its_base(pc: Machine) -> None:
    sender, image = Sender(), noise(1)
    stage = Stage(pc, image, 0)
    sender.rows[3] = 0
    sender.rows[700, 8:16] ^= 0xFF
    sender.rows[PAGES - 1] = 7
    for batch in sender.batches():
        stage.add(batch)
    assert (image == noise(1)).all(), "nothing is touched before the install"
    stage.seal(vmstate(pc, 3))
    assert (image == noise(1)).all()
    assert stage.page_count == 3
    assert sorted(stage.pages.tolist()) == [3, 700, PAGES - 1]
    stage.install_pages()
    assert (image == sender.ram).all()


def test_installing_twice_is_installing_once(pc: Machine) -> None:
    """A node that dies in the middle of an install, or is asked to take over then, does it again."""
    sender, image = Sender(), noise(1)
    stage = Stage(pc, image, 0)
    sender.rows[::3, ::64] ^= 0x55
    for batch in sender.batches():
        stage.add(batch)
    stage.seal(vmstate(pc, sender.count))
    stage.install_pages()
    image[: MIB // 2] = 0xEE  # as far as somebody came who was cut short
    stage.install_pages()
    image[:] ^= sender.ram
    changed = np.unique(np.flatnonzero(image) // PAGE_SIZE)
    assert not set(changed.tolist()) & set(stage.pages.tolist())
    assert (image.reshape(-1, PAGE_SIZE)[MIB // 2 // PAGE_SIZE :] == 0).all()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 15), st.integers(0, 511), st.integers(0, 255)), max_size=12),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_live_rounds_build_on_each_other(
    pc: Machine, rounds: list[list[tuple[int, int, int]]], compress: bool
) -> None:
    """A page may come in every round, each time as a difference from the round before."""
    sender, image = Sender(compress=compress), noise(1)
    stage = Stage(pc, image, 0)
    touched = set[int]()
    for changes in rounds:
        for page, word, value in changes:
            sender.rows[page, 8 * word : 8 * word + 8] = value
        for batch in sender.batches():
            stage.add(batch)
    stage.seal(vmstate(pc, sender.count))
    touched |= set(np.unique(np.flatnonzero(sender.ram != image) // PAGE_SIZE).tolist())
    assert touched <= set(stage.pages.tolist())
    assert stage.page_count == len(set(stage.pages.tolist()))
    stage.install_pages()
    assert (image == sender.ram).all()


def test_the_first_epoch_goes_straight_into_the_image(pc: Machine) -> None:
    """Nothing is promised yet, so there is nothing to keep; live rounds build on what is there."""
    sender, image = Sender(), noise(1)
    stage = FirstStage(pc, image, 0)
    for value in range(1, 5):
        sender.rows[[0, 3, PAGES - 1], : 8 * value] = value
        sender.rows[value] = 0
        for batch in sender.batches():
            stage.add(batch)
        assert (image == sender.ram).all()
    (good,) = (sender.rows[9].fill(9), sender.batches())[1]
    with pytest.raises(ProtocolViolation):
        stage.add(RamPages(0, good.count, good.data[:-4]))
    stage.add(good)
    with pytest.raises(ProtocolViolation, match="the peer says it sent 1"):
        stage.seal(vmstate(pc, 1))
    stage.seal(vmstate(pc, sender.count))
    stage.install_pages()
    assert (image == sender.ram).all()


def test_a_stage_grows_with_its_epoch_and_forgets_nothing(pc: Machine) -> None:
    sender, image = Sender(), noise(1)
    stage = Stage(pc, image, 0)
    for start in range(0, PAGES, ROWS_MIN // 3):
        sender.rows[start : start + ROWS_MIN // 3, 0] += 1
        sender.rows[: start + 1 : 5, 8] += 1  # and again some that are staged
        for batch in sender.batches():
            stage.add(batch)
    assert stage.page_count == PAGES
    stage.seal(vmstate(pc, sender.count))
    stage.install_pages()
    assert (image == sender.ram).all()


def test_an_epoch_without_pages_is_an_epoch(pc: Machine) -> None:
    image = noise(1)
    stage = Stage(pc, image, 5)
    assert not stage.is_sealed
    assert stage.held == []
    stage.seal(VmstateSize(5, b"", 0, pc.everything(), [("net0", b"frame")]))
    assert stage.is_sealed
    assert stage.held == [("net0", b"frame")]
    stage.install_pages()
    assert (image == noise(1)).all()


# Refusals


@pytest.mark.parametrize("said", [0, 1, 3, 1 << 40])
def test_a_wrong_number_of_pages_is_refused(pc: Machine, said: int) -> None:
    sender, stage = Sender(), Stage(pc, noise(1), 9)
    sender.rows[[2, 5], 0] ^= 1
    for batch in sender.batches():
        stage.add(batch)
    with pytest.raises(ProtocolViolation, match=f"epoch 9: 2 pages came, the peer says it sent {said}"):
        stage.seal(vmstate(pc, said))
    assert not stage.is_sealed


def refused(pc: Machine, sections: dict[str, bytes], match: str) -> None:
    before = pc.digest
    stage = Stage(pc, noise(1), 4)
    with pytest.raises(ProtocolViolation, match=match) as caught:
        stage.seal(VmstateSize(4, b"", 0, sections, []))
    assert str(caught.value).startswith("epoch 4: device state: ")
    assert not stage.is_sealed
    assert pc.digest == before, "the machine is untouched"


def test_a_missing_or_an_unknown_section_is_refused_by_name(pc: Machine) -> None:
    whole = pc.everything()
    refused(pc, {name: data for name, data in whole.items() if name != "pit"}, r"\['pit'\].*one side")
    refused(pc, whole | {"flux": b""}, r"\['flux'\].*one side")
    refused(pc, {}, "one side")


def test_a_malformed_section_is_refused_with_the_field(pc: Machine) -> None:
    whole = pc.everything()
    refused(pc, whole | {"pit": whole["pit"] + b"\0"}, "Pit")
    refused(pc, whole | {"cpu": whole["cpu"][:-1]}, "Cpu")
    state = pc.devices["rtc"].state
    good, state.index = state.index, 0x4000
    bad = msgspec.msgpack.encode(state)
    state.index = good
    refused(pc, whole | {"rtc": bad}, r"RtcState.*index")


def test_changes_of_a_disk_are_checked_as_well(pc: Machine) -> None:
    """What is sealed is a promise: a survivor could not take it back."""
    whole = pc.everything()
    refused(pc, whole | {"medium0": b"short"}, "disk")
    refused(pc, whole | {"medium0": whole["medium0"] + b"\0"}, "disk")
    refused(
        pc, whole | {"medium0": whole["medium0"][:16] + bytes(16) + whole["medium0"][32:]}, "another base"
    )
    refused(pc, whole | {"medium1": whole["medium0"]}, "disk 1")
    refused(pc, whole | {"mediumx": whole["medium0"]}, "disk x")
    refused(pc, {name: data for name, data in whole.items() if name != "medium0"}, "disk 0")
    assert pc.disks[0].read(8, 1) == b"x" * 512


batches = st.builds(
    RamPages,
    st.just(0),
    st.one_of(st.integers(-1, 5000), st.just(1)),
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda flag, size, body: HEADER.pack(flag, size) + body,
            st.sampled_from([PLAIN, LZ4, 2]),
            st.integers(0, 400),
            st.binary(max_size=400),
        ),
        st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=40).map(
            lambda words: (
                HEADER.pack(PLAIN, 4 * len(words)) + b"".join(word.to_bytes(4, "little") for word in words)
            )
        ),
        st.lists(st.integers(0, PAGES + 1), min_size=1, max_size=8, unique=True).map(
            lambda pages: (
                HEADER.pack(PLAIN, 4 * len(pages))
                + b"".join(page.to_bytes(4, "little") for page in sorted(pages))
            )
        ),
    ),
)


@given(st.lists(batches, min_size=1, max_size=6))
def test_hostile_batches_are_refused_or_staged_and_touch_nothing(
    pc: Machine, hostile: list[RamPages]
) -> None:
    """Whatever comes: ProtocolViolation, or pages inside RAM; what was staged before stays."""
    image = noise(1)
    sender, stage = Sender(), Stage(pc, image, 0)
    sender.rows[[0, 40, PAGES - 1], 0] ^= 1
    for batch in sender.batches():
        stage.add(batch)
    accepted = sender.count
    for batch in hostile:
        try:
            stage.add(batch)
            accepted += batch.count
        except ProtocolViolation:
            assert stage.page_count <= accepted
    assert (image == noise(1)).all()
    assert stage.page_count <= min(accepted, PAGES)
    stage.seal(vmstate(pc, accepted))
    stage.install_pages()
    untouched = np.setdiff1d(np.arange(PAGES), stage.pages)
    assert (image.reshape(-1, PAGE_SIZE)[untouched] == noise(1).reshape(-1, PAGE_SIZE)[untouched]).all()


def test_a_refused_batch_leaves_the_stage_as_it_was(pc: Machine) -> None:
    sender, image = Sender(), noise(1)
    stage = Stage(pc, image, 0)
    sender.rows[[1, 2], 0] ^= 1
    (good,) = sender.batches()
    stage.add(good)
    for bad in (
        RamPages(0, good.count + 1, good.data),
        RamPages(0, good.count, good.data[:-4]),
        RamPages(0, good.count, good.data + bytes(4)),
        RamPages(0, 0, good.data),
    ):
        with pytest.raises(ProtocolViolation):
            stage.add(bad)
    stage.seal(vmstate(pc, 2))
    stage.install_pages()
    assert (image == sender.ram).all()


def test_a_sealed_state_is_one_that_a_machine_takes() -> None:
    """Sealing lets through what loading takes: a running machine's own state."""
    with machine(COUNT) as origin, machine(COUNT) as other:
        origin.run(3 * MS)
        image = np.zeros(MIB, np.uint8)
        stage, outgoing, shadow = Stage(other, image, 0), Outgoing(MIB, False), np.zeros(MIB, np.uint8)
        outgoing.capture(origin.ram.array, shadow, None)
        pages = 0
        for count, data in outgoing.batches(shadow):
            stage.add(RamPages(0, count, data))
            pages += count
        stage.seal(VmstateSize(0, b"", pages, origin.everything(), []))
        stage.install_pages()
        other.ram.write(0, image.tobytes())
        assert stage.vmstate is not None
        other.load_sections(stage.vmstate.sections)
        assert origin.differences(other) == []
