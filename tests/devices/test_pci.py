"""PCI Local Bus Specification 3.0, chapter 6, through the ports of configuration mechanism #1."""

from __future__ import annotations

import pytest

from tests.devices.rigs.pci import Card
from tests.devices.virtio_driver import SLOT, Board, Wire
from vmm.bus import Bus
from vmm.devices.pci import PciHost
from vmm.devices.pci_function import Bar, Identity, PciFunction, Window
from vmm.errors import ConfigError
from vmm.state import pack, unpack

ALL_ONES = 0xFFFF_FFFF


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def card(board: Board) -> Card:
    card = Card(board.irq, 0x42)
    board.plug(card)
    return card


def places(bus: Bus) -> list[tuple[int, int]]:
    return [(claim.base, claim.length) for claim in bus.claims() if claim.base != 0xCF8]


class TestMechanism:
    """3.2.2.3.2: CONFADD and CONFDATA."""

    def test_host_bridge_sits_in_slot_0(self, board: Board) -> None:
        assert board.config_read(0x00, slot=0) == 0x1237_8086
        assert board.config_read(0x08, slot=0) >> 8 == 0x06_00_00

    def test_address_reads_back_without_reserved_bits(self, board: Board) -> None:
        board.io.write(0xCF8, 4, ALL_ONES)
        assert board.io.read(0xCF8, 4) == 0x80FF_FFFC

    def test_linux_probe_for_mechanism_1(self, board: Board) -> None:
        board.io.write(0xCFB, 1, 0x01)
        board.io.write(0xCF8, 4, 0x8000_0000)
        assert board.io.read(0xCF8, 4) == 0x8000_0000
        assert board.io.read(0xCFC, 4) == 0x1237_8086

    def test_narrow_access_to_address_is_not_ours(self, board: Board) -> None:
        board.io.write(0xCF8, 4, 0x8000_1810)
        board.io.write(0xCF8, 2, 0xFFFF)
        board.io.write(0xCFA, 1, 0)
        assert board.io.read(0xCF8, 4) == 0x8000_1810
        assert board.io.read(0xCF8, 1) == 0xFF

    def test_byte_at_cf9_is_the_reset_control_register(self) -> None:
        written: list[int] = []
        control = Window(lambda offset, size: 0x02, lambda offset, size, value: written.append(value))
        host = PciHost(Bus("io"), Bus("mmio"), reset_control=control)
        host.write(1, 1, 0x06)
        assert written == [0x06]
        assert host.read(1, 1) == 0x02

    @pytest.mark.parametrize(
        "address",
        [0x0000_1800, 0x8001_1800, 0x8000_1900, 0x8000_2000],
        ids=["off", "bus", "function", "slot"],
    )
    def test_nobody_there_reads_all_ones(self, board: Board, card: Card, address: int) -> None:
        board.io.write(0xCF8, 4, address)
        assert [board.io.read(0xCFC, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, ALL_ONES]

    def test_parts_of_a_double_word(self, board: Board, card: Card) -> None:
        assert board.config_read(0x00, 2) == 0x1234
        assert board.config_read(0x02, 2) == 0x0042
        assert board.config_read(0x01, 1) == 0x12
        board.config_write(0x0C, 1, 0x10)
        board.config_write(0x0D, 1, 0x20)
        assert board.config_read(0x0C) == 0x2010

    def test_access_across_a_double_word_is_refused(self, board: Board, card: Card) -> None:
        board.io.write(0xCF8, 4, 0x8000_1800)
        assert board.io.read(0xCFD, 4) == ALL_ONES


class TestBars:
    """6.2.5: sizing, moving, enabling."""

    def test_sizes(self, board: Board, card: Card) -> None:
        board.config_write(0x04, 2, 0)
        sizes = []
        for bar in (0x10, 0x14, 0x18):
            board.config_write(bar, 4, ALL_ONES)
            sizes.append(board.config_read(bar))
        assert sizes == [0xFFFF_FFF1, 0xFFFF_F000, 0]

    def test_assigned_by_firmware(self, board: Board, card: Card) -> None:
        assert places(board.io) == [(0xC000, 16)]
        assert places(board.mmio) == [(0xE000_0000, 4096)]
        assert board.config_read(0x3C, 2) == 0x0100 | 11, "INTA of an odd slot is IRQ 11"
        assert board.config_read(0x04, 2) == 0x0007
        assert board.io.read(0xC005, 1) == 0x47
        assert board.mmio.read(0xE000_0FFC, 4) == 0x42

    def test_command_register_disables_each_space(self, board: Board, card: Card) -> None:
        board.config_write(0x04, 2, 0x0001)
        assert (len(places(board.io)), len(places(board.mmio))) == (1, 0)
        board.config_write(0x04, 2, 0x0002)
        assert (len(places(board.io)), len(places(board.mmio))) == (0, 1)

    def test_moves(self, board: Board, card: Card) -> None:
        board.config_write(0x10, 4, 0xD000)
        assert places(board.io) == [(0xD000, 16)]
        assert board.io.read(0xC000, 1) == 0xFF

    @pytest.mark.parametrize("address", [0, 0xB000, 0xFFF8, 0x1_0000, 0xFFFF_FFF0])
    def test_outside_the_window_is_not_decoded(self, board: Board, card: Card, address: int) -> None:
        board.config_write(0x10, 4, address)
        assert places(board.io) == ([(0xFFF0, 16)] if address == 0xFFF8 else [])

    @pytest.mark.parametrize("address", [0, 0x10_0000, 0xFEC0_0000, 0xFEE0_0000])
    def test_memory_outside_the_window_is_not_decoded(self, board: Board, card: Card, address: int) -> None:
        board.config_write(0x14, 4, address)
        assert places(board.mmio) == []

    def test_collision_with_the_board_is_not_decoded(self, board: Board, card: Card) -> None:
        board.io.claim(0xD008, 1, None, "something fixed")
        board.config_write(0x10, 4, 0xD000)
        assert places(board.io) == [(0xD008, 1)]
        board.config_write(0x10, 4, 0xD010)
        assert places(board.io) == [(0xD008, 1), (0xD010, 16)]

    def test_collision_goes_to_the_lower_slot_whoever_came_first(self, board: Board, card: Card) -> None:
        lower = Card(None, 0x99)
        board.plug(lower, slot=2)
        base = board.config_read(0x14) & ~15
        board.config_write(0x14, 4, base, slot=2)
        assert board.mmio.read(base, 4) == 0x99
        board.config_write(0x14, 4, 0xE100_0000, slot=2)
        assert board.mmio.read(base, 4) == 0x42, "the other one is decoded again"

    def test_restored_claims_what_the_registers_say(self, board: Board, card: Card) -> None:
        board.config_write(0x10, 4, 0xD000)
        twin_board = Board()
        twin = Card(twin_board.irq, 0x42)
        twin_board.host.plug(SLOT, twin)
        twin_board.host.state = unpack(type(board.host.state), pack(board.host.state))
        twin.state = unpack(type(card.state), pack(card.state))
        twin.restored()
        twin_board.host.restored()
        assert places(twin_board.io) == places(board.io)
        assert places(twin_board.mmio) == places(board.mmio)

    def test_reset_decodes_nothing(self, board: Board, card: Card) -> None:
        card.reset()
        assert places(board.io) == places(board.mmio) == []

    def test_windows_that_are_full_are_reported(self) -> None:
        board = Board()
        big = PciFunction(Identity(1, 1, 0, 0))
        nothing = Window(lambda offset, size: 0, lambda offset, size, value: None)
        big._add_bar(Bar(0, False, 1 << 29, nothing, "half a gigabyte"))
        big.reset()
        with pytest.raises(ConfigError, match="windows are full"):
            board.plug(big)


class TestRegisters:
    """6.1 and 6.2: what is read-only stays so."""

    def test_read_only_registers(self, board: Board, card: Card) -> None:
        before = [board.config_read(at) for at in (0x00, 0x08, 0x2C, 0x34, 0x40)]
        for at in (0x00, 0x08, 0x2C, 0x34, 0x40):
            board.config_write(at, 4, ALL_ONES)
        assert [board.config_read(at) for at in (0x00, 0x08, 0x2C, 0x34, 0x40)] == before

    def test_command_has_the_bits_that_do_something(self, board: Board, card: Card) -> None:
        board.config_write(0x04, 2, 0xFFFF)
        assert board.config_read(0x04, 2) == 0x0407

    def test_interrupt_pin_and_its_disable_bit(self, board: Board, card: Card) -> None:
        board.mmio.write(0xE000_0000, 4, 1)
        assert board.irq.changes == [True]
        assert board.config_read(0x06, 2) & 0x08
        board.config_write(0x04, 2, 0x0407)
        assert board.irq.changes == [True, False]
        assert board.config_read(0x06, 2) & 0x08, "status shows the request even when disabled (6.2.3)"
        board.config_write(0x04, 2, 0x0007)
        assert board.irq.changes == [True, False, True]
        board.mmio.write(0xE000_0000, 4, 0)
        assert board.irq.changes == [True, False, True, False]

    def test_no_pin_without_a_line(self, board: Board) -> None:
        assert board.config_read(0x3D, 1, slot=0) == 0


class TestPlug:
    def test_slots_are_checked(self, board: Board, card: Card) -> None:
        with pytest.raises(ConfigError, match="slots 0 to 31"):
            board.host.plug(32, Card(Wire(), 1))
        with pytest.raises(ConfigError, match="taken"):
            board.host.plug(SLOT, Card(Wire(), 1))
