"""BIOS calls with arbitrary registers and an arbitrary data area: nothing is raised, nothing loops."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boot.real_mode import Disk, Latch
from vmm.boot import bios_rom
from vmm.boot.bios import Bios
from vmm.clock import ManualClock
from vmm.ram import Ram

NAMES = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp")
CONTINUATIONS = {
    bios_rom.DONE,
    bios_rom.HALT,
    bios_rom.WAIT_KEY,
    bios_rom.WAIT_TIME,
    bios_rom.SPIN_TIME,
    bios_rom.KEY_TAKEN,
}


class Registers:
    """32-bit registers with their low halves, and segments."""

    def __init__(self, values: dict[str, int]) -> None:
        self.values = values

    def get(self, name: str) -> int:
        if name in self.values:
            return self.values[name]
        return self.values["e" + name] & 0xFFFF

    def set(self, name: str, value: int) -> None:
        assert value >= 0
        if name in self.values:
            assert value < 1 << (32 if name.startswith("e") and name != "es" else 16)
            self.values[name] = value
        else:
            assert value < 1 << 16, f"{name} = {value:#x}"
            self.values["e" + name] = self.values["e" + name] & 0xFFFF0000 | value


word = st.integers(0, 0xFFFF) | st.sampled_from([0, 1, 0x7C00, 0xFFFF, 0x80])


@settings(max_examples=250)
@given(
    vector=st.sampled_from([*bios_rom.SERVICES, bios_rom.VECTOR_KEYBOARD]) | st.integers(0, 0xFFFF),
    function=st.integers(0, 0xFF) | st.sampled_from([0x42, 0x48, 0x87, 0xE8, 0x13]),
    general=st.lists(st.integers(0, 0xFFFFFFFF), min_size=7, max_size=7),
    segments=st.lists(word, min_size=3, max_size=3),
    area=st.binary(max_size=256),
    drive=st.sampled_from([0, 0x80, 0x81]),
)
def test_any_call(
    vector: int, function: int, general: list[int], segments: list[int], area: bytes, drive: int
) -> None:
    values = dict(zip(NAMES, general, strict=True)) | dict(zip(("ds", "es", "ss"), segments, strict=True))
    values |= {"cs": bios_rom.SEGMENT, "esp": general[0] & 0xFFFF}
    values["eax"] = values["eax"] & 0xFFFF00FF | function << 8
    values["edx"] = values["edx"] & ~0xFF | drive
    registers, memory = Registers(values), Ram(1)
    bios = Bios(
        registers, memory, Latch(0), ManualClock(), {0: Disk(bytes(2880 * 512)), 0x80: Disk(bytes(10240))}
    )
    bios_rom.install(memory, [0, 0x80])
    memory.write(0x400, area)
    stack = values["ss"] * 16 + values["esp"]
    if stack + 8 <= memory.size:
        memory.write(stack, vector.to_bytes(2, "little"))
    bios.write(0, 1, values["eax"] & 0xFF)
    assert bios.read(0, 1) == 0xFF
    if 0x500 <= stack < 0x8000 and vector in (0x11, 0x12, 0x18, bios_rom.VECTOR_KEYBOARD):
        assert int.from_bytes(memory.read(stack, 2), "little") in CONTINUATIONS
