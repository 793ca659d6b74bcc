"""ACPI machine language: bytes for the few terms that a table without methods needs.

Source: ACPI specification 6.4, section 20.2 (AML grammar), section 6.4 (resource data types),
section 6.1.5 (_HID, where the compressed EISA identifier is defined by reference to EISA 4.10).

A term is ``bytes``.  Names are written as in ASL: ``\\_SB.PCI0``, ``_HID``.  What does not fit the
grammar is an error of the board's own description: an assertion.

Not here: strings, methods, operation regions, fields, buffers other than resource templates.  The
board's hardware is fixed, so its tables say what is and compute nothing.
"""

from __future__ import annotations

import re
import struct

# Section 20.2: opcodes and prefixes.
ZERO, ONE = 0x00, 0x01
NAME, SCOPE, BUFFER, PACKAGE, DEVICE = b"\x08", b"\x10", b"\x11", b"\x12", b"\x5b\x82"
BYTE, WORD, DWORD, QWORD = b"\x0a", b"\x0b", b"\x0c", b"\x0e"
DUAL_NAME, MULTI_NAME, NULL_NAME = b"\x2e", b"\x2f", b"\x00"
SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
SEGMENTS_MAX = 255
EISA_ID = re.compile(r"[A-Z]{3}[0-9A-F]{4}")
ELEMENTS_MAX = 255
"""Of a package: NumElements is a byte."""

# Section 6.4: resource descriptors.
IO_PORTS, IRQ_NO_FLAGS, END_TAG = 0x47, 0x22, 0x79
DWORD_SPACE, WORD_SPACE = 0x87, 0x88
DECODE_16 = 1
MEMORY_SPACE, IO_SPACE, BUS_SPACE = 0, 1, 2
MIN_FIXED, MAX_FIXED = 1 << 2, 1 << 3
MEMORY_READ_WRITE = 1
IO_ENTIRE_RANGE = 3


def integer(value: int) -> bytes:
    """ComputationalData in its shortest form (20.2.3)."""
    if value in (ZERO, ONE):
        return bytes([value])
    for prefix, form in ((BYTE, "<B"), (WORD, "<H"), (DWORD, "<I"), (QWORD, "<Q")):
        if value < 1 << 8 * struct.calcsize(form):
            return prefix + struct.pack(form, value)
    raise AssertionError(f"AML integer {value:#x}: at most 64 bits")


def name_string(path: str) -> bytes:
    """A NameString (20.2.2): root or parent prefixes, then segments of four characters."""
    body = path.lstrip("\\^")
    prefix = path[: len(path) - len(body)]
    assert prefix == "\\" or set(prefix) <= {"^"}, path
    segments = [_segment(part) for part in body.split(".")] if body else []
    assert len(segments) <= SEGMENTS_MAX, path
    if not segments:
        return prefix.encode() + NULL_NAME
    if len(segments) == 1:
        lead = b""
    elif len(segments) == 2:
        lead = DUAL_NAME
    else:
        lead = MULTI_NAME + bytes([len(segments)])
    return prefix.encode() + lead + b"".join(segments)


def _segment(part: str) -> bytes:
    """A NameSeg: a capital or underscore first, then digits too; short ones end in underscores."""
    assert SEGMENT.fullmatch(part), part
    return part.ljust(4, "_").encode()


def package_length(size: int) -> bytes:
    """PkgLength (20.2.4) of something ``size`` bytes long: it counts itself too."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for more in (1, 2, 3):
        total = size + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little")
    raise AssertionError(f"AML object of {size} bytes: the length has 28 bits")


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """Name (path, value): ``value`` is a data term."""
    return NAME + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    return _sized(SCOPE, name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return _sized(DEVICE, name_string(path) + b"".join(terms))


def package(*elements: bytes) -> bytes:
    assert len(elements) <= ELEMENTS_MAX, len(elements)
    return _sized(PACKAGE, bytes([len(elements)]) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    return _sized(BUFFER, integer(len(data)) + data)


def eisa_id(text: str) -> bytes:
    """EisaId ("PNP0A03"): three letters of five bits and four hexadecimal digits, high byte first."""
    assert EISA_ID.fullmatch(text), text
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    packed = struct.pack(">HH", first << 10 | second << 5 | third, int(text[3:], 16))
    return integer(int.from_bytes(packed, "little"))


# Resources (section 6.4)


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate: the descriptors and an end tag, whose checksum 0 is taken as right (6.4.2.9)."""
    return buffer(b"".join(descriptors) + bytes([END_TAG, 0]))


def io_ports(base: int, count: int) -> bytes:
    """IO (Decode16, base, base, 1, count) (6.4.2.5)."""
    return struct.pack("<BBHHBB", IO_PORTS, DECODE_16, base, base, 1, count)


def irq(number: int) -> bytes:
    """IRQNoFlags (): an ISA interrupt, edge-triggered, active high (6.4.2.1)."""
    return struct.pack("<BH", IRQ_NO_FLAGS, 1 << number)


def bus_numbers(numbers: range) -> bytes:
    """WordBusNumber: the buses behind a bridge."""
    return _window("<5H", WORD_SPACE, BUS_SPACE, 0, numbers)


def io_window(ports: range) -> bytes:
    """WordIO: I/O addresses that a bridge forwards."""
    return _window("<5H", WORD_SPACE, IO_SPACE, IO_ENTIRE_RANGE, ports)


def memory_window(addresses: range) -> bytes:
    """DWordMemory: addresses that a bridge forwards, not cacheable, readable and writable."""
    return _window("<5I", DWORD_SPACE, MEMORY_SPACE, MEMORY_READ_WRITE, addresses)


def _window(form: str, descriptor: int, kind: int, flags: int, addresses: range) -> bytes:
    """An address space descriptor (6.4.3.5): granularity, minimum, maximum, translation, length."""
    numbers = (0, addresses.start, addresses.stop - 1, 0, len(addresses))
    body = struct.pack("<BBB", kind, MIN_FIXED | MAX_FIXED, flags) + struct.pack(form, *numbers)
    return struct.pack("<BH", descriptor, len(body)) + body
