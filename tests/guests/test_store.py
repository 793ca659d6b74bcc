"""The cache of built guests: found, verified, repaired, never half-written.

The tests build with real code from a package archive that they make themselves: a "kernel" and a
"busybox" small enough to build in milliseconds.  One test, run only when asked for (COLO_TEST_APT=1),
builds the real thing from the network.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import vmm.guest
from tests.guests.test_debs import Archive, deb
from vmm.errors import GuestBuildError
from vmm.guest import ext4, initramfs, store
from vmm.guest.store import Store
from vmm.guest.tree import Tree

MANIFEST = """
[guest.small]
title = "t"
kind = "linux"
description = "d"
licence = "l"
cmdline = "console=ttyS0"
expect = "e"
within_ms = 1
ram_mib = 8
size_kib = 1
[guest.small.recipe]
kernels = ["no-such-kernel", "linux-image-tiny"]
packages = ["busybox-static"]
files = [{ from = "rc", to = "/etc/rc", mode = 0o755 }]
fill = [{ to = "/www/letters", size = 30 }]
links = { "/init" = "etc/rc" }
"""

BUSYBOX = b"#!/bin/sh\necho '[ sh ls busybox'\n"


def packages(version: str) -> dict[str, bytes]:
    return {
        "linux-image-tiny": deb({}, depends="linux-image-9-tiny"),
        "linux-image-9-tiny": deb({"./boot/vmlinuz-9": b"kernel " + version.encode()}),
        "busybox-static": deb({"./bin/busybox": BUSYBOX}),
    }


class Bench:
    """A manifest, an archive and a cache in a temporary directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guests, self.cache, self.debs = (directory / name for name in ("guests", "cache", "debs"))
        self.guests.mkdir()
        self.debs.mkdir()
        (self.guests / "manifest.toml").write_text(MANIFEST)
        (self.guests / "rc").write_text("#!/bin/sh\n")
        self.said: list[str] = []
        self.online = True
        self.version = "1"
        monkeypatch.setattr(store, "Apt", self._apt)

    def _apt(self, cache: Path, progress: object) -> Archive:
        if not self.online:
            raise GuestBuildError("no network")
        return Archive(self.debs, packages(self.version))

    def guest(self) -> store.Guest:
        return Store(self.guests, self.cache).open("small")

    def build(self, force: bool = False) -> store.BuiltGuest:
        return self.guest().build(self.said.append, force)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_build_has_what_the_recipe_says(bench: Bench) -> None:
    built = bench.build()
    assert built.kernel.read_bytes() == b"kernel 1"
    assert built.disk is None
    assert built.initrd is not None
    root = initramfs.read(built.initrd.read_bytes())
    assert root["etc/rc"].mode == 0o755
    assert root["init"].target == "etc/rc"
    assert root["www/letters"].data == b"abcdefghijklmnopqrstuvwxyzabc\n"
    assert root["bin"].target == "usr/bin"
    assert root["usr/bin/ls"].target == "busybox"
    assert root["dev/console"].device == (5, 1)
    assert built.cmdline == "console=ttyS0"
    assert built.packages == dict.fromkeys(packages("1"), "1.0-1")
    assert built.size_bytes == built.kernel.stat().st_size + built.initrd.stat().st_size


def test_a_second_build_is_the_first_and_needs_no_network(bench: Bench) -> None:
    first = bench.build()
    bench.online = False
    said = len(bench.said)
    assert bench.build() == first
    assert len(bench.said) == said


def test_the_same_packages_give_the_same_bytes(bench: Bench) -> None:
    first = bench.build()
    shutil.rmtree(bench.cache)
    assert bench.build().key == first.key


def test_an_upgrade_waits_until_it_is_asked_for(bench: Bench) -> None:
    first = bench.build()
    bench.version = "2"
    assert bench.build().key == first.key
    forced = bench.build(force=True)
    assert forced.key != first.key
    assert forced.kernel.read_bytes() == b"kernel 2"
    assert first.kernel.read_bytes() == b"kernel 1"  # a machine may still run from it
    assert bench.build() == forced


def test_a_changed_recipe_file_is_a_new_build(bench: Bench) -> None:
    first = bench.build()
    (bench.guests / "rc").write_text("#!/bin/sh\necho changed\n")
    assert not bench.guest().status().built
    assert bench.build().key != first.key


