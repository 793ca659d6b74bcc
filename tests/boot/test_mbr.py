"""Raw boot sectors (BIOS Boot Specification 1.01, 6.5.1)."""

from __future__ import annotations

import pytest

from tests.boot import images
from vmm.boot import mbr
from vmm.errors import ImageError
from vmm.ram import Ram


def test_sector_and_registers() -> None:
    memory = Ram(1)
    disk = images.boot_sector() + b"second sector"
    entry = mbr.load(memory, disk)
    assert memory.read(0x7C00, 512) == disk[:512]
    assert not any(memory.read(0x7E00, 512)), "the rest is read by the sector itself"
    assert (entry.mode, entry.segments["cs"].selector, entry.ip) == ("real", 0, 0x7C00)
    assert entry.registers == {"rdx": 0x80, "rsp": 0x7C00}
    assert entry.rflags & 1 << 9, "interrupts are on"
    assert mbr.load(memory, disk, drive=0).registers["rdx"] == 0


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "0 bytes, a boot sector has 512"),
        (images.boot_sector()[:511], "511 bytes"),
        (bytes(512), "00 00 at offset 510, expected 55 aa"),
        (bytes(510) + b"\xaa\x55", "aa 55 at offset 510"),
    ],
)
def test_refused(image: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        mbr.load(Ram(1), image)
