"""Small guests for the tests of whole machines: real-mode programs that fill a boot sector.

They run without a BIOS, so each programs the chips that it uses.
"""

from __future__ import annotations

from typing import Any

from tests.cpu.assembler import assemble
from vmm.boot.source import BootSectorBoot, MultibootBoot
from vmm.config import NetConfig, PcConfig, mac
from vmm.guest import open as open_guest
from vmm.machine import Backends, Machine

SECTOR = 512
MS = 1_000_000
SECOND = 1000 * MS

COUNT, LOG = 0x600, 0x1000
"""Where ECHO counts its turns, and where it notes the turn and the byte of each input, 8 bytes each."""

ECHO = """
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    mov di, 0x1000
    mov word ptr [4 * 0x24], offset received    # vector of IRQ 4
    mov word ptr [4 * 0x24 + 2], ax
    mov al, 0x11            # ICW1 to 4: edges, vectors from 0x20, slave on input 2, 8086 mode
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x04
    out 0x21, al
    mov al, 0x01
    out 0x21, al
    mov al, 0xef            # IRQ 4 alone
    out 0x21, al
    mov dx, 0x3f9
    mov al, 1               # IER: received data
    out dx, al
    mov dx, 0x3fc
    mov al, 0x0b            # MCR: DTR, RTS, OUT2
    out dx, al
    sti
turn:
    inc dword ptr [0x600]
    {idle}
    jmp turn

received:
    mov dx, 0x3f8
    in al, dx
    mov ebx, [0x600]        # which turn it was says when the byte came
    mov [di], ebx
    mov [di + 4], al
    add di, 8
    out dx, al
    cmp al, 'q'
    je quit
    mov al, 0x20            # end of interrupt
    out 0x20, al
    iret
quit:
    mov al, 10
    out dx, al
    cli
    hlt
"""
"""Echoes what is typed and notes when each byte came; ``q`` ends it.  ``idle`` is "hlt", or "" to compute."""


def sector(source: str) -> BootSectorBoot:
    """A program of at most 510 bytes as a boot sector."""
    code = assemble(source, 0x7C00, 16).code
    assert len(code) <= SECTOR - 2, f"{len(code)} bytes do not fit a boot sector"
    return BootSectorBoot(code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa", "test program")


def machine(source: str, backends: Backends | None = None, **options: Any) -> Machine:
    """A PC of 1 MiB that runs ``source`` in real mode."""
    return Machine(PcConfig(ram_mib=1), sector(source), backends, **options)


def multiboot(name: str, ram_mib: int = 16, command_line: str | None = None, **options: Any) -> Machine:
    """A PC with a guest that comes with the package; one card for ``udpecho``."""
    built = open_guest(name).build()
    boot = MultibootBoot(built.kernel.read_bytes(), built.cmdline if command_line is None else command_line)
    nets = [NetConfig(mac(0))] if "net" in built.info.devices else []
    return Machine(PcConfig(ram_mib=ram_mib, nets=nets), boot, **options)


# Frames for udpecho (RFC 826, 791, 768)

_GUEST_MAC, _OUR_MAC = mac(0), bytes.fromhex("020000000001")
_GUEST_IP, _OUR_IP = bytes((10, 77, 0, 2)), bytes((10, 77, 0, 1))


def arp_request() -> bytes:
    body = bytes.fromhex("0001080006040001") + _OUR_MAC + _OUR_IP + bytes(6) + _GUEST_IP
    return b"\xff" * 6 + _OUR_MAC + b"\x08\x06" + body


def udp_echo(payload: bytes, port: int = 40000) -> bytes:
    length = 8 + len(payload)
    udp = port.to_bytes(2, "big") + b"\0\7" + length.to_bytes(2, "big") + b"\0\0" + payload
    head = b"\x45\0" + (20 + length).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0" + _OUR_IP + _GUEST_IP
    words = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2))
    checksum = ~(words % 0xFFFF) & 0xFFFF
    return _GUEST_MAC + _OUR_MAC + b"\x08\0" + head[:10] + checksum.to_bytes(2, "big") + head[12:] + udp
