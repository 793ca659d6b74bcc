"""8042 and keyboard: IBM PS/2 Hardware Interface Technical Reference, and what Linux asks."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.promises import Rig
from vmm.devices import keymap
from vmm.devices.i8042 import ANSWERS_MAX, I8042, KEYS_MAX

DATA, COMMAND = 0, 4
FULL = 0x01


@pytest.fixture
def chip(bench: Rig) -> I8042:
    return I8042(
        irq=bench.line("irq1"),
        aux_irq=bench.line("irq12"),
        reset=bench.sink("reset"),
        set_a20=bench.sink("a20"),
    )


def drain(chip: I8042) -> bytes:
    """Read until the output buffer stays empty."""
    out = bytearray()
    while chip.read(COMMAND, 1) & FULL:
        out.append(chip.read(DATA, 1))
    return bytes(out)


def command(chip: I8042, code: int, *parameters: int) -> bytes:
    chip.write(COMMAND, 1, code)
    for value in parameters:
        chip.write(DATA, 1, value)
    return drain(chip)


def keyboard(chip: I8042, *codes: int) -> bytes:
    for code in codes:
        chip.write(DATA, 1, code)
    return drain(chip)


def untranslated(chip: I8042) -> None:
    command(chip, 0x60, 0x05)


def test_self_tests(chip: I8042) -> None:
    """Commands AA and AB."""
    assert command(chip, 0xAA) == b"\x55"
    assert command(chip, 0xAB) == b"\x00"


def test_command_byte_and_ram(bench: Rig, chip: I8042) -> None:
    """Commands 20-3F and 60-7F."""
    assert command(chip, 0x20) == b"\x65"
    command(chip, 0x60, 0x74)
    assert command(chip, 0x20) == b"\x74"
    command(chip, 0x7F, 0x99)
    assert command(chip, 0x3F) == b"\x99"
    assert not bench.lines["irq1"].level


def test_auxiliary_port_is_absent(bench: Rig, chip: I8042) -> None:
    """As i8042_check_aux in Linux finds out: D3 comes back unmarked, A9 finds a fault."""
    chip.write(COMMAND, 1, 0xD3)
    chip.write(DATA, 1, 0x5A)
    assert chip.read(COMMAND, 1) & 0x21 == 0x01, "not from the auxiliary device"
    assert drain(chip) == b"\x5a"
    assert command(chip, 0xA9) not in (b"\x00", b"\xfa", b"\xff")
    chip.write(COMMAND, 1, 0xD4)
    chip.write(DATA, 1, 0xF2)
    assert chip.read(COMMAND, 1) & 0x60 == 0x60, "time-out"
    assert drain(chip) == b"\xfe"
    assert not bench.lines["irq12"].level


def test_reset_pulse(bench: Rig, chip: I8042) -> None:
    """Commands F0-FF pulse the pins whose bit is 0; pin 0 is the processor's reset."""
    command(chip, 0xFF)
    assert bench.log == []
    command(chip, 0xFE)
    assert bench.log == [("reset",)]


def test_output_port(bench: Rig, chip: I8042) -> None:
    """Commands D0, D1, DD and DF."""
    assert command(chip, 0xD0) == b"\xc3"
    command(chip, 0xD1, 0xDD)
    command(chip, 0xDF)
    command(chip, 0xDD)
    assert command(chip, 0xD0) == b"\xc1"
    assert [entry for entry in bench.log if entry[0] == "a20"] == [("a20", v) for v in (False, True, False)]
    command(chip, 0xD1, 0xFE)
    assert ("reset",) in bench.log


def test_keyboard_commands(chip: I8042) -> None:
    """Keyboard: each is acknowledged; reset passes its test; the ID is AB 83."""
    untranslated(chip)
    assert keyboard(chip, 0xFF) == b"\xfa\xaa"
    assert keyboard(chip, 0xF2) == b"\xfa\xab\x83"
    assert keyboard(chip, 0xEE) == b"\xee"
    assert keyboard(chip, 0xED, 0x07) == b"\xfa\xfa"
    assert chip.state.leds == 7
    assert keyboard(chip, 0xF3, 0x20) == b"\xfa\xfa"
    assert keyboard(chip, 0xF0, 0x00) == b"\xfa\xfa\x02"
    assert keyboard(chip, 0xF0, 0x03) == b"\xfa\xfe", "set 3 is refused"
    assert keyboard(chip, 0xF4) == b"\xfa"
    assert keyboard(chip, 0x12) == b"\xfe"


