"""INT 09h and INT 16h: from scan codes to keys.

Source: IBM PC/AT technical reference (keyboard data area, scan code set 1, INT 16h functions 00h to
12h).  The ROM's IRQ 1 handler reads port 0x60 and calls :func:`take`; keys go to the ring in the
BIOS data area, from which INT 16h hands them out.

Not here: other layouts than US, Pause and Print Screen, Ctrl-Alt-Del, LEDs, the INT 15h/4Fh
intercept.
"""

from __future__ import annotations

from vmm.boot import bios_rom as rom
from vmm.boot.bios_call import Call
from vmm.boot.memory_map import BDA

RELEASED = 0x80
EXTENDED = 0xE0
STATE_EXTENDED = 1 << 1
"""BDA_KEY_STATE: the last code was E0."""
FIRST_ANSWER = 0xFA
"""Codes from here on are the keyboard's answers, not keys."""

# BDA_KEY_FLAGS.
RIGHT_SHIFT, LEFT_SHIFT, CTRL, ALT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SCROLL_LOCK, NUM_LOCK, CAPS_LOCK = 1 << 4, 1 << 5, 1 << 6
HELD = {0x36: RIGHT_SHIFT, 0x2A: LEFT_SHIFT, 0x1D: CTRL, 0x38: ALT}
TOGGLED = {0x46: SCROLL_LOCK, 0x45: NUM_LOCK, 0x3A: CAPS_LOCK}

# US layout: ASCII of scan codes 01h to 39h, and with Shift.
PLAIN = b"\x1b1234567890-=\x08\tqwertyuiop[]\r\x00asdfghjkl;'`\x00\\zxcvbnm,./\x00*\x00 "
SHIFTED = b'\x1b!@#$%^&*()_+\x08\x00QWERTYUIOP{}\r\x00ASDFGHJKL:"~\x00|ZXCVBNM<>?\x00*\x00 '
KEYPAD = dict(zip(range(0x47, 0x54), b"789-456+1230.", strict=True))
KEYPAD_ALWAYS = (0x4A, 0x4E)
KEYPAD_EXTENDED = {0x1C: 0x0D, 0x35: 0x2F}
"""Grey Enter and slash have their ASCII."""
FUNCTION_KEYS = range(0x3B, 0x45)
F11_F12 = {0x57: 0x85, 0x58: 0x86}
SHIFT_F, CTRL_F, ALT_F = 0x54, 0x5E, 0x68
"""Codes of F1 with Shift, Ctrl, Alt; the others follow."""
DIGITS = range(0x02, 0x0E)
ALT_DIGIT = 0x78
CTRL_SPECIAL = {0x03: 0x00, 0x07: 0x1E, 0x0C: 0x1F, 0x0E: 0x7F, 0x1C: 0x0A}
SHIFT_TAB = 0x0F00


def take(call: Call, code: int) -> None:
    """One byte from the keyboard."""
    state = call.byte(rom.BDA_KEY_STATE)
    if code == EXTENDED:
        call.put_byte(rom.BDA_KEY_STATE, state | STATE_EXTENDED)
        return
    extended = bool(state & STATE_EXTENDED)
    call.put_byte(rom.BDA_KEY_STATE, state & ~STATE_EXTENDED)
    if code >= FIRST_ANSWER or code == 0:
        return
    key, flags = code & ~RELEASED, call.byte(rom.BDA_KEY_FLAGS)
    if key in HELD:
        if not (extended and key in (0x2A, 0x36)):  # the false shifts around grey keys
            flags = flags & ~HELD[key] if code & RELEASED else flags | HELD[key]
            call.put_byte(rom.BDA_KEY_FLAGS, flags)
    elif code & RELEASED:
        return
    elif key in TOGGLED and not extended:
        call.put_byte(rom.BDA_KEY_FLAGS, flags ^ TOGGLED[key])
    else:
        word = _translate(key, flags, extended)
        if word is not None:
            _store(call, word)


