"""guests/manifest.toml: what it must say, and how it complains."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.errors import GuestBuildError
from vmm.guest import manifest
from vmm.guest.store import guests_directory

GUESTS = guests_directory()
MINIMAL = """
[guest.tiny]
title = "t"
kind = "multiboot"
description = "d"
licence = "l"
expect = "e"
within_ms = 1
ram_mib = 1
size_kib = 1
image = "bare/hello.elf"
sha256 = "{digest}"
""".format(digest="0" * 64)


def test_the_guests_that_people_know_are_there() -> None:
    infos = manifest.load(GUESTS)
    assert list(infos) == [
        *("linux", "linux-disk", "redis", "nginx", "kv"),
        *("hello", "counter", "udpecho", "bootsector"),
    ]
    assert all(info.name == name for name, info in infos.items())


def test_every_file_it_names_exists_and_every_file_is_named() -> None:
    named = {"manifest.toml", "README.md"}
    for info in manifest.load(GUESTS).values():
        named |= {info.image, *manifest.source_files(info)} - {""}
    present = {str(p.relative_to(GUESTS)) for p in GUESTS.rglob("*") if p.is_file()}
    assert named <= present
    # Sources of the bare-metal guests, and console scripts to play to a guest, are not part of one.
    assert {p for p in present - named if not p.startswith("bare/") and not p.endswith(".script")} == set()


def test_linux_command_lines_switch_no_hardware_off() -> None:
    for info in manifest.load(GUESTS).values():
        if info.kind == "linux":
            words = set(info.cmdline.split())
            assert not words & {"nolapic", "noapic", "nosmp", "pci=off", "nopci", "noapictimer"}
            assert "console=ttyS0,115200" in words
            assert "panic=-1" in words


def test_linux_guests_take_what_the_base_has_first() -> None:
    redis = manifest.load(GUESTS)["redis"]
    assert redis.recipe is not None
    assert redis.recipe.packages[0] == "busybox-static"
    assert "redis-server" in redis.recipe.packages
    assert redis.cmdline.endswith(" quiet")
    assert redis.devices == ("net", "rng")


@pytest.mark.parametrize("name", ["hello", "counter", "udpecho", "bootsector"])
def test_committed_binaries_are_what_the_manifest_says(name: str) -> None:
    info = manifest.load(GUESTS)[name]
    assert info.built_in
    data = (GUESTS / info.image).read_bytes()
    assert hashlib.sha256(data).hexdigest() == info.sha256
    if info.kind == "multiboot":  # Multiboot 0.6.96, 3.1.1: aligned, within 8 KiB, fields that sum to 0
        at = data[:8192].index(b"\x02\xb0\xad\x1b")
        words = [int.from_bytes(data[at + 4 * i : at + 4 * i + 4], "little") for i in range(3)]
        assert at % 4 == 0
        assert sum(words) & 0xFFFFFFFF == 0
    else:
        assert len(data) == 512
        assert data[510:] == b"\x55\xaa"


def tools() -> str:
    """The versions that TOOLCHAIN would have here."""
    lines = []
    for tool in ("gcc", "ld"):
        if shutil.which(tool) is None:
            return ""
        lines.append(
            subprocess.run(
                [tool, "--version"], capture_output=True, text=True, check=False
            ).stdout.splitlines()[0]
        )
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(shutil.which("make") is None or not tools(), reason="make, gcc or ld is not installed")
def test_committed_binaries_are_what_their_sources_make(tmp_path: Path) -> None:
    """The same tools give the same bytes; other versions must at least still build every guest."""
    done = subprocess.run(
        ["make", "-C", GUESTS / "bare", f"OUT={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    same_tools = (GUESTS / "bare" / "TOOLCHAIN").read_text() == tools()
    for info in manifest.load(GUESTS).values():
        if info.built_in:
            rebuilt = (tmp_path / Path(info.image).name).read_bytes()
            assert rebuilt[:4] in (b"\x7fELF", b"\xea\x05\x7c\x00")
            if same_tools:
                assert hashlib.sha256(rebuilt).hexdigest() == info.sha256, info.name


def test_a_minimal_guest_parses() -> None:
    info = manifest.parse(MINIMAL, "m")["tiny"]
    assert (info.name, info.kind, info.cmdline, info.devices) == ("tiny", "multiboot", "", ())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "t"', "", "[guest.tiny]: Object missing required field `title`"),
        ("ram_mib = 1", 'ram_mib = "x"', "[guest.tiny]: Expected `int`, got `str` - at `ram_mib`"),
        ("ram_mib = 1", "ram_mib = 9999", "[guest.tiny]: ram_mib = 9999, expected 1 to 2048"),
        ("size_kib = 1", "size_kib = 1\nspeed = 3", "[guest.tiny]: Object contains unknown field `speed`"),
        ('"multiboot"', '"windows"', "[guest.tiny]: Invalid enum value 'windows' - at `kind`"),
        ('expect = "e"', 'expect = ""', "[guest.tiny]: expect is empty"),
        ("[guest.tiny]", "[guest.Tiny]", "[guest.Tiny]: name must match"),
        ("[guest.tiny]", "[gast.tiny]", "unknown table [gast]"),
        ("bare/hello.elf", "../x", "[guest.tiny]: '../x' leads out of the guests directory"),
        ("0" * 64, "12", "[guest.tiny]: sha256 is not 64 hex digits"),
        ('"multiboot"', '"linux"', "[guest.tiny]: a Linux guest needs a recipe"),
        ("[guest.tiny]", "[guest.tiny", "not TOML"),
    ],
)
def test_errors_point_at_the_table_and_the_key(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(GuestBuildError, match="^m: .*" + re.escape(message)):
        manifest.parse(MINIMAL.replace(old, new), "m")


def test_a_recipe_with_an_unknown_base_names_those_there_are() -> None:
    text = MINIMAL.replace('image = "bare/hello.elf"', "").replace(f'sha256 = "{"0" * 64}"', "")
    text = text.replace("multiboot", "linux") + '[guest.tiny.recipe]\nbase = "b"\n[base.a]\n'
    with pytest.raises(GuestBuildError, match=r"\[guest.tiny.recipe\]: base = 'b', but the bases are a"):
        manifest.parse(text, "m")


def test_a_directory_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(GuestBuildError, match=r"manifest.toml: cannot be read"):
        manifest.load(tmp_path)
