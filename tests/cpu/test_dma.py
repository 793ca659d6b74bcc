"""Translated code and bus masters: what a device has put into guest memory is what runs next."""

from __future__ import annotations

import os
import struct

import pytest

from tests.cpu.assembler import assemble
from tests.cpu.machine import Machine, long
from vmm.ram import PAGE_SIZE

CODE = 0x5_0800
"""In the middle of a page."""
ELSEWHERE = 0x10_0000


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (CODE, 6),
        (CODE - 0x800, PAGE_SIZE),
        (CODE - 0x900, 0x906),
        (CODE, 2 * PAGE_SIZE),
        (CODE - 0x2800, 4 * PAGE_SIZE),
    ],
)
def test_code_that_a_device_replaced_is_not_executed(machine: Machine, address: int, length: int) -> None:
    """The guest calls a function, tells a device to read another over it, and calls again."""
    long(machine, f"mov rbx, {CODE}; call rbx; out 0x10, eax; call rbx; out 0x14, eax; hlt")
    machine.load("mov eax, 1; ret", 64, CODE)
    sector = bytearray(length)
    new = assemble("mov eax, 2; ret", CODE, 64).code
    sector[CODE - address : CODE - address + len(new)] = new
    others = [(ELSEWHERE + PAGE_SIZE * number, PAGE_SIZE) for number in range(20)]
    rows = [*others[:10], (address, length), *others[10:]]
    table = b"".join(struct.pack("<QI4x", *row) for row in rows)
    disk = os.memfd_create("disk")

    def read() -> None:
        machine.ports.on_write = None
        pieces = machine.ram.pieces(table)
        assert pieces.read_file(disk, 0) == pieces.size
        pieces.written()

    try:
        os.pwrite(disk, bytes(10 * PAGE_SIZE) + sector + bytes(10 * PAGE_SIZE), 0)
        machine.ports.on_write = read
        machine.run()
    finally:
        os.close(disk)
    assert machine.ports.log == [(0x10, 4, 1), (0x14, 4, 2)]
