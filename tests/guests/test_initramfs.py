"""The newc cpio writer (Documentation/driver-api/early-userspace/buffer-format.rst) and its reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import ImageError
from vmm.guest import initramfs
from vmm.guest.tree import Kind, Tree


def example() -> Tree:
    tree = Tree()
    tree.add_merged_usr()
    tree.add_file("/usr/bin/tool", b"#!/bin/sh\n", 0o755)
    tree.add_file("etc/empty", b"")
    tree.add_link("/init", "usr/bin/tool")
    tree.add_character_device("dev/console", 5, 1)
    tree.add_directory("tmp", 0o1777)
    return tree


def test_header_fields_are_where_the_format_says() -> None:
    tree = Tree()
    tree.add_file("a", b"xyz", 0o640)
    archive = initramfs.write(tree)
    # magic, then ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    expected = (1, 0o100640, 0, 0, 1, 0, 3, 0, 0, 0, 0, 2, 0)
    assert archive[:110] == b"070701" + b"".join(b"%08X" % field for field in expected)
    assert archive[110:112] == b"a\0"  # 112 is a multiple of 4: the data follows at once
    assert archive[112:116] == b"xyz\0"
    assert archive[116:122] == b"070701"
    assert b"TRAILER!!!\0" in archive[116:]
    assert len(archive) % 512 == 0


def test_what_is_written_reads_back() -> None:
    tree = example()
    assert list(initramfs.read(initramfs.write(tree)).items()) == list(tree.items())


def test_parents_come_first_and_order_of_adding_does_not_matter() -> None:
    one, two = Tree(), Tree()
    for tree, names in ((one, ("b/c/d", "a")), (two, ("a", "b/c/d"))):
        for name in names:
            tree.add_file(name, name.encode())
    assert initramfs.write(one) == initramfs.write(two)
    assert [name for name, _ in one.items()] == ["a", "b", "b/c", "b/c/d"]


names = st.text("abcxyz._-", min_size=1, max_size=8).filter(lambda n: n.strip("."))


@given(st.dictionaries(names, st.tuples(st.binary(max_size=40), st.integers(0, 0o7777)), max_size=8))
def test_any_files_read_back(files: dict[str, tuple[bytes, int]]) -> None:
    tree = Tree()
    for name, (data, mode) in files.items():
        tree.add_file(name, data, mode)
    assert list(initramfs.read(initramfs.write(tree)).items()) == list(tree.items())


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        initramfs.read(data)


@pytest.mark.parametrize("cut", [0, 50, 109, 115, 300])
def test_a_cut_archive_is_refused_with_the_offset(cut: int) -> None:
    with pytest.raises(ImageError, match="offset 0x"):
        initramfs.read(initramfs.write(example())[:cut])


def test_a_real_cpio_agrees(tmp_path: Path) -> None:
    command = [["cpio"], ["busybox", "cpio"]]
    tool = next((c for c in command if shutil.which(c[0])), None)
    if tool is None:
        pytest.skip("neither cpio nor busybox is installed")
    tree = Tree()  # no device node: making one needs root
    tree.add_file("etc/one", b"1", 0o640)
    tree.add_link("etc/two", "one")
    archive = initramfs.write(tree)
    listing = subprocess.run([*tool, "-t"], input=archive, capture_output=True, check=True).stdout.decode()
    assert listing.split() == ["etc", "etc/one", "etc/two"]
    subprocess.run([*tool, "-i", "-d"], input=archive, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "etc/two").read_bytes() == b"1"
    assert (tmp_path / "etc/one").stat().st_mode & 0o777 == 0o640


def test_a_tree_has_one_name_for_a_file() -> None:
    tree = Tree()
    tree.add_file("/lib/x/../y.so", b"y")
    assert "usr/lib/y.so" in tree
    assert "./lib//y.so" in tree
    tree.add_file("../../etc/passwd", b"")  # an archive that wants out stays inside
    assert "etc/passwd" in tree


def test_links_are_followed_inside_the_tree_and_loops_end() -> None:
    tree = Tree()
    tree.add_file("usr/lib/real", b"")
    tree.add_link("usr/lib64/ld", "/lib/real")
    tree.add_link("a", "b")
    tree.add_link("b", "a")
    tree.add_link("dangling", "../../../nowhere")
    assert tree.chain("/lib64/ld") == ["usr/lib64/ld", "usr/lib/real"]
    assert tree.chain("a") == []
    assert tree.chain("dangling") == []


def test_a_directory_never_replaces_a_link() -> None:
    tree = Tree()
    tree.add_merged_usr()
    tree.add_directory("bin")
    assert tree["bin"].kind is Kind.LINK
