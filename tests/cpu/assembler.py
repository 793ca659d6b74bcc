"""Guests as assembly text: GNU as and ld make the bytes, so a test shows the program it runs.

Intel syntax.  A test that needs the assembler is skipped where binutils is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


@dataclass(frozen=True)
class Program:
    """Bytes to load at ``origin``, and where the labels ended up."""

    origin: int
    code: bytes
    labels: dict[str, int]

    def __getitem__(self, label: str) -> int:
        return self.labels[label]


@lru_cache(maxsize=256)
def assemble(source: str, origin: int, bits: int) -> Program:
    """``source`` linked to run at ``origin`` in 16, 32 or 64-bit code."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("as and ld are not installed: apt install binutils")
    with tempfile.TemporaryDirectory() as folder:
        object_file, linked = Path(folder) / "guest.o", Path(folder) / "guest.elf"
        text = f".intel_syntax noprefix\n.code{bits}\n.text\n{source}\n"
        _tool(["as", "--64", "-o", str(object_file), "-"], text)
        _tool(
            [
                "ld",
                "-m",
                "elf_x86_64",
                "-N",
                "-e",
                "0",
                f"-Ttext={origin:#x}",
                "-o",
                str(linked),
                str(object_file),
            ],
            "",
        )
        return _read(linked, origin)


def _tool(command: list[str], text: str) -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}\n{text}"


def _read(linked: Path, origin: int) -> Program:
    with linked.open("rb") as file:
        elf = ELFFile(file)
        loaded = [s for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC and s["sh_size"]]
        code = bytearray(max((s["sh_addr"] + s["sh_size"] for s in loaded), default=origin) - origin)
        for section in loaded:
            at = section["sh_addr"] - origin
            code[at : at + section["sh_size"]] = section.data()
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return Program(origin, bytes(code), {s.name: s["st_value"] for s in table.iter_symbols()})
