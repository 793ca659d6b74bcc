"""What a log says of the images that its machine started with.

``vmm.record`` describes the file and ``vmm.recording`` compares the machines.  Before there is a
machine to compare, this names what it is to be made of: everything that a run depends on, besides its
configuration and its inputs, is a :class:`Part`: a file with its digest, or a word such as the kernel's
command line.  Parts are found by the path that they had, or given again from another place; what counts
is that they are the same bytes.

Disks are logged as they were at the start.  One that is written in place is another image afterwards:
who wants to replay keeps a copy, or records with an overlay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmm.config import PcConfig
from vmm.errors import ImageError, ReplayError, StateError
from vmm.record import Image
from vmm.replay import Replayer
from vmm.snapshot import Snapshot
from vmm.state import unpack

WORDS = ("append", "option")
"""Roles whose value is itself the content, not the name of a file."""
DIGEST_SIZE = 16
_CHUNK = 1 << 22

Hashed = Callable[[int], None]
"""Told, now and then, how many bytes more were read."""


@dataclass(frozen=True)
class Part:
    """``role`` is the option that gave it, ``value`` the file name or the word."""

    role: str
    value: str

    @property
    def path(self) -> Path:
        """The file; a module's name may be followed by a blank and words for the kernel."""
        named = self.value.split(" ", 1)[0] if self.role == "module" else self.value
        return Path(named)

    def image(self, hashed: Hashed = lambda count: None) -> Image:
        """What the log keeps of it."""
        name = f"{self.role}={self.value}"
        if self.role in WORDS:
            data = self.value.encode()
            return Image(name, len(data), hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest())
        if self.role == "snapshot":
            with Snapshot.open(self.value) as snapshot:  # whose header covers everything in it
                return Image(name, snapshot.ram_size, snapshot.digest[:DIGEST_SIZE])
        return Image(name, *_digest(self.path, hashed))

    @classmethod
    def of(cls, image: Image) -> Part:
        role, _, value = image.name.partition("=")
        return cls(role, value)


def _digest(path: Path, hashed: Hashed) -> tuple[int, bytes]:
    made, size = hashlib.blake2b(digest_size=DIGEST_SIZE), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                made.update(chunk)
                size += len(chunk)
                hashed(len(chunk))
    except OSError as exc:
        raise ImageError(f"{path}: {exc.strerror}") from None
    return size, made.digest()


def config_of(log: Replayer) -> PcConfig:
    """The board that wrote ``log``."""
    try:
        return unpack(PcConfig, log.header.config)
    except StateError as exc:
        raise ReplayError(f"log {log.path}: its configuration is not one of this build: {exc}") from None


def parts_of(log: Replayer) -> list[Part]:
    return [Part.of(image) for image in log.header.images]


def require_images(log: Replayer, images: Sequence[Image]) -> None:
    """ReplayError unless ``images`` are those that ``log`` was recorded with."""
    recorded = log.header.images
    for number in range(max(len(recorded), len(images))):
        was = recorded[number] if number < len(recorded) else None
        now = images[number] if number < len(images) else None
        if was is None or now is None or _identity(was) != _identity(now):
            raise ReplayError(
                f"log {log.path}: recorded with {_shown(was)}, this run has {_shown(now)}:"
                " replay with what it was recorded with"
            )


def _identity(image: Image) -> tuple[str, int, bytes]:
    return Part.of(image).role, image.size, image.digest


def _shown(image: Image | None) -> str:
    if image is None:
        return "nothing more"
    part = Part.of(image)
    if part.role in WORDS:
        return f"{part.role} {part.value!r}"
    return f"{part.role} {part.value} ({image.size} bytes, {image.digest.hex()[:12]})"