def _translate(key: int, flags: int, extended: bool) -> int | None:
    """Scan code in the high byte, ASCII in the low one; None for keys that give nothing."""
    if extended:
        return key << 8 | KEYPAD_EXTENDED.get(key, EXTENDED)
    if key in FUNCTION_KEYS:
        return _function_key(key, flags) << 8
    if key in F11_F12:
        return F11_F12[key] << 8
    if key in KEYPAD:
        shifted = bool(flags & (LEFT_SHIFT | RIGHT_SHIFT)) != bool(flags & NUM_LOCK)
        return key << 8 | (KEYPAD[key] if shifted or key in KEYPAD_ALWAYS else 0)
    if key > len(PLAIN):
        return None
    if flags & ALT:
        return (key + ALT_DIGIT - DIGITS.start if key in DIGITS else key) << 8
    if flags & CTRL:
        return _control(key)
    return _plain(key, flags)


def _function_key(key: int, flags: int) -> int:
    for held, first in ((ALT, ALT_F), (CTRL, CTRL_F), (LEFT_SHIFT | RIGHT_SHIFT, SHIFT_F)):
        if flags & held:
            return first + key - FUNCTION_KEYS.start
    return key


def _control(key: int) -> int | None:
    if key in CTRL_SPECIAL:
        return key << 8 | CTRL_SPECIAL[key]
    character = PLAIN[key - 1]
    if chr(character).isalpha() or character in b"[\\]":
        return key << 8 | character & 0x1F
    return key << 8 | character if character in b"\x1b " else None


def _plain(key: int, flags: int) -> int | None:
    shift = bool(flags & (LEFT_SHIFT | RIGHT_SHIFT))
    if key == 0x0F and shift:
        return SHIFT_TAB
    character = PLAIN[key - 1]
    if shift != (bool(flags & CAPS_LOCK) and chr(character).isalpha()):
        character = SHIFTED[key - 1]
    return key << 8 | character if character else None


# The ring in the data area.


def _bounds(call: Call) -> tuple[int, int]:
    """First and end offset of the ring; the guest may move it, but not to nonsense."""
    start, end = call.word(rom.BDA_KEY_START), call.word(rom.BDA_KEY_END)
    return (start, end) if start + 2 < end and (end - start) % 2 == 0 else (0x1E, 0x3E)


def _next(call: Call, at: int) -> int:
    start, end = _bounds(call)
    return at + 2 if start <= at and at + 2 < end else start


def _store(call: Call, word: int) -> bool:
    """Put a key at the tail; False when the ring is full."""
    tail = call.word(rom.BDA_KEY_TAIL)
    after = _next(call, tail)
    if after == call.word(rom.BDA_KEY_HEAD):
        return False
    call.put_word(BDA + tail, word)
    call.put_word(rom.BDA_KEY_TAIL, after)
    return True


def _first(call: Call) -> int | None:
    head = call.word(rom.BDA_KEY_HEAD)
    return None if head == call.word(rom.BDA_KEY_TAIL) else call.word(BDA + head)


def service(call: Call) -> None:
    """One INT 16h; functions 1xh are those of the 101-key keyboard and tell E0 keys apart."""
    function = call.high("ax")
    match function:
        case 0x00 | 0x10:
            word = _first(call)
            if word is None:
                call.go_on_at(rom.WAIT_KEY)
                return
            call.put_word(rom.BDA_KEY_HEAD, _next(call, call.word(rom.BDA_KEY_HEAD)))
            call.set("ax", _for(function, word))
        case 0x01 | 0x11:
            word = _first(call)
            call.set_zero(word is None)
            if word is not None:
                call.set("ax", _for(function, word))
        case 0x02 | 0x12:
            call.set_low("ax", call.byte(rom.BDA_KEY_FLAGS))
        case 0x05:
            call.set_low("ax", 0 if _store(call, call.get("cx") & 0xFFFF) else 1)


def _for(function: int, word: int) -> int:
    if function < 0x10 and word & 0xFF == EXTENDED and word >> 8:
        return word & 0xFF00
    return word
