"""guests/manifest.toml: what can be booted, how it is made, and how one knows that it is up.

A ``[guest.NAME]`` table describes one guest; a ``[base.NAME]`` table holds what several share, and a
recipe that names it with ``base`` gets its lists in front of its own.  A guest with a recipe is built
on the user's machine from distribution packages; one without is committed beside the manifest, with
its digest in the table.

Unknown keys are refused, so that a misspelt one is not ignored.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from vmm.errors import GuestBuildError

FILE_NAME = "manifest.toml"

KindName = Literal["linux", "multiboot", "boot-sector"]
DeviceName = Literal["net", "disk", "rng"]

NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""Guest names become file names and command-line words."""

RAM_MIB_LIMITS = (1, 2048)
"""One MiB holds a boot sector; 2 GiB is all that fits under the PCI window with room to spare."""

DISK_MIB_LIMIT = 4096


class Copy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """A file of guests/ that goes into the guest's root."""

    source: str
    to: str
    mode: int = 0o644


class Compile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """A C program of guests/ that is compiled statically and goes into the guest's root."""

    source: str
    to: str


class Fill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of ``size`` bytes of lower-case letters in order: something to download."""

    to: str
    size: int


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a Linux guest is made.  Lists are worked off in the order of the fields."""

    base: str = ""
    kernels: tuple[str, ...] = ()
    """Kernel metapackages; the first that the archive has is used."""
    modules: tuple[str, ...] = ()
    """Kernel modules to carry, by name; what they depend on comes along."""
    packages: tuple[str, ...] = ()
    """Of "a | b" the first that the archive has."""
    take: tuple[str, ...] = ()
    """Paths out of the packages: programs come with the shared libraries they need.  One that ends with a
    slash is a folder with all that the named packages have in it."""
    compile: tuple[Compile, ...] = ()
    files: tuple[Copy, ...] = ()
    fill: tuple[Fill, ...] = ()
    directories: tuple[str, ...] = ()
    links: dict[str, str] = {}
    disk_mib: int = 0
    """Not 0: the root is an ext4 disk of this size, and the initramfs only finds it."""
    initramfs_files: tuple[Copy, ...] = ()
    """With disk_mib: the files of that initramfs."""


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What several guests share: the start of their command lines and of their recipes."""

    cmdline: str = ""
    recipe: Recipe = Recipe()


class GuestInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One guest as the manifest describes it, shared parts filled in."""

    title: str
    kind: KindName
    description: str
    licence: str
    expect: str
    """Text on the console (COM1; the screen too for a boot sector) that says it is up."""
    within_ms: int
    """The virtual time by which ``expect`` must have appeared."""
    ram_mib: int
    size_kib: int
    """What its images take, to the nearest order: for a listing, not a check."""
    name: str = ""
    cmdline: str = ""
    devices: tuple[DeviceName, ...] = ()
    ports: tuple[int, ...] = ()
    """TCP (or UDP) ports it serves."""
    image: str = ""
    """Committed guests: the file below guests/, with its digest."""
    sha256: str = ""
    recipe: Recipe | None = None

    @property
    def built_in(self) -> bool:
        """Committed with the project: needs no building, no network, no packages."""
        return self.recipe is None


T = TypeVar("T")


def load(directory: Path) -> dict[str, GuestInfo]:
    """The guests of ``directory/manifest.toml`` by name, in the order of the file."""
    path = directory / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise GuestBuildError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> dict[str, GuestInfo]:
    """As ``load``, from the text itself; ``where`` stands in front of every error."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GuestBuildError(f"{where}: not TOML: {error}") from None
    if unknown := set(document) - {"base", "guest"}:
        raise GuestBuildError(
            f"{where}: unknown table [{min(unknown)}]; expected [base.NAME] and [guest.NAME]"
        )
    bases = {name: _convert(table, Base, where, f"base.{name}") for name, table in _tables(document, "base")}
    guests: dict[str, GuestInfo] = {}
    for name, table in _tables(document, "guest"):
        key = f"guest.{name}"
        info = _convert(table, GuestInfo, where, key)
        guests[name] = _checked(_with_base(name, info, bases, where, key), where, key)
    return guests


def _tables(document: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    found = document.get(key, {})
    return list(found.items()) if isinstance(found, dict) else [("", found)]


def _convert(table: object, kind: type[T], where: str, key: str) -> T:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise GuestBuildError(f"{where}: [{key}]: {str(error).replace('$.', '')}") from None


def _with_base(name: str, info: GuestInfo, bases: dict[str, Base], where: str, key: str) -> GuestInfo:
    recipe, cmdline = info.recipe, info.cmdline
    if recipe is not None and recipe.base:
        if recipe.base not in bases:
            raise GuestBuildError(
                f"{where}: [{key}.recipe]: base = {recipe.base!r}, "
                f"but the bases are {', '.join(bases) or 'none'}"
            )
        base = bases[recipe.base]
        cmdline = f"{base.cmdline} {cmdline}".strip()
        recipe = _joined(base.recipe, recipe)
    return msgspec.structs.replace(info, name=name, cmdline=cmdline, recipe=recipe)


def _joined(base: Recipe, own: Recipe) -> Recipe:
    """Lists and tables of both, the base's first; a plain value of the recipe's own wins."""
    values: dict[str, Any] = {}
    for field in Recipe.__struct_fields__:
        ours, theirs = getattr(own, field), getattr(base, field)
        if isinstance(ours, tuple):
            values[field] = theirs + ours
        elif isinstance(ours, dict):
            values[field] = theirs | ours
        else:
            values[field] = ours or theirs
    return Recipe(**values)


def _checked(info: GuestInfo, where: str, key: str) -> GuestInfo:
    low, high = RAM_MIB_LIMITS
    recipe = info.recipe
    complaints = (
        (not NAME_PATTERN.fullmatch(info.name), f"name must match {NAME_PATTERN.pattern}"),
        (not low <= info.ram_mib <= high, f"ram_mib = {info.ram_mib}, expected {low} to {high}"),
        (info.within_ms <= 0, f"within_ms = {info.within_ms}, expected more than 0"),
        (not info.expect, "expect is empty: nothing would say that the guest is up"),
        (bool(info.image) == (recipe is not None), "expected either image and sha256, or recipe"),
        (bool(info.image) and not re.fullmatch("[0-9a-f]{64}", info.sha256), "sha256 is not 64 hex digits"),
        (info.kind == "linux" and recipe is None, "a Linux guest needs a recipe"),
        (info.kind != "linux" and recipe is not None, f"a {info.kind} guest is committed, not built"),
        (recipe is not None and not recipe.kernels, "recipe.kernels is empty"),
        (
            recipe is not None and not 0 <= recipe.disk_mib <= DISK_MIB_LIMIT,
            "recipe.disk_mib is out of range",
        ),
    )
    for wrong, complaint in complaints:
        if wrong:
            raise GuestBuildError(f"{where}: [{key}]: {complaint}")
    for path in (info.image, *source_files(info)):
        if path.startswith("/") or ".." in path.split("/"):
            raise GuestBuildError(f"{where}: [{key}]: {path!r} leads out of the guests directory")
    return info


def source_files(info: GuestInfo) -> tuple[str, ...]:
    """The files of guests/ that a guest's recipe reads."""
    if info.recipe is None:
        return ()
    recipe = info.recipe
    copied = (*recipe.files, *recipe.initramfs_files)
    return (*(item.source for item in recipe.compile), *(item.source for item in copied))
