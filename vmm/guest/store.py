"""The guests on this machine: which exist, which are built, and building them.

    <cache>/debs/                      packages as downloaded
    <cache>/own/                       files of guests that are not the manifest's (vmm.guest.own)
    <cache>/apt/                       private package lists, when the system's will not do
    <cache>/builds/<key>/              kernel, initrd, disk of one build; read-only, never changed
    <cache>/receipts/<name>-<recipe>.json   which build is current for a recipe, what is in it
    <cache>/locks/                     one file a guest, for flock(2)

A build's key is the digest of the recipe (with every file it reads) and of the packages that went
into it.  The receipt is found by the recipe alone, so an upgrade in the archive changes nothing until
someone builds with ``force``; a changed recipe is a new build at once.  Each file's SHA-256 is in the
receipt and is checked whenever the guest is used: a damaged cache is built again.

A build happens in a directory of its own and is renamed into place, then the receipt is replaced:
THE COMMIT POINT.  Interrupted anywhere before, it leaves nothing that will be used.  Earlier builds
stay, as a machine may be running from them; ``prune`` removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import vmm
from vmm.errors import GuestBuildError
from vmm.guest import manifest, own
from vmm.guest.apt import OFFLINE_ADVICE, Apt, Progress
from vmm.guest.build import BUILDER_VERSION, LinuxBuild, source_bytes
from vmm.guest.manifest import GuestInfo

BUILD_FILES = ("kernel", "initrd", "disk")


def guests_directory() -> Path:
    """Where the manifest is: inside the installed package, or at the top of the source tree."""
    package = Path(vmm.__file__).resolve().parent
    installed = package / "_guests"
    return installed if installed.is_dir() else package.parent / "guests"


def cache_directory() -> Path:
    """``$COLO_CACHE``, else ``$XDG_CACHE_HOME/colo-vmm``, else ``~/.cache/colo-vmm``."""
    if chosen := os.environ.get("COLO_CACHE"):
        return Path(chosen).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache").absolute() / "colo-vmm"


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One produced file."""

    sha256: str
    size: int


class PackageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One package that went into a build."""

    version: str
    sha256: str


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one build consists of."""

    guest: str
    recipe: str
    key: str
    packages: dict[str, PackageRecord]
    files: dict[str, FileRecord]