def test_id_is_translated(chip: I8042) -> None:
    """With translation on, 83 arrives as 41, as on every PC."""
    assert keyboard(chip, 0xF2) == b"\xfa\xab\x41"


def test_keys_arrive_one_by_one_with_an_edge_each(bench: Rig, chip: I8042) -> None:
    chip.press(b"\x1e\x9e")
    assert bench.log == [("irq1", True)]
    assert chip.read(DATA, 1) == 0x1E
    assert bench.log == [("irq1", True), ("irq1", False), ("irq1", True)]
    assert chip.read(DATA, 1) == 0x9E
    assert not bench.lines["irq1"].level
    assert chip.read(DATA, 1) == 0x9E, "an empty buffer shows its last byte"


def test_set_2_without_translation(chip: I8042) -> None:
    untranslated(chip)
    chip.press(b"\x1e\x9e\xe0\x48\xe0\xc8\x41\xc1")
    assert drain(chip) == bytes.fromhex("1c f0 1c e0 75 e0 f0 75 83 f0 83")


def test_set_1_from_the_keyboard(chip: I8042) -> None:
    untranslated(chip)
    keyboard(chip, 0xF0, 0x01)
    chip.press(b"\x1e\x9e")
    assert drain(chip) == b"\x1e\x9e"


@given(st.lists(st.integers(0x01, 0x58).flatmap(lambda key: st.sampled_from((key, key | 0x80)))))
def test_translation_undoes_set_2(codes: list[int]) -> None:
    """What the host presses in set 1 is what a PC guest reads."""
    rig = Rig(clock=None)  # type: ignore[arg-type]  # no clock is wired to this chip
    chip = I8042(rig.line("irq1"), rig.line("irq12"), rig.sink("reset"), rig.sink("a20"))
    chip.press(bytes(codes))
    assert drain(chip) == bytes(codes)


def test_disabled_interface_holds_keys_back(bench: Rig, chip: I8042) -> None:
    """Commands AD and AE; replies of the controller still pass."""
    command(chip, 0xAD)
    chip.press(b"\x1e")
    assert drain(chip) == b""
    assert command(chip, 0xAA) == b"\x55"
    assert command(chip, 0xAE) == b"\x1e"


def test_disabled_keyboard_drops_keys(chip: I8042) -> None:
    assert keyboard(chip, 0xF5) == b"\xfa"
    chip.press(b"\x1e\x9e")
    assert drain(chip) == b""
    assert chip.state.dropped == 1


def test_queue_has_a_limit_and_keys_stay_whole(chip: I8042) -> None:
    chip.type_text("a" * KEYS_MAX)
    assert len(chip.state.keys) <= KEYS_MAX
    assert chip.state.dropped > 0
    codes = drain(chip)
    assert codes == b"\x1e\x9e" * (len(codes) // 2)


def test_unread_answers_have_a_limit(chip: I8042) -> None:
    for _ in range(10 * ANSWERS_MAX):
        chip.write(DATA, 1, 0xF2)
    assert len(drain(chip)) == ANSWERS_MAX + 1


@pytest.mark.parametrize("character", sorted(set(string.printable) - set("\v\f") | {"\x03", "\x1b"}))
def test_every_printable_character_has_keys(character: str) -> None:
    codes = keymap.typed(character)
    assert codes, repr(character)
    pressed = [code for code in codes if not code & 0x80]
    released = [code & 0x7F for code in codes if code & 0x80]
    assert sorted(pressed) == sorted(released)


def test_shift_and_control(chip: I8042) -> None:
    chip.type_text("A\x03é")
    assert drain(chip) == bytes.fromhex("2a 1e 9e aa 1d 2e ae 9d")


def test_command_view_starts_at_0(chip: I8042) -> None:
    chip.command.write(0, 1, 0xAA)
    assert chip.command.read(0, 1) == chip.read(COMMAND, 1)
    assert drain(chip) == b"\x55"
