"""fw_cfg against QEMU's specification of the device."""

from __future__ import annotations

import struct

import pytest

from vmm.devices.fwcfg import FwCfg
from vmm.errors import ConfigError


def item(device: FwCfg, key: int, length: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(length))


@pytest.fixture
def device() -> FwCfg:
    return FwCfg(256 << 20, 1, {"opt/b": b"second", "opt/a": b"first"})


def test_well_known_items(device: FwCfg) -> None:
    assert item(device, 0x00, 4) == b"QEMU"
    assert item(device, 0x01, 4) == b"\1\0\0\0", "no DMA interface"
    assert item(device, 0x03, 8) == struct.pack("<Q", 256 << 20)
    assert item(device, 0x05, 2) == item(device, 0x0F, 2) == b"\1\0"
    assert item(device, 0x8002, 4) == b"\1\0\0\0"


def test_unknown_items_and_reads_past_the_end_are_zero(device: FwCfg) -> None:
    assert item(device, 0x7777, 4) == bytes(4)
    assert item(device, 0x00, 8) == b"QEMU" + bytes(4)


def test_selecting_starts_again(device: FwCfg) -> None:
    assert item(device, 0x00, 2) == b"QE"
    assert item(device, 0x00, 2) == b"QE"


def test_directory_is_big_endian_and_leads_to_the_files(device: FwCfg) -> None:
    directory = item(device, 0x19, 4 + 2 * 64)
    assert directory[:4] == b"\0\0\0\2"
    found = {}
    for at in (4, 68):
        size, key, name = struct.unpack(">IH2x56s", directory[at : at + 64])
        found[name.rstrip(b"\0").decode()] = item(device, key, size)
    assert found == {"opt/a": b"first", "opt/b": b"second"}
    assert item(FwCfg(1 << 20, 1), 0x19, 4) == bytes(4), "empty by default"


def test_only_a_16_bit_write_selects(device: FwCfg) -> None:
    assert item(device, 0x05, 1) == b"\1"
    device.write(0, 1, 0)
    device.write(1, 1, 0x55)
    assert device.read(1, 1) == 0, "still the high byte of the CPU count"
    assert device.read(0, 1) == 0xFF, "the selector is write-only"


@pytest.mark.parametrize("files", [{"n" * 56: b""}, {"": b""}, {"é": b""}, {str(n): b"" for n in range(257)}])
def test_impossible_files_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(ConfigError, match="fw_cfg"):
        FwCfg(1 << 20, 1, files)