@pytest.mark.parametrize("name", ["kernel", "initrd"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_noticed_and_built_again(bench: Bench, name: str, damage: str) -> None:
    first = bench.build()
    path = first.kernel.parent / name
    good = path.read_bytes()
    path.chmod(0o644)
    match damage:
        case "flip":
            path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        case "cut":
            path.write_bytes(good[:-1])
        case "remove":
            path.unlink()
    again = bench.build()
    assert again == first
    assert path.read_bytes() == good
    assert any("damaged" in line for line in bench.said)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"guest": 1}', "\xff"])
def test_a_damaged_receipt_is_noticed(bench: Bench, text: str) -> None:
    first = bench.build()
    (receipt,) = (bench.cache / "receipts").iterdir()
    receipt.write_text(text)
    assert bench.build() == first


def test_a_receipt_cannot_name_files_elsewhere(bench: Bench) -> None:
    built = bench.build()
    (receipt,) = (bench.cache / "receipts").iterdir()
    receipt.write_text(receipt.read_text().replace(f'"key": "{built.key}"', '"key": "../builds"'))
    assert not bench.guest().status().built


def test_an_interrupted_build_leaves_nothing_that_is_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tree: Tree) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(initramfs, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bench.build()
    assert list((bench.cache / "tmp").iterdir()) == []
    assert not bench.guest().status().built
    (bench.cache / "tmp" / "small.killed").mkdir()  # what SIGKILL leaves
    bench.build()
    assert list((bench.cache / "tmp").iterdir()) == []


def test_a_failed_forced_build_keeps_the_one_there_is(bench: Bench) -> None:
    first = bench.build()
    bench.online = False
    with pytest.raises(GuestBuildError, match="no network"):
        bench.build(force=True)
    assert bench.build() == first


def _build_in_a_process(bench: Bench, results: multiprocessing.SimpleQueue[tuple[str, int]]) -> None:
    built = bench.build()
    results.put((built.key, sum("guest small: built" in line for line in bench.said)))


def test_two_processes_build_once(bench: Bench) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.SimpleQueue[tuple[str, int]] = context.SimpleQueue()
    processes = [context.Process(target=_build_in_a_process, args=(bench, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert len({key for key, _ in answers}) == 1
    assert sum(built for _, built in answers) == 1


def test_files_of_a_build_are_read_only(bench: Bench) -> None:
    assert bench.build().kernel.stat().st_mode & 0o777 == 0o444


def test_prune_removes_what_no_receipt_names(bench: Bench) -> None:
    first = bench.build()
    bench.version = "2"
    second = bench.build(force=True)
    assert Store(bench.guests, bench.cache).prune() == first.size_bytes
    assert not first.kernel.exists()
    assert bench.build() == second


def test_a_cache_that_cannot_be_written_says_what_to_do(bench: Bench) -> None:
    bench.cache.write_text("a file where the directory should be")
    with pytest.raises(GuestBuildError, match="COLO_CACHE"):
        bench.build()


def test_a_missing_file_of_the_recipe_names_it(bench: Bench) -> None:
    (bench.guests / "rc").unlink()
    with pytest.raises(GuestBuildError, match=r"rc: No such file.*install"):
        bench.build()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert store.cache_directory() == Path.home() / ".cache/colo-vmm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_directory() == tmp_path / "colo-vmm"
    monkeypatch.setenv("COLO_CACHE", str(tmp_path / "mine"))
    assert store.cache_directory() == tmp_path / "mine"


def test_committed_guests_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLO_CACHE", str(tmp_path / "unused"))
    built = vmm.guest.open("hello").build()
    assert built.kernel.read_bytes()[:4] == b"\x7fELF"
    assert built.initrd is None
    assert vmm.guest.info("counter").built
    assert vmm.guest.open("counter").build().cmdline == "mib=8 ms=10"
    assert not (tmp_path / "unused").exists()


def test_a_damaged_committed_guest_is_refused(tmp_path: Path) -> None:
    shutil.copytree(store.guests_directory(), tmp_path / "guests")
    (tmp_path / "guests/bare/hello.elf").write_bytes(b"\x7fELF")
    with pytest.raises(GuestBuildError, match=r"hello.elf has SHA-256 .* the manifest says"):
        Store(tmp_path / "guests", tmp_path / "cache").open("hello").build()


def test_an_unknown_guest_names_those_there_are() -> None:
    with pytest.raises(GuestBuildError, match=r"no guest 'windows'; the guests are linux, .*hello"):
        vmm.guest.open("windows")


def test_the_listing_has_every_guest(tmp_path: Path) -> None:
    listed = Store(cache=tmp_path).list()
    assert {s.info.name: s.built for s in listed if s.built} == dict.fromkeys(
        ("hello", "counter", "udpecho", "bootsector"), True
    )
    assert len(listed) == len(Store(cache=tmp_path).names())


@pytest.mark.skipif(
    shutil.which("mke2fs", path=ext4._PLACES) is None, reason="mke2fs (e2fsprogs) is not installed"
)
def test_an_ext4_disk_is_the_same_every_time_and_owned_by_root(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_file("etc/one two", b"12", 0o640)  # a name with a space
    tree.add_link("bin", "usr/bin")
    images = [tmp_path / "a", tmp_path / "b"]
    for image in images:
        ext4.build(tree, image, 16)
    first, second = (image.read_bytes() for image in images)
    assert first == second
    assert len(first) == 16 << 20
    assert first[1080:1082] == b"\x53\xef"  # superblock at 1024, magic 0xEF53 at 56
    debugfs = shutil.which("debugfs", path=ext4._PLACES)
    assert debugfs is not None
    command = [debugfs, "-R", 'stat "/etc/one two"', images[0]]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "User:     0   Group:     0" in shown
    assert "Mode:  0640" in shown


@pytest.mark.skipif(os.environ.get("COLO_TEST_APT") != "1", reason="needs a network: set COLO_TEST_APT=1")
def test_the_real_linux_guest(tmp_path: Path) -> None:
    built = Store(cache=tmp_path).open("linux").build(print)
    assert built.kernel.read_bytes()[0x202:0x206] > b"\x0c\x02"
    assert built.initrd is not None
    root = initramfs.read(built.initrd.read_bytes())
    names = [name.rsplit("/", 1)[-1] for name, _ in root.items()]
    assert {"virtio_pci.ko", "virtio_net.ko", "modules.dep", "modules.alias", "busybox"} <= set(names)
