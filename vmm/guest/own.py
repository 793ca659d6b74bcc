"""A guest of the user's own: a directory with a ``guest.toml``, which says what makes it more than Linux.

    packages = ["redis-server"]                   # Debian packages ...
    take = ["/usr/bin/redis-server"]              # ... and what of them; default: all files of the packages
    files = [{ from = "tally", to = "/srv/tally", mode = 0o755 }]
    start = "tally --port 7000"                   # a shell command, run in the background
    ports = [7000]                                # ready when something listens on all of these
    ram_mib = 128

Wherever a guest is named, such a directory can be named by a path with a slash in it: ``colo run ./guest``,
``vmm.start("./guest")``.  It is the guest ``linux`` of the manifest with this on top: its kernel, BusyBox,
its way to start and its address; built and kept like the manifest's guests (:mod:`vmm.guest.store`), and
again as soon as a file of the directory changes.

Without ``ports`` the command is waited for, and the guest is ready when it has ended: let it start what is to
stay with ``&``.

Left out: everything a package does when it is installed (users, generated configuration), and with it what a
service needs that is in no package; put it into ``files``.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vmm.errors import GuestBuildError
from vmm.guest.build import source_bytes
from vmm.guest.manifest import NAME_PATTERN, RAM_MIB_LIMITS, Compile, Copy, Fill, GuestInfo

if TYPE_CHECKING:
    from vmm.guest.store import Guest, Store

FILE_NAME = "guest.toml"
BASE = "linux"
FILE_BYTES_MAX = 1 << 16
WITHIN_MS = 20_000
"""Virtual time for a boot and the start of a service; the manifest's own need two to four seconds."""


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``guest.toml``."""

    start: str
    name: str = ""
    """Of the guest, on its console and in the cache; default: the directory's."""
    packages: tuple[str, ...] = ()
    """Of a line "a | b" the first that the archive has, as in deb-control(5)."""
    take: tuple[str, ...] = ("/",)
    compile: tuple[Compile, ...] = ()
    files: tuple[Copy, ...] = ()
    fill: tuple[Fill, ...] = ()
    directories: tuple[str, ...] = ()
    links: dict[str, str] = {}
    ports: tuple[int, ...] = ()
    ram_mib: int = 128
    cmdline: str = "quiet"
    """Words for the kernel, behind those of the guest ``linux``."""
    within_ms: int = WITHIN_MS


def is_own(name: str) -> bool:
    """Is ``name`` a path, and not a guest of the manifest?"""
    return "/" in name


def open_own(name: str, store: Store) -> Guest:
    """The guest in the directory ``name``."""
    from vmm.guest.store import Guest  # which imports this

    directory = Path(name).resolve()
    own = read(directory)
    info = _info(own, directory, store.open(BASE).info, store.cache)
    return Guest(info, store.directory, store.cache)


def read(directory: Path) -> Own:
    """``directory/guest.toml``, checked; GuestBuildError says what is wrong with it."""
    path = directory / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise GuestBuildError(
            f"guest {directory}: {FILE_NAME} cannot be read ({exc.strerror}): expected a directory with one;"
            " `colo init DIR` writes an example, `colo guest list` shows the guests that have names"
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise GuestBuildError(f"{path}: more than {FILE_BYTES_MAX} bytes: expected a recipe, not the files")
    try:
        own = msgspec.convert(tomllib.loads(data.decode()), Own)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise GuestBuildError(f"{path}: not TOML: {exc}") from None
    except msgspec.ValidationError as exc:
        keys = ", ".join(Own.__struct_fields__)
        raise GuestBuildError(f"{path}: {str(exc).replace('$.', '')}; the keys are {keys}") from None
    return _checked(msgspec.structs.replace(own, name=own.name or directory.name.lower()), path)


def _checked(own: Own, path: Path) -> Own:
    low, high = RAM_MIB_LIMITS
    complaints = (
        (not NAME_PATTERN.fullmatch(own.name), f"name = {own.name!r}, expected {NAME_PATTERN.pattern}"),
        (not low <= own.ram_mib <= high, f"ram_mib = {own.ram_mib}, expected {low} to {high}"),
        (not own.start.strip(), "start is empty: expected the command that starts the service"),
        (own.within_ms <= 0, f"within_ms = {own.within_ms}, expected more than 0"),
        (any(not 0 < port < 65536 for port in own.ports), f"ports = {[*own.ports]}, expected 1 to 65535"),
    )
    for wrong, complaint in complaints:
        if wrong:
            raise GuestBuildError(f"{path}: {complaint}")
    for source in [*(each.source for each in own.files), *(each.source for each in own.compile)]:
        if not (path.parent / source).is_file():
            raise GuestBuildError(f"{path}: from = {source!r}: there is no such file beside it")
    return own


def _info(own: Own, directory: Path, base: GuestInfo, cache: Path) -> GuestInfo:
    assert base.recipe is not None
    recipe = msgspec.structs.replace(
        base.recipe,
        packages=(*base.recipe.packages, *own.packages),
        take=own.take if own.packages else (),
        compile=tuple(_copied(each, directory, cache) for each in own.compile),
        # the last file of a name wins: ours replaces the base's own service
        files=(
            *base.recipe.files,
            *(_copied(each, directory, cache) for each in own.files),
            Copy(_kept(service_text(own).encode(), "service", cache), "/etc/service"),
        ),
        fill=own.fill,
        directories=own.directories,
        links=base.recipe.links | own.links,
    )
    return msgspec.structs.replace(
        base,
        name=own.name,
        title=own.name,
        description=f"{directory}: {own.start.strip().splitlines()[0]}",
        licence="that of its packages and files",
        expect=ready_text(own),
        within_ms=own.within_ms,
        ram_mib=own.ram_mib,
        cmdline=f"{base.cmdline} {own.cmdline}".strip(),
        ports=own.ports,
        recipe=recipe,
    )


def ready_text(own: Own) -> str:
    return f"GUEST-READY {own.name}"


def service_text(own: Own) -> str:
    """What ``linux/start`` reads when the hardware and the network are up."""
    ready = " && ".join([*(f"wait_for_port {port}" for port in own.ports), f'echo "{ready_text(own)}"'])
    begin, end = ("(", ") &") if own.ports else ("{", "}")
    return f"# Made from {FILE_NAME}.\n{begin}\n{own.start.strip()}\n{end}\n{ready}\n"


Source = TypeVar("Source", Copy, Compile)


def _copied(each: Source, directory: Path, cache: Path) -> Source:
    path = directory / each.source
    return msgspec.structs.replace(each, source=_kept(source_bytes(path), path.name, cache))


def _kept(data: bytes, name: str, cache: Path) -> str:
    """A file of the cache with this content, under its digest.

    A recipe names files, and its digest covers the names: so a directory may be moved, and its files changed
    while a guest is built.
    """
    path = cache / "own" / f"{hashlib.sha256(data).hexdigest()[:32]}-{name}"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{os.getpid()}-{path.name}")
            part.write_bytes(data)
            part.rename(path)
    except OSError as exc:
        raise GuestBuildError(f"{path}: {exc.strerror}. Set COLO_CACHE to a directory of yours.") from None
    return str(path)
