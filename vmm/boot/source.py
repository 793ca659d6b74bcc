"""What a machine boots: the image and its options, kept so that a reset can load it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vmm.boot import linux, mbr, multiboot
from vmm.boot.bzimage import KernelImage
from vmm.boot.entry import Entry
from vmm.boot.multiboot import Module
from vmm.errors import ImageError
from vmm.ram import Ram


class BootSource(Protocol):
    """Something that puts itself into RAM and says where to start."""

    needs_bios: bool

    def load(self, ram: Ram) -> Entry: ...


def read_image(path: Path | str) -> bytes:
    """The bytes of an image file; ImageError says which file and why not."""
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise ImageError(f"{path}: {exc.strerror}") from None


@dataclass
class LinuxBoot:
    """A bzImage or vmlinux with initrd and command line, entered in long mode."""

    kernel: bytes
    command_line: str = "console=ttyS0"
    initrd: bytes = b""
    name: str = "kernel"
    needs_bios: bool = field(default=False, init=False)

    def load(self, ram: Ram) -> Entry:
        return linux.load(ram, KernelImage.parse(self.kernel, self.name), self.command_line, self.initrd)


@dataclass
class MultibootBoot:
    """A Multiboot kernel with modules and command line, entered in protected mode."""

    kernel: bytes
    command_line: str = ""
    modules: tuple[Module, ...] = ()
    name: str = "kernel"
    needs_bios: bool = field(default=False, init=False)

    def load(self, ram: Ram) -> Entry:
        return multiboot.load(ram, self.kernel, self.command_line, self.modules, self.name)


@dataclass
class BootSectorBoot:
    """A boot sector at 0x7C00 in real mode, with a BIOS and the disk behind it."""

    image: bytes
    name: str = "boot sector"
    needs_bios: bool = field(default=True, init=False)

    def load(self, ram: Ram) -> Entry:
        return mbr.load(ram, self.image, name=self.name)
