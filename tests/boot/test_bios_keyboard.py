"""INT 16h and INT 09h from real code: scan codes in, keys out."""

from __future__ import annotations

import pytest

from tests.boot.real_mode import STOP, RealModePc, call, ran


def test_key_is_waited_for() -> None:
    """00h halts in the ROM until IRQ 1 has brought a key."""
    pc = RealModePc(call(0x16, ax=0x0000) + STOP)
    pc.keys.extend((0x9E, 0x2A, 0x1E, 0xAA))  # a release; then Shift, A
    pc.run()
    assert pc.registers.get("ax") == 0x1E41
    assert pc.registers.get("sp") == 0x7C00


def pressed(codes: list[int], function: int = 0x10) -> int:
    pc = RealModePc(call(0x16, ax=function << 8) + STOP)
    pc.keys.extend(codes)
    pc.run()
    return pc.registers.get("ax")


@pytest.mark.parametrize(
    ("codes", "word"),
    [
        ([0x1E], 0x1E61),
        ([0x3A, 0x1E], 0x1E41),  # Caps Lock
        ([0x3A, 0x02], 0x0231),  # which leaves digits alone
        ([0x2A, 0x02], 0x0221),
        ([0x1D, 0x2E], 0x2E03),  # Ctrl-C
        ([0x38, 0x02], 0x7800),  # Alt-1
        ([0x1C], 0x1C0D),
        ([0x39], 0x3920),
        ([0x3B], 0x3B00),
        ([0x2A, 0x3B], 0x5400),
        ([0x57], 0x8500),
        ([0x48], 0x4800),
        ([0x45, 0x48], 0x4838),  # Num Lock
        ([0xE0, 0x48], 0x48E0),  # the grey arrow
        ([0xE0, 0x1C], 0x1C0D),
        ([0x2A, 0x0F], 0x0F00),
        ([0xFA, 0x1E], 0x1E61),  # the keyboard's acknowledgement is no key
    ],
)
def test_translation(codes: list[int], word: int) -> None:
    assert pressed(codes) == word


def test_grey_keys_look_plain_to_old_programs() -> None:
    assert pressed([0xE0, 0x48], function=0x00) == 0x4800


def test_key_status() -> None:
    pc = ran(call(0x16, ax=0x0100))
    assert pc.registers.get("eflags") & 0x40, "ZF: no key"
    pc = ran(call(0x16, ax=0x0500, cx=0x1234) + call(0x16, ax=0x0100))
    assert not pc.registers.get("eflags") & 0x40
    assert pc.registers.get("ax") == 0x1234


def test_buffer_holds_fifteen_keys() -> None:
    pc = ran(call(0x16, ax=0x0500, cx=0x1234) * 16)
    assert pc.registers.get("ax") & 0xFF == 1, "the sixteenth has no room"
    pc = ran(call(0x16, ax=0x0500, cx=0x1234) * 15)
    assert pc.registers.get("ax") & 0xFF == 0
