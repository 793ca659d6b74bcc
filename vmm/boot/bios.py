"""A small BIOS, so that boot sectors that call INT 10h, 13h, 15h, 16h and 1Ah work.

Sources: IBM PC/AT technical reference (BIOS services); ACPI specification 6.4 section 15 (E820h);
Ralf Brown's interrupt list for the register conventions.  The ROM is in bios_rom.py, screen, disk
and keyboard in their own files; memory size, A20, waits, serial port and clock are here.

Everything that a BIOS remembers lives in the BIOS data area, in guest memory.  ``state`` holds the
one thing that has no place there: when a wait (INT 15h/86h) ends.

Interrupt handlers and waiting are real code in the ROM; a service never blocks.

Not here: protected-mode entry points (APM, PCI BIOS, VESA), printers, joysticks, ACPI.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.boot import bios_disk, bios_keyboard, bios_rom, bios_video, memory_map
from vmm.boot.bios_call import Call, CpuRegisters
from vmm.boot.bios_disk import Drive
from vmm.boot.bios_rom import Ports
from vmm.device import Clock, all_ones
from vmm.errors import BadAddress
from vmm.ram import MIB, Ram
from vmm.state import State, u64

SMAP = 0x534D4150
UNSUPPORTED = 0x86
EXTENDED_KIB_MAX = 0xFC00
"""INT 15h/88h answers in 16 bits and is read by programs that stop at 64 MiB."""
BELOW_16_MIB_KIB = 0x3C00
TICK_NS = 54_925_494
"""65536 periods of the 8254's 1.193182 MHz clock."""
MOVE_WORDS_MAX = 0x8000
"""INT 15h/87h moves at most 64 KiB."""
DESCRIPTOR_SOURCE, DESCRIPTOR_TARGET = 0x10, 0x18

COM1 = 0x3F8
SERIAL_DATA, SERIAL_IER, SERIAL_LCR, SERIAL_MCR, SERIAL_LSR, SERIAL_MSR = 0, 1, 3, 4, 5, 6
LCR_DLAB = 0x80
LSR_DATA_READY = 1 << 0
SERIAL_TIMEOUT = 0x80
DIVISORS = (1047, 768, 384, 192, 96, 48, 24, 12)
"""110 to 9600 bit/s."""

CMOS_INDEX, CMOS_DATA = 0x70, 0x71
SYSTEM_CONTROL_A = 0x92
A20 = 1 << 1
MESSAGES = {
    0x00: b"\r\nDivide error. Halted.\r\n",
    0x06: b"\r\nInvalid opcode. Halted.\r\n",
    0x18: b"\r\nNo bootable device. Halted.\r\n",
    0x19: b"\r\nBoot failed. Halted.\r\n",
}


class BiosState(State):
    """What cannot live in the data area."""

    wait_until_ns: u64 = 0
    """End of the wait in progress; 0 when there is none."""


