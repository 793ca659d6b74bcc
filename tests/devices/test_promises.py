"""The eight promises of ``vmm/device.py``, for every device that has a rig."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import random
from pathlib import Path

import msgspec
import pytest

from tests.devices.promises import RIGS, SIZES, STEPS, build, twin_of, wiring
from vmm.errors import StateError
from vmm.state import pack, unpack

for _module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "rigs")])):
    importlib.import_module(f"tests.devices.rigs.{_module}")

SEEDS = range(20)
every_rig = pytest.mark.parametrize("name", sorted(RIGS))


@every_rig
def test_reset_is_a_fresh_device(name: str) -> None:
    fresh = build(name)
    for seed in SEEDS[:5]:
        rig = build(name).used(seed)
        rig.device.reset()
        for companion in rig.companions:
            companion.reset()
        assert pack(rig.device.state) == pack(fresh.device.state), f"seed {seed}"
        assert rig.levels() == fresh.levels(), f"seed {seed}"


@every_rig
def test_unpack_of_pack_is_the_same_state(name: str) -> None:
    for seed in SEEDS:
        state = build(name).used(seed).device.state
        again = unpack(type(state), pack(state))
        assert again == state
        assert pack(again) == pack(state)


@every_rig
@pytest.mark.parametrize("seed", SEEDS)
def test_restored_twin_is_indistinguishable(name: str, seed: int) -> None:
    original = build(name).used(seed, steps=(0, 10, 50, STEPS)[seed % 4])
    twin = twin_of(name, original)
    assert twin.levels() == original.levels()
    future, same_future = random.Random(seed + 1000), random.Random(seed + 1000)
    for number in range(STEPS):
        shown, shown_by_twin = original.step(future), twin.step(same_future)
        assert shown_by_twin == shown, f"step {number}"
        assert twin.levels() == original.levels(), f"step {number}"
    assert pack(twin.device.state) == pack(original.device.state)


@every_rig
def test_restoring_twice_is_restoring_once(name: str) -> None:
    for seed in SEEDS[:5]:
        original = build(name).used(seed)
        once, twice = twin_of(name, original), twin_of(name, original)
        before = pack(once.device.state)
        twice.device.restored()
        assert twice.log == [], f"seed {seed}: the second time moved something that a rig records"
        assert pack(twice.device.state) == before
        assert twice.levels() == once.levels()
        assert twice.clock.deadlines() == once.clock.deadlines()


@every_rig
def test_no_stray_attribute_can_exist(name: str) -> None:
    rig = build(name)
    for thing in (rig.device, rig.device.state, *(view for view, _ in rig.views.values())):
        with pytest.raises(AttributeError):
            thing.stray = 1


@every_rig
def test_any_offset_and_size_is_answered_in_range(name: str) -> None:
    rig = build(name).used(seed=1, steps=20)
    for view_name, (view, count) in sorted(rig.views.items()):
        offsets = [*range(-1, min(count, 64) + 1), count - 1, count, count + 1000]
        for offset in offsets:
            for size in SIZES:
                value = view.read(offset, size)
                assert 0 <= value < 1 << 8 * size, f"{view_name}[{offset}] of size {size}: {value:#x}"
                for written in (0, (1 << 8 * size) - 1, 0x5555555555555555 & (1 << 8 * size) - 1):
                    view.write(offset, size, written)


@every_rig
def test_wiring_stays_what_it_was(name: str) -> None:
    rig = build(name)
    before = wiring(rig.device)
    contents = {key: copy.copy(value) for key, value in before.items() if _is_container(value)}
    rig.used(seed=2)
    rig.device.state = unpack(type(rig.device.state), pack(rig.device.state))
    rig.device.restored()
    rig.device.reset()
    after = wiring(rig.device)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] is value, f"{key} was rebound"
    for key, content in contents.items():
        assert before[key] == content, f"{key} holds state outside of ``state``"


def _is_container(value: object) -> bool:
    return isinstance(value, list | dict | set | bytearray)


@every_rig
def test_corrupt_state_is_refused(name: str) -> None:
    state = build(name).used(seed=3).device.state
    good = pack(state)
    kind = type(state)
    ends = range(len(good)) if len(good) < 512 else (*range(64), *range(len(good) - 64, len(good)))
    for end in ends:
        with pytest.raises(StateError):
            unpack(kind, good[:end])
    for bad in (good + b"\x00", good + good, b"\xc0", b"[]", msgspec.msgpack.encode({"state": 1})):
        with pytest.raises(StateError):
            unpack(kind, bad)
    fields = msgspec.msgpack.decode(good)
    for index, field_name in enumerate(kind.__struct_fields__):
        wrong = [*fields[:index], {"not": "this"}, *fields[index + 1 :]]
        with pytest.raises(StateError, match=field_name):
            unpack(kind, msgspec.msgpack.encode(wrong))


@every_rig
def test_flipped_bits_are_refused_or_are_another_valid_state(name: str) -> None:
    state = build(name).used(seed=4).device.state
    good = pack(state)
    rng = random.Random(name)
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        try:
            read = unpack(type(state), bytes(bad))
        except StateError:
            continue
        assert pack(read) == bytes(bad)
