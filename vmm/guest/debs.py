"""Debian packages, read without dpkg: deb(5) around ar(5) around tar, compressed by xz, zstd or gzip.

``Packages`` is a growing set of unpacked packages from which programs are taken *with exactly the
shared libraries they need*: DT_INTERP and DT_NEEDED are followed through the ELF files (System V gABI,
chapter 5), and a library that is not there yet is looked for in the packages that the needing package
depends on, first the one whose name Debian Policy section 8.1 derives from the library's soname
(``libssl.so.3`` -> ``libssl3``).

A package is read into memory (vmm.guest.tree), so nothing in it can touch a file of the host.

Left out: maintainer scripts (nothing is installed), version constraints (apt's candidates of one
archive fit together), libraries opened by name at run time (dlopen: a recipe lists those it wants).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from vmm.errors import GuestBuildError
from vmm.guest.tree import Kind, Node, Tree, normal

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60
AR_MEMBER_LIMIT = 16
"""deb(5) has three members; more than a few is not a package."""

KEPT_BYTES_LIMIT = 1 << 30
"""The most that one package may leave in memory; a kernel with all its modules is about 400 MiB."""

LIBRARY_DIRECTORIES = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib")
"""Where ld.so of Debian and Ubuntu looks (ld.so(8), multiarch), /usr merged."""

NAMED_OTHERWISE = {"ld-linux-x86-64": "libc6", "libcrypto": "libssl", "libz": "zlib1g"}
"""Libraries whose package is not named after them."""

SEARCH_LIMIT = 64
"""The most packages tried for one missing file; a package depends on far fewer."""


class Fetcher(Protocol):
    """What ``Packages`` needs of apt (vmm.guest.apt.Apt)."""

    def exists(self, name: str) -> bool: ...
    def look_up(self, names: list[str]) -> None: ...
    def fetch(self, names: list[str]) -> dict[str, Path]: ...


# -- one package ------------------------------------------------------------------------------------


def ar_members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of an ar(5) archive."""
    if archive[:8] != AR_MAGIC:
        raise GuestBuildError(f"not a Debian package: begins with {archive[:8]!r}, expected {AR_MAGIC!r}")
    offset = len(AR_MAGIC)
    for _ in range(AR_MEMBER_LIMIT):
        if offset >= len(archive):
            return
        header = archive[offset : offset + AR_HEADER_BYTES]
        digits = header[48:58].strip()
        if header[58:60] != b"`\n" or not digits.isdigit():
            raise GuestBuildError(f"damaged Debian package: no ar header at offset {offset:#x}")
        start, size = offset + AR_HEADER_BYTES, int(digits)
        if start + size > len(archive):
            raise GuestBuildError(
                f"damaged Debian package: member at offset {offset:#x} has {size} bytes, "
                f"{len(archive) - start} are there"
            )
        yield header[:16].decode("ascii", "replace").rstrip().rstrip("/"), archive[start : start + size]
        offset = start + size + (size & 1)


@contextlib.contextmanager
def open_member(archive: bytes, stem: str) -> Iterator[tarfile.TarFile]:
    """The tar archive ``control.tar.*`` or ``data.tar.*`` of a package, for reading once in order."""
    for name, content in ar_members(archive):
        if name == stem or name.startswith(stem + "."):
            try:
                with tarfile.open(fileobj=decompressed(name, content), mode="r|") as tar:
                    yield tar
            except (tarfile.TarError, lzma.LZMAError, zstandard.ZstdError, EOFError, OSError) as error:
                raise GuestBuildError(f"damaged Debian package: {name}: {error}") from None
            return
    raise GuestBuildError(f"damaged Debian package: no member {stem}.*")


def decompressed(name: str, content: bytes) -> IO[bytes]:
    """``content`` as a stream, decompressed as the ending of ``name`` says."""
    raw = io.BytesIO(content)
    match name.rsplit(".", 1)[-1]:
        case "xz" | "lzma":
            return lzma.open(raw)
        case "gz":
            return io.BytesIO(gzip.decompress(content))
        case "zst":
            return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))
        case _:
            return raw


def read_control(archive: bytes) -> dict[str, str]:
    """The fields of the package's control file (deb822(5))."""
    with open_member(archive, "control.tar") as tar:
        for member in tar:
            if normal(member.name) == "control" and member.isfile():
                text = _content(tar, member).decode(errors="replace")
                return dict(re.findall(r"^([A-Za-z0-9-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", text, re.M))
    raise GuestBuildError("damaged Debian package: no control file")


def read_files(archive: bytes, wanted: Callable[[str], bool]) -> Tree:
    """The package's files whose merged name is ``wanted``, as a Tree."""
    tree, kept = Tree(), 0
    with open_member(archive, "data.tar") as tar:
        for member in tar:
            name = normal(member.name)
            if not wanted(name):
                continue
            if member.isfile():
                kept += member.size
                if kept > KEPT_BYTES_LIMIT:
                    raise GuestBuildError(
                        f"Debian package unpacks to more than {KEPT_BYTES_LIMIT >> 20} MiB at {name}"
                    )
                tree.add_file(name, _content(tar, member), member.mode & 0o777)
            elif member.issym():
                tree.add_link(name, member.linkname)
            elif member.islnk() and member.linkname in tree:
                tree.add(name, tree[member.linkname])
            elif member.isdir():
                tree.add_directory(name)
    return tree


