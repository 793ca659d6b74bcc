"""Scan codes of a US keyboard: set 1, set 2, and the characters that keys type.

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard": scan code sets 1 and 2, and
the translation table of the controller.  Tables only; nothing here has state.
"""

from __future__ import annotations

from msgspec import Meta

SCAN_SETS = Meta(ge=1, le=2)
BREAK_PREFIX = 0xF0  # set 2: the next code is a release
RELEASE = 0x80  # set 1: bit of a release
EXTENDED = (0xE0, 0xE1)

_LOW = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
)
TO_SET1 = _LOW + bytes([0x80, 0x81, 0x82, 0x41, 0x54]) + bytes(range(0x85, 0x100))
"""What the controller makes of each set 2 byte."""

_TO_SET2 = {set1: set2 for set2, set1 in enumerate(TO_SET1[:0x80])} | {0x41: 0x83, 0x54: 0x84}

_ROWS = (  # first set 1 code of a row, its keys plain and with shift
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
    (0x1C, "\n", "\n"),
    (0x1C, "\r", "\r"),
    (0x0F, "\t", "\t"),
    (0x0E, "\b", "\b"),
    (0x01, "\x1b", "\x1b"),
)
LEFT_SHIFT = 0x2A
LEFT_CTRL = 0x1D
PLAIN = {key: first + i for first, keys, _ in _ROWS for i, key in enumerate(keys)}
SHIFTED = {key: first + i for first, _, keys in _ROWS for i, key in enumerate(keys) if key not in PLAIN}


def typed(character: str) -> bytes:
    """Set 1 codes of the keys that type ``character``; empty when there are none."""
    if character in PLAIN:
        code = PLAIN[character]
        return bytes([code, code | RELEASE])
    if character in SHIFTED:
        return _with(LEFT_SHIFT, SHIFTED[character])
    letter = chr(ord(character) + 0x60) if ord(character) < 0x20 else ""
    return _with(LEFT_CTRL, PLAIN[letter]) if letter in PLAIN else b""


def _with(modifier: int, code: int) -> bytes:
    return bytes([modifier, code, code | RELEASE, modifier | RELEASE])


def to_set2(codes: bytes) -> bytes:
    """Set 1 make and break codes as a keyboard in set 2 sends them; unknown codes are left out."""
    out = bytearray()
    for code in codes:
        if code in EXTENDED:
            out.append(code)
        elif code & ~RELEASE in _TO_SET2:
            if code & RELEASE:
                out.append(BREAK_PREFIX)
            out.append(_TO_SET2[code & ~RELEASE])
    return bytes(out)
