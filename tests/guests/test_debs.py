"""Debian packages read without dpkg (deb(5), ar(5)), and programs with the libraries they need.

Most packages here are made by the tests; the last tests ask the machine's apt, when it can answer
without a network.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from vmm.errors import GuestBuildError
from vmm.guest import debs
from vmm.guest.apt import Apt
from vmm.guest.kernel import Module, module_name, modules_dep
from vmm.guest.tree import Kind, Tree


def tar(members: dict[str, bytes | str]) -> bytes:
    """A tar archive; a ``str`` is a symbolic link's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size, info.mode = len(content), 0o755
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def deb(files: dict[str, bytes | str], depends: str = "", name: str = "p", packer: str = "xz") -> bytes:
    control = f"Package: {name}\nVersion: 1.0-1\nDepends: {depends}\nDescription: short\n long\n".encode()
    pack = {"xz": lzma.compress, "zst": zstandard.compress, "": bytes}[packer]
    ending = f".{packer}" if packer else ""
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar" + ending: pack(tar({"./control": control})),
            "data.tar" + ending: pack(tar(files)),
        }
    )


@pytest.mark.parametrize("packer", ["xz", "zst", ""])
def test_every_compression_reads(packer: str) -> None:
    archive = deb({"./bin/tool": b"x" * 1001, "./usr/bin/other": "tool"}, packer=packer)
    tree = debs.read_files(archive, lambda name: True)
    assert tree["usr/bin/tool"].data == b"x" * 1001
    assert tree["usr/bin/tool"].mode == 0o755
    assert tree["usr/bin/other"].kind is Kind.LINK


def test_control_fields_and_dependencies() -> None:
    control = debs.read_control(deb({}, depends="libc6 (>= 2.34), a:any | b, c (<< 1) [amd64], a"))
    assert control["Version"] == "1.0-1"
    assert control["Description"].startswith("short")
    assert debs.dependencies(control) == ["libc6", "a", "b", "c"]
    assert debs.dependencies({"Pre-Depends": "first", "Depends": "second"}) == ["first", "second"]


def test_names_that_lead_out_stay_inside() -> None:
    tree = debs.read_files(deb({"../../../etc/shadow": b"!", "/abs": b""}), lambda name: True)
    assert [name for name, node in tree.items() if node.kind is Kind.FILE] == ["abs", "etc/shadow"]


def test_only_what_is_wanted_is_kept() -> None:
    tree = debs.read_files(deb({"./usr/share/doc": b"d", "./usr/bin/x": b""}), lambda n: "share" not in n)
    assert "usr/share/doc" not in tree
    assert "usr/bin/x" in tree


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"", "not a Debian package"),
        (b"PK\x03\x04", "not a Debian package"),
        (b"!<arch>\n" + b"x" * 60, "no ar header at offset 0x8"),
        (ar({"control.tar.xz": lzma.compress(b"x")})[:-8], "bytes, .* are there"),
        (ar({"control.tar.xz": b"no xz at all"}), "damaged Debian package: control.tar.xz"),
        (ar({"control.tar.xz": lzma.compress(b"x" * 9999)[:-30]}), "damaged Debian package: control.tar.xz"),
        (ar({"control.tar.zst": b"(\xb5/\xfd no zstd"}), "damaged Debian package: control.tar.zst"),
        (ar({"debian-binary": b"2.0\n"}), r"no member control.tar"),
    ],
)
def test_damage_is_named(archive: bytes, message: str) -> None:
    with pytest.raises(GuestBuildError, match=message):
        debs.read_control(archive)


@pytest.mark.parametrize(
    ("soname", "package"),
    [
        ("libssl.so.3", "libssl3"),
        ("liblua5.1.so.0", "liblua5.1-0"),  # a stem that ends in a digit takes a hyphen
        ("libstdc++.so.6", "libstdc++6"),
        ("libgcc_s.so.1", "libgcc-s1"),
        ("libpcre2-8.so.0", "libpcre2-8-0"),
    ],
)
def test_package_names_follow_policy_8_1(soname: str, package: str) -> None:
    assert debs.package_of_soname(soname) == package


class Archive:
    """A package archive in a directory: what vmm.guest.apt does for real."""

    def __init__(self, directory: Path, packages: dict[str, bytes]) -> None:
        self.fetched: list[str] = []
        self._paths = {name: directory / f"{name}.deb" for name in packages}
        for name, content in packages.items():
            self._paths[name].write_bytes(content)

    def exists(self, name: str) -> bool:
        return name in self._paths

    def first_known(self, names: tuple[str, ...]) -> str:
        return next(name for name in names if name in self._paths)

    def look_up(self, names: list[str]) -> None:
        pass

    def fetch(self, names: list[str]) -> dict[str, Path]:
        self.fetched += names
        return {name: self._paths[name] for name in names}