@dataclass(frozen=True, slots=True)
class BuiltGuest:
    """A guest that can be booted: files that exist and have been checked."""

    info: GuestInfo
    key: str
    kernel: Path
    """bzImage, multiboot ELF file or boot sector, as ``info.kind`` says."""
    initrd: Path | None
    disk: Path | None
    """Read-only: give the machine an overlay or a copy."""
    cmdline: str
    packages: dict[str, str]
    """Names to versions."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """One line of a listing."""

    info: GuestInfo
    built: bool
    """Can be booted now, without a network."""
    key: str
    size_bytes: int
    """Of the build; 0 when there is none."""
    packages: dict[str, str]


class Guest:
    """One guest of the manifest, on this machine."""

    def __init__(self, info: GuestInfo, guests: Path, cache: Path) -> None:
        self.info = info
        self._guests = guests
        self._cache = cache

    @property
    def name(self) -> str:
        """As in the manifest and on the command line."""
        return self.info.name

    def build(self, progress: Progress = lambda message: None, force: bool = False) -> BuiltGuest:
        """The guest, ready to boot: from the cache if it is whole there, else built.

        ``force`` asks the archive for current packages and builds again.
        """
        if self.info.built_in:
            return self._committed()
        if not force and (built := self._cached()):
            return built
        with self._locked(progress):
            # Whoever held the lock may have built what is wanted here.
            if not force and (built := self._cached()):
                return built
            if not force and self._receipt_path().exists():
                progress(f"guest {self.name}: the cached build is damaged; building it again")
            self._build(progress)
        finished = self._cached()
        if finished is None:
            raise GuestBuildError(
                f"guest {self.name}: {self._cache} changed while it was being written; again"
            )
        return finished

    def status(self) -> GuestStatus:
        """Is it built, and from what?  Sizes are checked, digests are not: a listing must be quick."""
        if self.info.built_in:
            built = self._committed()
            return GuestStatus(self.info, True, built.key, built.size_bytes, {})
        receipt = self._receipt()
        if receipt is None or not self._sizes_right(receipt):
            return GuestStatus(self.info, False, "", 0, {})
        versions = {name: package.version for name, package in receipt.packages.items()}
        size = sum(file.size for file in receipt.files.values())
        return GuestStatus(self.info, True, receipt.key, size, versions)

    # -- private: committed guests ------------------------------------------------------------------

    def _committed(self) -> BuiltGuest:
        path = self._guests / self.info.image
        data = source_bytes(path)
        found = hashlib.sha256(data).hexdigest()
        if found != self.info.sha256:
            raise GuestBuildError(
                f"guest {self.name}: {path} has SHA-256 {found}, the manifest says {self.info.sha256}; "
                "restore the file or install again"
            )
        return BuiltGuest(self.info, found[:16], path, None, None, self.info.cmdline, {}, len(data))

    # -- private: built guests ----------------------------------------------------------------------

    def _recipe_digest(self) -> str:
        """Digest of everything of ours that decides what is built."""
        assert self.info.recipe is not None
        digest = hashlib.sha256(f"builder {BUILDER_VERSION}\n".encode())
        digest.update(msgspec.json.encode(self.info.recipe, order="sorted"))
        for path in manifest.source_files(self.info):
            digest.update(path.encode() + b"\0" + hashlib.sha256(source_bytes(self._guests / path)).digest())
        return digest.hexdigest()[:16]

    def _receipt_path(self) -> Path:
        return self._cache / "receipts" / f"{self.name}-{self._recipe_digest()}.json"

    def _receipt(self) -> Receipt | None:
        """The receipt, if there is a readable one."""
        try:
            receipt = msgspec.json.decode(self._receipt_path().read_bytes(), type=Receipt)
        except (OSError, msgspec.DecodeError):
            return None
        expected = {"kernel", "initrd"} <= set(receipt.files) <= set(BUILD_FILES)
        return receipt if expected and receipt.key.isalnum() else None

    def _sizes_right(self, receipt: Receipt) -> bool:
        directory = self._cache / "builds" / receipt.key
        sizes = {name: _size(directory / name) for name in receipt.files}
        return all(sizes[name] == file.size for name, file in receipt.files.items())

    def _cached(self) -> BuiltGuest | None:
        """The current build, if every file of it is what the receipt says."""
        receipt = self._receipt()
        if receipt is None or not self._sizes_right(receipt):
            return None
        directory = self._cache / "builds" / receipt.key
        if any(_sha256(directory / name) != file.sha256 for name, file in receipt.files.items()):
            return None
        paths = {name: directory / name if name in receipt.files else None for name in BUILD_FILES}
        return BuiltGuest(
            self.info,
            receipt.key,
            directory / "kernel",
            paths["initrd"],
            paths["disk"],
            self.info.cmdline,
            {name: package.version for name, package in receipt.packages.items()},
            sum(file.size for file in receipt.files.values()),
        )

    def _build(self, progress: Progress) -> None:
        """Build under the lock, then make the result current."""
        scratch = self._cache / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        for left in scratch.glob(f"{self.name}.*"):  # of a build that was killed: we hold its lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{self.name}.", dir=scratch) as directory:
            out = Path(directory) / "build"
            out.mkdir()
            with _flock(self._cache / "locks" / "apt", progress, "package cache"):
                linux = LinuxBuild(self.info, self._guests, Apt(self._cache, progress), progress)
                try:
                    linux.run(out)
                except GuestBuildError as error:
                    raise GuestBuildError(f"guest {self.name}: {error}") from None
                self._commit(out, linux.packages)
        progress(f"guest {self.name}: built")

    def _commit(self, out: Path, packages: dict[str, dict[str, str]]) -> None:
        files = {
            path.name: {"sha256": _sha256(path), "size": path.stat().st_size}
            for path in sorted(out.iterdir())
        }
        recipe = self._recipe_digest()
        key = hashlib.sha256(_json({"recipe": recipe, "packages": packages, "files": files})).hexdigest()[:16]
        final = self._cache / "builds" / key
        for path in out.iterdir():
            path.chmod(0o444)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():  # the same build, perhaps a damaged copy of it
            final.rename(out.parent / "replaced")
        out.rename(final)
        receipt = {"guest": self.name, "recipe": recipe, "key": key, "packages": packages, "files": files}
        path = self._receipt_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.parent / "receipt"
        temporary.write_bytes(_json(receipt))
        temporary.replace(path)  # THE COMMIT POINT

    def _locked(self, progress: Progress) -> contextlib.AbstractContextManager[None]:
        return _flock(self._cache / "locks" / self.name, progress, f"guest {self.name}")


class Store:
    """All guests of a manifest with one cache."""

    def __init__(self, guests: Path | None = None, cache: Path | None = None) -> None:
        self.directory = guests or guests_directory()
        self.cache = cache or cache_directory()
        self._infos = manifest.load(self.directory)

    def names(self) -> list[str]:
        """In the order of the manifest."""
        return [*self._infos]

    def open(self, name: str) -> Guest:
        """One guest, or that in the directory ``name``; the error for an unknown one lists what exists."""
        if own.is_own(name):
            return own.open_own(name, self)
        if name not in self._infos:
            raise GuestBuildError(f"no guest {name!r}; the guests are {', '.join(self._infos)}, or ./DIR")
        return Guest(self._infos[name], self.directory, self.cache)

    def list(self) -> list[GuestStatus]:
        """Every guest with what is built of it."""
        return [self.open(name).status() for name in self._infos]

    def prune(self) -> int:
        """Remove builds that no receipt names, and downloads; answers the bytes freed.

        Not while a machine runs from an earlier build: its files would go from under it.
        """
        with _flock(self.cache / "locks" / "apt", lambda message: None, "package cache"):
            kept = set()
            for path in (self.cache / "receipts").glob("*.json"):
                with contextlib.suppress(OSError, msgspec.DecodeError):
                    kept.add(msgspec.json.decode(path.read_bytes(), type=Receipt).key)
            gone = [path for path in (self.cache / "builds").glob("*") if path.name not in kept]
            gone += [self.cache / "debs", self.cache / "own"]
            freed = sum(file.stat().st_size for path in gone for file in path.rglob("*") if file.is_file())
            for path in gone:
                shutil.rmtree(path, ignore_errors=True)
        return freed


def open_guest(name: str) -> Guest:
    """One guest of this machine's manifest and cache."""
    return Store().open(name)


def list_guests() -> list[GuestStatus]:
    """Every guest of this machine's manifest and cache."""
    return Store().list()


def info(name: str) -> GuestStatus:
    """One guest's description and what is built of it."""
    return Store().open(name).status()


# -- files ------------------------------------------------------------------------------------------


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


@contextlib.contextmanager
def _flock(path: Path, progress: Progress, what: str) -> Iterator[None]:
    """Hold flock(2) on ``path``; the kernel drops it with the process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise GuestBuildError(
            f"{what}: cannot write to the cache at {path.parent.parent}: {error.strerror}. "
            f"Set COLO_CACHE to a directory of yours. {OFFLINE_ADVICE}"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{what}: another process is building; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