class Bios:
    """The far side of CALL_PORT."""

    __slots__ = ("_clock", "_drives", "_memory", "_ports", "_registers", "state")

    def __init__(
        self,
        registers: CpuRegisters,
        memory: Ram,
        ports: Ports,
        clock: Clock,
        drives: Mapping[int, Drive],
    ) -> None:
        """``drives`` by BIOS number: 0x80 is the first hard disk, 0x00 the first diskette."""
        self.state = BiosState()
        self._registers = registers
        self._memory = memory
        self._ports = ports
        self._clock = clock
        self._drives = dict(drives)

    def install(self) -> None:
        """Put ROM, vectors and data area into memory and program the chips: what POST does."""
        bios_rom.install(self._memory, sorted(self._drives))
        bios_rom.initialise(self._ports)

    # Guest side.

    def read(self, offset: int, size: int) -> int:
        return all_ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A call, if it comes from the ROM; anybody else's write is ignored."""
        if offset or size != 1 or self._registers.get("cs") != bios_rom.SEGMENT:
            return
        try:
            call = Call(self._registers, self._memory)
            vector = call.vector
            call.go_on_at(bios_rom.DONE)
            self._serve(call, vector, value)
        except BadAddress:
            # A pointer outside RAM: the call does nothing, as on a PC where nothing answers.
            return

    # Life cycle.

    def reset(self) -> None:
        self.state = BiosState()
        self.restored()

    def restored(self) -> None:
        """Nothing is driven: there is no line and no timer."""

    # Private.

    def _serve(self, call: Call, vector: int, value: int) -> None:
        match vector:
            case bios_rom.VECTOR_KEYBOARD:
                call.go_on_at(bios_rom.KEY_TAKEN)
                bios_keyboard.take(call, value)
            case 0x10:
                bios_video.service(call, self._ports)
            case 0x11:
                call.set("ax", call.word(memory_map.BDA_EQUIPMENT))
            case 0x12:
                call.set("ax", call.word(memory_map.BDA_BASE_MEMORY_KIB))
            case 0x13:
                bios_disk.service(call, self._drives)
            case 0x14 if call.get("dx") == 0:
                self._serial(call)
            case 0x15:
                self._system(call)
            case 0x16:
                bios_keyboard.service(call)
            case 0x1A:
                self._time(call)
            case _ if vector in MESSAGES:
                bios_video.print_text(call, self._ports, MESSAGES[vector])
                call.go_on_at(bios_rom.HALT)

    # INT 14h.

    def _serial(self, call: Call) -> None:
        line = self._ports.read(COM1 + SERIAL_LSR, 1)
        match call.high("ax"):
            case 0x00:
                self._serial_setup(call.low("ax"))
            case 0x01:
                self._ports.write(COM1 + SERIAL_DATA, 1, call.low("ax"))
                call.set_high("ax", line)
                return
            case 0x02 if line & LSR_DATA_READY:
                call.set("ax", (line & 0x1E) << 8 | self._ports.read(COM1 + SERIAL_DATA, 1))
                return
            case 0x02:
                call.set_high("ax", SERIAL_TIMEOUT)
                return
        call.set("ax", line << 8 | self._ports.read(COM1 + SERIAL_MSR, 1))

    def _serial_setup(self, parameters: int) -> None:
        """Bits 7-5 speed, 4-0 as the line control register has them."""
        divisor = DIVISORS[parameters >> 5]
        for register, value in (
            (SERIAL_LCR, LCR_DLAB),
            (SERIAL_DATA, divisor & 0xFF),
            (SERIAL_IER, divisor >> 8),
            (SERIAL_LCR, parameters & 0x1F),
            (SERIAL_IER, 0),
            (SERIAL_MCR, 3),
        ):
            self._ports.write(COM1 + register, 1, value)

    # INT 15h.

    def _system(self, call: Call) -> None:
        call.set_carry(False)
        match call.high("ax"):
            case 0x24 if call.low("ax") <= 3:
                self._a20(call, call.low("ax"))
            case 0x4F:
                call.set_carry(True)  # keep the scan code as it is
            case 0x86:
                self._wait(call)
            case 0x87:
                call.set_high("ax", 0 if self._move_block(call) else 1)
                call.set_carry(call.high("ax") != 0)
            case 0x88:
                call.set("ax", min(self._extended_kib, EXTENDED_KIB_MAX))
            case 0xC0:
                call.set("es", bios_rom.SEGMENT)
                call.set("bx", bios_rom.CONFIGURATION)
                call.set_high("ax", 0)
            case 0xC1:
                call.set("es", memory_map.EBDA >> 4)
            case 0xE8 if call.low("ax") == 0x01:
                low = min(self._extended_kib, BELOW_16_MIB_KIB)
                high = min((self._extended_kib - low) // 64, 0xFFFF)
                for name, value in (("ax", low), ("bx", high), ("cx", low), ("dx", high)):
                    call.set(name, value)
            case 0xE8 if call.low("ax") == 0x20 and call.get("edx") == SMAP:
                self._e820(call)
            case _:
                call.set_high("ax", UNSUPPORTED)
                call.set_carry(True)

    @property
    def _extended_kib(self) -> int:
        return (memory_map.low_top(self._memory) - MIB) >> 10

    def _a20(self, call: Call, function: int) -> None:
        """Functions 2400h-2403h: off, on, which, how it can be done (port 0x92 and the 8042)."""
        control = self._ports.read(SYSTEM_CONTROL_A, 1)
        call.set_high("ax", 0)
        match function:
            case 0:
                self._ports.write(SYSTEM_CONTROL_A, 1, control & ~A20 & 0xFE)
            case 1:
                self._ports.write(SYSTEM_CONTROL_A, 1, (control | A20) & 0xFE)
            case 2:
                call.set_low("ax", 1 if control & A20 else 0)
            case 3:
                call.set("bx", 0x0003)

    def _wait(self, call: Call) -> None:
        """CX:DX microseconds.  Called again after every interrupt until the time has come."""
        now = self._clock.now_ns
        if not self.state.wait_until_ns:
            microseconds = (call.get("cx") & 0xFFFF) << 16 | call.get("dx") & 0xFFFF
            self.state.wait_until_ns = now + 1000 * microseconds
        left = self.state.wait_until_ns - now
        if left <= 0:
            self.state.wait_until_ns = 0
        else:
            call.go_on_at(bios_rom.WAIT_TIME if left > TICK_NS else bios_rom.SPIN_TIME)

    def _move_block(self, call: Call) -> bool:
        """Function 87h: CX words between the segments of two descriptors in the table at ES:SI."""
        table, words = call.linear("es", call.get("si")), call.get("cx") & 0xFFFF
        if words > MOVE_WORDS_MAX:
            return False
        source, target = (
            call.dword(table + at + 2) & 0x00FF_FFFF | call.byte(table + at + 7) << 24
            for at in (DESCRIPTOR_SOURCE, DESCRIPTOR_TARGET)
        )
        try:
            call.memory.write(target, call.memory.read(source, 2 * words))
        except BadAddress:
            return False
        return True

    def _e820(self, call: Call) -> None:
        """EBX says which range comes next; 0 after the last."""
        ranges = memory_map.e820(self._memory)
        index = call.get("ebx")
        if index >= len(ranges) or call.get("ecx") < 20:
            call.set_high("ax", UNSUPPORTED)
            call.set_carry(True)
            return
        call.memory.write(call.linear("es", call.get("di")), ranges[index].pack())
        call.set("eax", SMAP)
        call.set("ecx", 20)
        call.set("ebx", (index + 1) % len(ranges))

    # INT 1Ah.

    def _time(self, call: Call) -> None:
        call.set_carry(False)
        match call.high("ax"):
            case 0x00:
                ticks = call.dword(bios_rom.BDA_TICKS)
                call.set_low("ax", call.byte(bios_rom.BDA_MIDNIGHT))
                call.put_byte(bios_rom.BDA_MIDNIGHT, 0)
                call.set("cx", ticks >> 16)
                call.set("dx", ticks & 0xFFFF)
            case 0x01:
                call.put_dword(bios_rom.BDA_TICKS, (call.get("cx") & 0xFFFF) << 16 | call.get("dx") & 0xFFFF)
                call.put_byte(bios_rom.BDA_MIDNIGHT, 0)
            case 0x02:  # hours, minutes, seconds, no daylight saving; binary coded as the chip keeps them
                call.set("cx", self._cmos(0x04) << 8 | self._cmos(0x02))
                call.set("dx", self._cmos(0x00) << 8)
            case 0x04:  # century, year, month, day
                call.set("cx", self._cmos(0x32) << 8 | self._cmos(0x09))
                call.set("dx", self._cmos(0x08) << 8 | self._cmos(0x07))
            case _:
                call.set_carry(True)

    def _cmos(self, index: int) -> int:
        self._ports.write(CMOS_INDEX, 1, index)
        return self._ports.read(CMOS_DATA, 1)