def shared_object(directory: Path, name: str, *needs: Path) -> Path:
    """A real ELF shared library or program, so that DT_NEEDED is a linker's and not ours."""
    path = directory / name
    arguments = ["gcc", "-shared", "-nostdlib", "-x", "c", "/dev/null", "-x", "none", "-Wl,--no-as-needed"]
    subprocess.run([*arguments, f"-Wl,-soname,{name}", "-o", path, *needs], check=True)
    return path


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_a_program_brings_exactly_its_libraries(tmp_path: Path) -> None:
    inner = shared_object(tmp_path, "libinner.so.2")
    outer = shared_object(tmp_path, "libouter.so.1", inner)
    program = shared_object(tmp_path, "tool-server", outer)
    lib = "./usr/lib/x86_64-linux-gnu"
    archive = Archive(
        tmp_path,
        {
            "tool-server": deb({"./usr/bin/alias": "tool-server"}, "unrelated, tool-data"),
            "tool-data": deb({"./bin/tool-server": program.read_bytes()}, "unrelated, libouter1"),
            "libouter1": deb(
                {f"{lib}/libouter.so.1": "real.so", f"{lib}/real.so": outer.read_bytes()}, "libz9"
            ),
            "libz9": deb({"./lib/x86_64-linux-gnu/libinner.so.2": inner.read_bytes()}),
            "unrelated": deb({"./usr/bin/unrelated": b""}),
        },
    )
    packages, root = debs.Packages(archive), Tree()
    packages.add(["tool-server"])
    packages.install("/usr/bin/tool-server", root)
    files = [name for name, node in root.items() if node.kind is not Kind.DIRECTORY]
    base = "usr/lib/x86_64-linux-gnu"
    assert files == [
        "usr/bin/tool-server",
        f"{base}/libinner.so.2",
        f"{base}/libouter.so.1",
        f"{base}/real.so",
    ]
    assert archive.fetched == ["tool-server", "tool-data", "libouter1", "libz9"]
    assert packages.versions["libz9"] == "1.0-1"


def test_a_missing_program_names_what_was_searched(tmp_path: Path) -> None:
    packages = debs.Packages(Archive(tmp_path, {"p": deb({"./usr/bin/x": b""})}))
    packages.add(["p"])
    with pytest.raises(GuestBuildError, match="/usr/bin/y: not in package p"):
        packages.install("/usr/bin/y", Tree())


def test_a_damaged_elf_file_names_itself() -> None:
    tree = Tree()
    tree.add_file("usr/bin/x", b"\x7fELF\x02\x01")
    with pytest.raises(GuestBuildError, match="usr/bin/x: not a sound ELF"):
        debs.needed_by_elf(tree["usr/bin/x"], "usr/bin/x")


def test_modules_dep_lists_the_nearest_first() -> None:
    def module(name: str, *depends: str) -> Module:
        return Module(name, f"kernel/{name}.ko", b"", depends, ())

    modules = {m.name: m for m in (module("ring"), module("virtio", "ring"), module("net", "ring", "virtio"))}
    assert modules_dep(modules).splitlines() == [
        "kernel/net.ko: kernel/virtio.ko kernel/ring.ko",
        "kernel/ring.ko:",
        "kernel/virtio.ko: kernel/ring.ko",
    ]
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko.zst") == "virtio_rng"


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
def test_apt_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package nobody has, and sources that lead nowhere: the error names the package or the update."""
    (tmp_path / "apt.conf").write_text('Dir::Etc::SourceList "/dev/null"; Dir::Etc::SourceParts "/dev/null";')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    said: list[str] = []
    apt = Apt(tmp_path / "cache", said.append)
    with pytest.raises(GuestBuildError, match=r"(?s)no-such-package-here.*hello"):
        apt.fetch(["no-such-package-here"])
    with pytest.raises(GuestBuildError, match=r"knows none of no-such-one, no-such-two\."):
        apt.first_known(["no-such-one", "no-such-two"])
    assert any("private package lists" in line for line in said)


def test_no_apt_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestBuildError, match=r"apt-get was not found.*hello"):
        Apt(tmp_path / "cache", print).fetch(["x"])