def dependencies(control: dict[str, str]) -> list[str]:
    """Package names in Pre-Depends and Depends, alternatives in order, versions dropped."""
    text = ",".join(control.get(field, "") for field in ("Pre-Depends", "Depends"))
    names = (re.split(r"[\s:(\[]", part.strip(), maxsplit=1)[0] for part in re.split(r"[,|]", text))
    return list(dict.fromkeys(name for name in names if name))


def package_of_soname(soname: str) -> str:
    """The package name that Debian Policy section 8.1 gives a library: soname, version appended."""
    stem, _, version = soname.partition(".so.")
    return (stem + ("-" if stem[-1:].isdigit() else "") + version).lower().replace("_", "-")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file has content
    return file.read()


# -- a set of packages ------------------------------------------------------------------------------


class Packages:
    """Unpacked packages, one tree.  ``versions`` says what was used."""

    def __init__(self, apt: Fetcher, wanted: Callable[[str], bool] = lambda name: True) -> None:
        self.tree = Tree()
        self.versions: dict[str, str] = {}
        self.digest_inputs: dict[str, Path] = {}
        self._apt = apt
        self._wanted = wanted
        self._depends: dict[str, list[str]] = {}
        self._owner: dict[str, str] = {}

    def add(self, names: Iterable[str]) -> None:
        """Fetch and unpack packages that are not here yet."""
        new = [name for name in names if name not in self.versions]
        if not new:
            return
        for name, path in self._apt.fetch(new).items():
            archive = path.read_bytes()
            control = read_control(archive)
            self.versions[name] = control.get("Version", "?")
            self.digest_inputs[name] = path
            self._depends[name] = dependencies(control)
            for file, node in read_files(archive, self._wanted).items():
                self.tree.add(file, node)
                if node.kind is not Kind.DIRECTORY:
                    self._owner.setdefault(file, name)

    def depends(self, name: str) -> list[str]:
        """What an added package depends on."""
        return self._depends[name]

    def below(self, folder: str) -> list[str]:
        """The files of the packages added so far that are in ``folder``, by name; no links to nowhere."""
        prefix = f"{normal(folder)}/".lstrip("/")
        return sorted(name for name in self._owner if name.startswith(prefix) and self.tree.chain(name))

    def install(self, path: str, into: Tree) -> None:
        """Copy a program or library with everything the dynamic linker needs to run it."""
        pending = [(path, "")]
        while pending:
            self._fetch_likely(pending)
            needed: list[tuple[str, str]] = []
            for name, needed_by in pending:
                found = self._find(name, needed_by)
                if normal(found) in into:
                    continue
                final = into.add_from(self.tree, found)
                needed.extend(
                    (library, self._owner[final]) for library in needed_by_elf(self.tree[final], final)
                )
            pending = list(dict.fromkeys(needed))

    def _fetch_likely(self, wanted: list[tuple[str, str]]) -> None:
        """Add, in one go, the packages that the missing names themselves point to."""
        names: dict[str, None] = {}
        for name, needed_by in wanted:
            if needed_by and not self._present(_places(name)):
                first = self._by_likelihood(name, [needed_by])[:1]
                names |= dict.fromkeys(d for d in first if d.startswith(likely_package(name)))
        self._apt.look_up(list(names))
        self.add([name for name in names if self._apt.exists(name)])

    def _find(self, name: str, needed_by: str) -> str:
        """Where ``name`` (a path, or a bare soname) is, after adding the package that has it."""
        places = _places(name)
        if found := self._present(places):
            return found
        sources = [needed_by] if needed_by else list(self.versions)
        for candidate in self._by_likelihood(name, sources)[:SEARCH_LIMIT]:
            if candidate in self.versions or not self._apt.exists(candidate):
                continue
            self.add([candidate])
            if found := self._present(places):
                return found
        raise GuestBuildError(
            f"{name}: not in package {needed_by or ', '.join(self.versions)} nor in what it depends on"
        )

    def _present(self, places: Iterable[str]) -> str:
        return next((place for place in places if self.tree.chain(place)), "")

    def _by_likelihood(self, name: str, sources: list[str]) -> list[str]:
        """Dependencies of ``sources``: the package the name points to, other libraries, then the rest."""
        likely = likely_package(name)
        depends = dict.fromkeys(d for source in sources for d in self._depends[source])
        return sorted(depends, key=lambda d: (not d.startswith(likely), not d.startswith("lib")))


def _places(name: str) -> tuple[str, ...]:
    """Where a path, or a bare soname, may be."""
    return (name,) if "/" in name else tuple(f"{directory}/{name}" for directory in LIBRARY_DIRECTORIES)


def likely_package(name: str) -> str:
    """How the name of the package with this library (soname or path) or program begins."""
    stem = name.rsplit("/", 1)[-1]
    if ".so" not in stem:
        return stem.split("-", 1)[0]
    return NAMED_OTHERWISE.get(stem.split(".so", 1)[0], package_of_soname(stem))


def needed_by_elf(node: Node, name: str) -> list[str]:
    """The interpreter (a path) and the DT_NEEDED libraries (sonames) of an ELF file; none for others."""
    if node.data[:4] != b"\x7fELF":
        return []
    needed: list[str] = []
    try:
        for segment in ELFFile(io.BytesIO(node.data)).iter_segments():
            if isinstance(segment, InterpSegment):
                needed.append(segment.get_interp_name())
            elif isinstance(segment, DynamicSegment):
                tags: list[Any] = list(segment.iter_tags("DT_NEEDED"))  # the attribute is made at run time
                needed.extend(tag.needed for tag in tags)
    except ELFError as error:
        raise GuestBuildError(f"{name}: not a sound ELF file: {error}") from None
    return needed
