"""Bare-metal guests of a few instructions, for what no guest of the manifest does.

``talker`` says "line 1", "line 2", ...  ``phoenix`` says "line 1" and shuts the processor down by a
triple fault, which resets the machine, so that it says "line 1" again.  ``scribbler`` fills 8 MiB with
other noise before each line: nothing about it can be packed.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.boot.images import elf, multiboot_header
from tests.cpu.assembler import assemble

BASE = 0x100000
LINE = re.compile(rb"line (\d+)\r\n")

SOURCE = """
start:
    mov esp, 0x200000
    xor ebx, ebx                # the number of the line
again:
    inc ebx
    mov esi, offset line
    call say
    mov eax, ebx
    mov edi, offset digits_end  # the digits are made from the last one on
    mov ecx, 10
digit:
    xor edx, edx
    div ecx
    add dl, '0'
    dec edi
    mov [edi], dl
    test eax, eax
    jnz digit
    mov esi, edi
    call say
    {work}
    {then}

say:                            # the text at esi, up to its zero
    mov edx, 0x3FD
ready:
    in al, dx
    test al, 0x20               # 16550A, line status: the transmitter takes a byte
    jz ready
    lodsb
    test al, al
    jz said
    mov dl, 0xF8
    out dx, al
    jmp say
said:
    ret

line:       .asciz "line "
digits:     .skip 10
digits_end: .asciz "\\r\\n"
nowhere:    .skip 6             # an interrupt table without entries
"""
TRIPLE_FAULT = "lidt [nowhere]\n int3"
PAUSE = """
    mov ecx, {rounds}
rest:
    dec ecx
    jnz rest
"""
SCRIBBLE = """
    mov edi, 0x400000
    mov ecx, 0x200000           # words of 8 MiB
    mov eax, ebp
scribble:
    imul eax, eax, 1664525
    add eax, 1013904223
    stosd
    dec ecx
    jnz scribble
    mov ebp, eax
"""


def talker(place: Path) -> tuple[str, ...]:
    return _words(place / "talker.elf", PAUSE.format(rounds=1), "jmp again", 8)


def phoenix(place: Path, rounds: int = 2_000_000) -> tuple[str, ...]:
    return _words(place / "phoenix.elf", PAUSE.format(rounds=rounds), TRIPLE_FAULT, 8)


def scribbler(place: Path) -> tuple[str, ...]:
    return _words(place / "scribbler.elf", SCRIBBLE, "jmp again", 16)


def _words(path: Path, work: str, then: str, ram_mib: int) -> tuple[str, ...]:
    header = multiboot_header(0)
    program = assemble(SOURCE.format(work=work, then=then), BASE + len(header), 32)
    contents = header + program.code
    path.write_bytes(elf([(BASE, BASE, contents, len(contents))], program["start"], 32))
    return ("--multiboot", str(path), "--ram", str(ram_mib))


def lines(said: bytes) -> list[int]:
    """The numbers of the whole lines."""
    return [int(found[1]) for found in LINE.finditer(said)]
