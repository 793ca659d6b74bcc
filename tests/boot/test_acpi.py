"""The ACPI tables, read as the specification says, by Intel's compiler, and from a machine's RAM."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.boot import acpi, aml, mptable
from vmm.config import PcConfig
from vmm.devices import acpi_pm, ioapic, pci
from vmm.machine import Ended, Machine, resume
from vmm.ram import Ram

PCI_IRQS = [(1, 0, 11), (2, 0, 10), (3, 0, 11)]
SEARCH = range(0xE0000, 0x100000, 16)
"""ACPI 5.2.5.1: where a kernel searches after the extended BIOS data area."""

needs_iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is not installed (acpica-tools)")


@pytest.fixture
def ram() -> Ram:
    ram = Ram(2)
    acpi.place(ram, PCI_IRQS)
    return ram


def find(ram: Ram) -> bytes:
    """The RSDP as OSPM finds it: signature, and a checksum over the first 20 bytes."""
    at = next(a for a in SEARCH if ram.read(a, 8) == b"RSD PTR " and sum(ram.read(a, 20)) & 0xFF == 0)
    return ram.read(at, 36)


def table(ram: Ram, at: int) -> bytes:
    (length,) = struct.unpack("<I", ram.read(at + 4, 4))
    found = ram.read(at, length)
    assert sum(found) & 0xFF == 0, found[:4]
    return found


def tables(ram: Ram) -> dict[str, bytes]:
    """Every table by its signature, from the RSDP on."""
    rsdt_at, xsdt_at = struct.unpack_from("<IxxxxQ", find(ram), 16)
    rsdt, xsdt = table(ram, rsdt_at), table(ram, xsdt_at)
    listed = struct.unpack(f"<{len(rsdt[36:]) // 4}I", rsdt[36:])
    assert listed == struct.unpack(f"<{len(xsdt[36:]) // 8}Q", xsdt[36:])
    found = [rsdt, xsdt, *(table(ram, at) for at in listed)]
    by_name = {one[:4].decode(): one for one in found}
    facs, dsdt = struct.unpack_from("<II", by_name["FACP"], 36)
    return by_name | {"DSDT": table(ram, dsdt), "FACS": ram.read(facs, 64)}


def madt_entries(madt: bytes) -> Iterator[bytes]:
    at = 44
    while at < len(madt):
        yield madt[at : at + madt[at + 1]]
        at += madt[at + 1]
    assert at == len(madt)


def test_rsdp(ram: Ram) -> None:
    """5.2.5.3: revision 2, the length, and the extended checksum over all of it."""
    rsdp = find(ram)
    assert (rsdp[15], struct.unpack_from("<I", rsdp, 20)[0], sum(rsdp) & 0xFF) == (2, 36, 0)


def test_every_table_is_there(ram: Ram) -> None:
    assert set(tables(ram)) == {"RSDT", "XSDT", "FACP", "APIC", "DSDT", "FACS"}


def test_tables_stay_clear_of_the_mp_tables() -> None:
    most = [(slot, pin, 10) for slot in range(1, 32) for pin in range(4)]
    assert acpi.BASE + len(acpi.build(most)) <= acpi.TABLES_END <= mptable.MP_BASE


def test_facs(ram: Ram) -> None:
    """5.2.10: on a 64-byte boundary, no checksum, global lock free."""
    assert acpi.FACS % 64 == 0
    assert tables(ram)["FACS"] == b"FACS" + struct.pack("<I24xB31x", 64, 2)


def test_fadt_names_the_ports_that_the_board_decodes(ram: Ram) -> None:
    """Offsets from table 5.9; the 64-bit addresses repeat the 32-bit ones."""
    fadt = tables(ram)["FACP"]
    assert (len(fadt), fadt[8], struct.unpack_from("<HI", fadt, 46)) == (276, 6, (9, 0))
    event, control, timer = 0x600, 0x604, 0x608
    assert struct.unpack_from("<8I", fadt, 56) == (event, 0, control, 0, 0, timer, 0, 0)
    assert tuple(fadt[88:94]) == (4, 2, 0, 4, 0, 0)
    generic = {at: struct.unpack_from("<BBBBQ", fadt, at) for at in (116, 148, 172, 208)}
    assert generic == {
        116: (1, 8, 0, 1, 0xCF9),
        148: (1, 32, 0, 2, event),
        172: (1, 16, 0, 2, control),
        208: (1, 32, 0, 3, timer),
    }
    assert fadt[128] == 6
    assert struct.unpack_from("<QQ", fadt, 132) == (0, struct.unpack_from("<I", fadt, 40)[0])


def test_fadt_claims_nothing_that_is_not_there(ram: Ram) -> None:
    fadt = tables(ram)["FACP"]
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags >> 4 & 1 == 0, "the power button is in PM1"
    assert flags >> 5 & 3 == 3, "the sleep button and the RTC's alarm are not"
    assert flags >> 8 & 1 == 0, "the timer has 24 bits"
    assert flags >> 10 & 1 == 1, "the reset register"
    assert flags >> 20 & 1 == 0, "not hardware-reduced"
    assert tuple(fadt[106:109]) == (0, 0, 0x32), "no day and month alarm; the century"
    assert struct.unpack_from("<H", fadt, 109) == (3,), "legacy devices, and an 8042 among them"
    assert struct.unpack_from("<HH", fadt, 96) > (100, 1000), "no C2, no C3"


def test_madt_describes_the_interrupt_controllers(ram: Ram) -> None:
    madt = tables(ram)["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 1)
    by_type: dict[int, list[bytes]] = {}
    for entry in madt_entries(madt):
        by_type.setdefault(entry[0], []).append(entry[2:])
    assert by_type[0] == [struct.pack("<BBI", 0, 0, 1)]
    assert by_type[1] == [struct.pack("<BxII", ioapic.IOAPIC_ID, 0xFEC0_0000, 0)]
    assert by_type[4] == [struct.pack("<BHB", 0xFF, 0, 1)]
    overrides = {
        source: (pin, flags) for _, source, pin, flags in (struct.unpack("<BBIH", e) for e in by_type[2])
    }
    assert overrides == {0: (2, 0), 9: (9, 0xD), 10: (10, 0xF), 11: (11, 0xF)}


def test_madt_agrees_with_the_mp_tables(ram: Ram) -> None:
    """Every ISA interrupt of the MP tables enters the pin that the MADT says, overridden or not."""
    overrides = {e[3]: e[4] for e in madt_entries(tables(ram)["APIC"]) if e[0] == acpi.SOURCE_OVERRIDE}
    words = mptable.build(Ram(2).size, PCI_IRQS)[16 + 44 :]
    sources = [words[at : at + 8] for at in range(20, len(words), 8)]
    routes = {(e[4], e[5]): e[7] for e in sources if e[0] == mptable.IO_INTERRUPT}
    for (bus, source), pin in routes.items():
        if bus == mptable.ISA_BUS:
            assert overrides.get(source, source) == pin
        else:
            assert (source >> 2, source & 3, pin) in PCI_IRQS


def test_tables_of_a_machine() -> None:
    """Found in RAM after power-on and described as reserved; the windows are those of the bridge."""
    with Machine(PcConfig(ram_mib=4)) as machine:
        found = tables(machine.ram)
        window = struct.pack("<5I", 0, 0xE000_0000, 0xFEBF_FFFF, 0, 0x1EC0_0000)
        assert window in found["DSDT"]
        assert struct.pack("<5H", 0, 0xC000, 0xFFFF, 0, 0x4000) in found["DSDT"]
        assert found == tables_of(machine.config)
        machine.ram.write(acpi.BASE, bytes(0x1000))
        machine.reset()
        assert tables(machine.ram) == found


def tables_of(config: PcConfig) -> dict[str, bytes]:
    with Machine(config) as machine:
        return tables(machine.ram)


def test_soft_off_ends_the_run_for_good() -> None:
    """\\_S5 names the SLP_TYP that PM1a_CNT wants; off, the machine stays off, and so does its copy."""
    with Machine(PcConfig(ram_mib=4)) as machine:
        package = tables(machine.ram)["DSDT"].partition(b"_S5_")[2]
        assert package[:4] == bytes([aml.PACKAGE[0], 7, 4, aml.BYTE[0]])
        machine.ports.write(acpi.PM_BASE + acpi_pm.PM1_CNT, 2, package[4] << 10 | 1 << 13)
        assert machine.run(1_000_000) is Ended.POWEROFF
        now_ns = machine.clock.now_ns
        assert machine.run(2_000_000) is Ended.POWEROFF
        with resume(machine.hold()) as copy:
            assert copy.run(2_000_000) is Ended.POWEROFF
            assert copy.clock.now_ns == now_ns
        machine.reset()
        assert not machine.devices["acpi-pm"].off


def test_reset_register_resets() -> None:
    with Machine(PcConfig(ram_mib=4)) as machine:
        fadt = tables(machine.ram)["FACP"]
        machine.restart_on_reset = False
        machine.ports.write(struct.unpack_from("<Q", fadt, 120)[0], 1, fadt[128])
        assert machine.run(1_000_000) is Ended.RESET


def test_power_button_is_an_input_like_others() -> None:
    with Machine(PcConfig(ram_mib=4)) as machine:
        machine.ports.write(acpi.PM_BASE + acpi_pm.PM1_EN, 2, acpi_pm.PWRBTN)
        machine.door.enter("power-button", b"\1")
        assert machine.devices["ioapic"].state.asserted >> acpi.SCI_IRQ & 1


# Intel's compiler as the judge


def run_iasl(*arguments: str, folder: Path) -> str:
    done = subprocess.run(["iasl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@needs_iasl
@pytest.mark.parametrize("name", ["RSDT", "XSDT", "FACP", "APIC", "FACS", "DSDT"])
def test_iasl_reads_every_table(ram: Ram, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.dat").write_bytes(tables(ram)[name])
    said = run_iasl("-d", f"{name}.dat", folder=tmp_path).lower()
    text = (tmp_path / f"{name}.dsl").read_text().lower()
    for word in ("error", "warning", "invalid", "unknown", "incorrect"):
        assert word not in said, said
        assert word not in text, text


@needs_iasl
def test_iasl_makes_the_same_dsdt_of_its_own_text(ram: Ram, tmp_path: Path) -> None:
    """Disassembled and compiled again without optimisation, the AML is the same byte for byte."""
    (tmp_path / "dsdt.dat").write_bytes(tables(ram)["DSDT"])
    run_iasl("-d", "dsdt.dat", folder=tmp_path)
    said = run_iasl("-oa", "-p", "again", "dsdt.dsl", folder=tmp_path)
    assert "0 Errors, 0 Warnings, 0 Remarks" in said
    assert (tmp_path / "again.aml").read_bytes()[36:] == tables(ram)["DSDT"][36:]


# AML, by section 20.2 and 6.4


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a 02"),
        (0xFF, "0a ff"),
        (0x100, "0b 00 01"),
        (0x1_0000, "0c 00 00 01 00"),
        (1 << 32, "0e 00 00 00 00 01 00 00 00"),
    ],
)
def test_integers_are_as_short_as_can_be(value: int, encoded: str) -> None:
    assert aml.integer(value) == bytes.fromhex(encoded)


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("\\", b"\\\0"),
        ("_HID", b"_HID"),
        ("RTC", b"RTC_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("^^A.B.C1", b"^^\x2f\x03A___B___C1__"),
    ],
)
def test_names(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["1ABC", "ABCDE", "ab", "A..B", "\\^A", "\\\\A"])
def test_wrong_names_are_our_mistake(path: str) -> None:
    with pytest.raises(AssertionError):
        aml.name_string(path)


@given(st.integers(0, (1 << 28) - 5))
def test_package_length_counts_itself(size: int) -> None:
    """20.2.4: read back, the length is that of the body and of its own encoding, in as few bytes as fit."""
    encoded = aml.package_length(size)
    more = encoded[0] >> 6
    assert len(encoded) == 1 + more
    if more:
        assert encoded[0] & 0x30 == 0
        length = encoded[0] & 0xF | int.from_bytes(encoded[1:], "little") << 4
        assert length >= (1 << 6 if more == 1 else 1 << 4 + 8 * (more - 1))
    else:
        length = encoded[0]
    assert length == size + len(encoded)


def test_package_length_at_its_steps() -> None:
    assert aml.package_length(62) == bytes([63])
    assert aml.package_length(63) == bytes([0x41, 0x04])
    assert len(aml.package_length((1 << 12) - 3)) == 2
    assert len(aml.package_length((1 << 12) - 2)) == 3


def test_eisa_id() -> None:
    """The example of the specification: PNP0A03 is 0x030AD041 as a little-endian number."""
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c 41 d0 0a 03")
    with pytest.raises(AssertionError):
        aml.eisa_id("PNPXYZW")


def test_resource_template() -> None:
    """6.4.2.5, 6.4.2.1, 6.4.2.9: IO (Decode16, 0x70, 0x70, 1, 2), IRQNoFlags () {8}, the end tag."""
    made = aml.resources(aml.io_ports(0x70, 2), aml.irq(8))
    assert made == bytes.fromhex("11 10 0a 0d 47 01 70 00 70 00 01 02 22 00 01 79 00")


def test_windows_are_those_of_the_host_bridge() -> None:
    assert aml.io_window(pci.IO_WINDOW) == bytes.fromhex("88 0d 00 01 0c 03 00 00 00 c0 ff ff 00 00 00 40")
    memory = aml.memory_window(pci.MEMORY_WINDOW)
    assert memory[:6] == bytes.fromhex("87 17 00 00 0c 01")
    assert struct.unpack("<5I", memory[6:]) == (0, 0xE000_0000, 0xFEBF_FFFF, 0, 0x1EC0_0000)
