"""8042 keyboard controller with an AT keyboard on it and nothing on its auxiliary port.

Sources: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
Controller" (commands, status, translation table) and "Keyboard" (commands, scan code sets 1, 2).

One byte at a time: the output buffer is filled again only when the guest has read it, first with
the controller's replies, then with the keyboard's answers, then with keys.  The keyboard speaks
scan code set 2, and the controller translates it to set 1 while KCC_TRANSLATE is on.

State at power-on is what firmware leaves behind, because the board has none that would do it:
system flag set, keyboard enabled with interrupt and translation, A20 open.

Not modelled: serial line timing (a command is answered at once), key repeat (the host sends it),
scan code set 3 (refused with RESEND), the keyboard lock, NMI of the password commands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from vmm.device import Line
from vmm.devices import keymap
from vmm.devices.isa import View, read_bytes, write_bytes
from vmm.state import State, at_most, field, length, u8, u32

DATA, COMMAND = 0, 4  # offsets from 0x60

STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08  # the last write went to 0x64
STATUS_UNLOCKED = 0x10
STATUS_AUX = 0x20
STATUS_TIMEOUT = 0x40

KCC_KEYBOARD_IRQ = 0x01  # controller command byte: RAM byte 0
KCC_SYSTEM = 0x04
KCC_KEYBOARD_OFF = 0x10
KCC_AUX_OFF = 0x20
KCC_TRANSLATE = 0x40
RAM_SIZE = 32


class Command:
    """What the guest writes to 0x64."""

    READ_RAM = 0x20  # and the 31 after it
    WRITE_RAM = 0x60  # and the 31 after it
    AUX_DISABLE = 0xA7
    AUX_ENABLE = 0xA8
    AUX_TEST = 0xA9
    SELF_TEST = 0xAA
    KEYBOARD_TEST = 0xAB
    KEYBOARD_DISABLE = 0xAD
    KEYBOARD_ENABLE = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    WRITE_KEYBOARD_BUFFER = 0xD2
    WRITE_AUX_BUFFER = 0xD3
    WRITE_AUX = 0xD4
    DISABLE_A20 = 0xDD
    ENABLE_A20 = 0xDF
    READ_TEST_INPUTS = 0xE0
    PULSE_OUTPUT = 0xF0  # to 0xFF: each clear bit of the low four pulses its pin


class Keyboard:
    """What the guest writes to 0x60 for the keyboard."""

    SET_LEDS = 0xED
    ECHO = 0xEE
    SCAN_SET = 0xF0
    READ_ID = 0xF2
    TYPEMATIC = 0xF3
    ENABLE = 0xF4
    DEFAULT_DISABLE = 0xF5
    SET_DEFAULT = 0xF6
    RESEND = 0xFE
    RESET = 0xFF


SELF_TEST_PASSED = 0x55
INTERFACE_OK = 0x00
AUX_CLOCK_STUCK_HIGH = 0x02  # what the interface test finds when nothing pulls the line

OUTPUT_PORT_RUN = 0x01  # low: the processor is held in reset
OUTPUT_PORT_A20 = 0x02
OUTPUT_PORT_KEYBOARD_FULL = 0x10
OUTPUT_PORT_IDLE = 0xC0 | OUTPUT_PORT_RUN
INPUT_PORT = 0xA0  # keyboard not locked, colour display, no manufacturing jumper

ACK = 0xFA
RESEND = 0xFE
TEST_PASSED = 0xAA
KEYBOARD_ID = b"\xab\x83"

REPLIES_MAX = 16
ANSWERS_MAX = 16  # a keyboard's own buffer; what a guest does not read is lost beyond this
KEYS_MAX = 4096
"""Bytes of keys not yet read: a screenful pasted by the host."""


def _ram() -> bytearray:
    ram = bytearray(RAM_SIZE)
    ram[0] = KCC_KEYBOARD_IRQ | KCC_SYSTEM | KCC_AUX_OFF | KCC_TRANSLATE
    return ram


class I8042State(State):
    """Controller first, keyboard after."""

    ram: Annotated[bytearray, length(RAM_SIZE)] = field(default_factory=_ram)
    output: u8 = 0
    output_full: bool = False
    timeout: bool = False  # the byte in the output buffer says that nobody answered
    last_was_command: bool = False
    parameter_of: u8 = 0  # the command whose parameter the next write to DATA is; 0 = none
    a20: bool = True
    replies: Annotated[bytearray, at_most(REPLIES_MAX)] = field(default_factory=bytearray)
    break_seen: bool = False  # translation has swallowed the set 2 break prefix
    scanning: bool = True
    scan_set: Annotated[int, keymap.SCAN_SETS] = 2
    leds: u8 = 0
    typematic: u8 = 0x2B  # 10.9 characters a second after half a second
    keyboard_parameter_of: u8 = 0
    last_sent: u8 = 0  # for RESEND
    answers: Annotated[bytearray, at_most(ANSWERS_MAX)] = field(default_factory=bytearray)
    keys: Annotated[bytearray, at_most(KEYS_MAX)] = field(default_factory=bytearray)
    dropped: u32 = 0  # keys that found no room or a keyboard that was off


class I8042:
    """Controller and keyboard.  ``set_a20`` gets this chip's wish; the board ORs it with port 0x92.

    Offsets are those from 0x60: DATA is 0 and COMMAND is 4.  A board that claims 0x64 alone gives
    it ``command``, which starts at 0.
    """

    __slots__ = ("_aux_irq", "_irq", "_reset", "_set_a20", "command", "state")

    def __init__(
        self, irq: Line, aux_irq: Line, reset: Callable[[], None], set_a20: Callable[[bool], None]
    ) -> None:
        self.state = I8042State()
        self._irq = irq
        self._aux_irq = aux_irq
        self._reset = reset
        self._set_a20 = set_a20
        self.command = View(self, COMMAND, 1)

    # Guest side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return read_bytes(self, offset, size)
        s = self.state
        if offset == COMMAND:
            return self._status()
        if offset != DATA:
            return 0xFF
        value = s.output
        if s.output_full:
            s.output_full = s.timeout = False
            self._irq.set(False)
            self._settle()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            write_bytes(self, offset, size, value)
            return
        s = self.state
        if offset == COMMAND:
            s.last_was_command = True
            s.parameter_of = 0
            self._command(value)
        elif offset == DATA:
            s.last_was_command = False
            command, s.parameter_of = s.parameter_of, 0
            if command:
                self._parameter(command, value)
            else:
                s.ram[0] &= ~KCC_KEYBOARD_OFF  # sending opens the interface
                self._keyboard_byte(value)
        else:
            return
        self._settle()

    # Host side

    def type_text(self, text: str) -> None:
        """Type ``text`` on a US keyboard; characters that it does not have are left out."""
        for character in text:
            self.press(keymap.typed(character))

    def press(self, scancodes: bytes) -> None:
        """Press and release keys: set 1 make and break codes, as a PC guest reads them.

        All of them are queued, or none: half a key would stay pressed.
        """
        s = self.state
        codes = scancodes if s.scan_set == 1 else keymap.to_set2(scancodes)
        if not s.scanning or len(s.keys) + len(codes) > KEYS_MAX:
            s.dropped = min(s.dropped + 1, 0xFFFF_FFFF)
            return
        s.keys += codes
        self._settle()

    # Life cycle

    def reset(self) -> None:
        self.state = I8042State()
        self.restored()

    def restored(self) -> None:
        """Drive both interrupts and A20 from the registers."""
        s = self.state
        self._irq.set(s.output_full and bool(s.ram[0] & KCC_KEYBOARD_IRQ))
        self._aux_irq.set(False)
        self._set_a20(s.a20)

    # Private: the controller

    def _status(self) -> int:
        s = self.state
        return (
            STATUS_UNLOCKED
            | (STATUS_OUTPUT_FULL if s.output_full else 0)
            | (STATUS_SYSTEM if s.ram[0] & KCC_SYSTEM else 0)
            | (STATUS_COMMAND if s.last_was_command else 0)
            | (STATUS_TIMEOUT | STATUS_AUX if s.timeout else 0)
        )

    def _settle(self) -> None:
        """Fill the output buffer if it is empty, then drive the interrupt."""
        s = self.state
        if not s.output_full:
            if s.replies:
                s.output = s.replies.pop(0)
                s.output_full = True
            elif not s.ram[0] & KCC_KEYBOARD_OFF:
                self._take_from_keyboard()
        self._irq.set(s.output_full and bool(s.ram[0] & KCC_KEYBOARD_IRQ))

    def _take_from_keyboard(self) -> None:
        s = self.state
        while not s.output_full and (s.answers or s.keys):
            code = s.answers.pop(0) if s.answers else s.keys.pop(0)
            s.last_sent = code
            if not s.ram[0] & KCC_TRANSLATE:
                s.break_seen = False
            elif code == keymap.BREAK_PREFIX:
                s.break_seen = True
                continue
            else:
                code = keymap.TO_SET1[code] | (0x80 if s.break_seen else 0)
                s.break_seen = False
            s.output = code
            s.output_full = True

    def _reply(self, value: int) -> None:
        replies = self.state.replies
        if len(replies) < REPLIES_MAX:
            replies.append(value)

    def _command(self, command: int) -> None:
        s = self.state
        match command:
            case _ if Command.READ_RAM <= command < Command.READ_RAM + RAM_SIZE:
                self._reply(s.ram[command - Command.READ_RAM])
            case _ if Command.WRITE_RAM <= command < Command.WRITE_RAM + RAM_SIZE:
                s.parameter_of = command
            case _ if Command.WRITE_OUTPUT_PORT <= command <= Command.WRITE_AUX:
                s.parameter_of = command
            case Command.AUX_DISABLE:
                s.ram[0] |= KCC_AUX_OFF
            case Command.AUX_ENABLE:
                s.ram[0] &= ~KCC_AUX_OFF
            case Command.AUX_TEST:
                self._reply(AUX_CLOCK_STUCK_HIGH)
            case Command.SELF_TEST:
                s.ram[0] |= KCC_SYSTEM
                self._reply(SELF_TEST_PASSED)
            case Command.KEYBOARD_TEST:
                self._reply(INTERFACE_OK)
            case Command.KEYBOARD_DISABLE:
                s.ram[0] |= KCC_KEYBOARD_OFF
            case Command.KEYBOARD_ENABLE:
                s.ram[0] &= ~KCC_KEYBOARD_OFF
            case Command.READ_INPUT_PORT:
                self._reply(INPUT_PORT)
            case Command.READ_OUTPUT_PORT:
                self._reply(self._output_port())
            case Command.DISABLE_A20 | Command.ENABLE_A20:
                self._write_a20(command == Command.ENABLE_A20)
            case Command.READ_TEST_INPUTS:
                self._reply(0)
            case _ if command >= Command.PULSE_OUTPUT and not command & OUTPUT_PORT_RUN:
                self._reset()

    def _output_port(self) -> int:
        s = self.state
        full = OUTPUT_PORT_KEYBOARD_FULL if s.output_full else 0
        return OUTPUT_PORT_IDLE | full | (OUTPUT_PORT_A20 if s.a20 else 0)

    def _write_a20(self, level: bool) -> None:
        self.state.a20 = level
        self._set_a20(level)

    def _parameter(self, command: int, value: int) -> None:
        s = self.state
        if command == Command.WRITE_OUTPUT_PORT:
            self._write_a20(bool(value & OUTPUT_PORT_A20))
            if not value & OUTPUT_PORT_RUN:
                self._reset()
        elif command in (Command.WRITE_KEYBOARD_BUFFER, Command.WRITE_AUX_BUFFER):
            self._reply(value)  # without an auxiliary port the byte is not marked as its
        elif command == Command.WRITE_AUX:
            s.output, s.output_full, s.timeout = RESEND, True, True
        else:
            s.ram[command - Command.WRITE_RAM & RAM_SIZE - 1] = value

    # Private: the keyboard

    def _answer(self, codes: bytes) -> None:
        answers = self.state.answers
        answers += codes[: ANSWERS_MAX - len(answers)]

    def _keyboard_byte(self, value: int) -> None:
        s = self.state
        command, s.keyboard_parameter_of = s.keyboard_parameter_of, 0
        if command and value < Keyboard.SET_LEDS:
            self._keyboard_parameter(command, value)
            return
        match value:
            case Keyboard.SET_LEDS | Keyboard.SCAN_SET | Keyboard.TYPEMATIC:
                s.keyboard_parameter_of = value
                self._answer(bytes([ACK]))
            case Keyboard.ECHO:
                self._answer(bytes([Keyboard.ECHO]))
            case Keyboard.READ_ID:
                self._answer(bytes([ACK]) + KEYBOARD_ID)
            case Keyboard.ENABLE:
                s.keys.clear()
                s.scanning = True
                self._answer(bytes([ACK]))
            case Keyboard.DEFAULT_DISABLE | Keyboard.SET_DEFAULT:
                self._keyboard_defaults(scanning=value == Keyboard.SET_DEFAULT)
                self._answer(bytes([ACK]))
            case Keyboard.RESEND:
                self._answer(bytes([s.last_sent]))
            case Keyboard.RESET:
                self._keyboard_defaults(scanning=True)
                s.leds = 0
                s.answers.clear()
                self._answer(bytes([ACK, TEST_PASSED]))
            case _:
                self._answer(bytes([RESEND]))

    def _keyboard_defaults(self, scanning: bool) -> None:
        s = self.state
        s.keys.clear()
        s.scanning = scanning
        s.scan_set = 2
        s.typematic = 0x2B

    def _keyboard_parameter(self, command: int, value: int) -> None:
        s = self.state
        if command == Keyboard.SET_LEDS:
            s.leds = value & 7
        elif command == Keyboard.TYPEMATIC:
            s.typematic = value & 0x7F
        elif value == 0:  # SCAN_SET 0 asks
            self._answer(bytes([ACK, s.scan_set]))
            return
        elif value not in (1, 2):
            self._answer(bytes([RESEND]))
            return
        else:
            s.scan_set = value
            s.keys.clear()
        self._answer(bytes([ACK]))
