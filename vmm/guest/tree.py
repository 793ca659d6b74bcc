"""A file tree held in memory: what a package contained, what a guest's root will contain.

Packages are read into a Tree and guests are written out of one, so nothing an archive says can touch
a file of the host: ``../`` and absolute names are folded into the tree, symbolic links are followed
inside it only, device nodes need no privilege.

Merged /usr: Debian and Ubuntu are moving ``/bin``, ``/sbin``, ``/lib`` and ``/lib64`` to links into
``/usr`` (the "UsrMerge" transition), package by package.  A Tree is always merged, so a file has
one name whatever the age of the package it came from.

Not held: owners (all root), times (all 0), hard links (copied), extended attributes, sockets, FIFOs.
"""

from __future__ import annotations

import enum
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmm.errors import GuestBuildError

MERGED = ("bin", "sbin", "lib", "lib64")
"""Top directories that are links to their namesakes in /usr."""

LINK_DEPTH_LIMIT = 40
"""The kernel's own limit on following symbolic links (path_resolution(7)): a longer chain is a loop."""


class Kind(enum.Enum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    CHARACTER = "character device"


@dataclass(frozen=True, slots=True)
class Node:
    """One name's content: ``data`` for a file, ``target`` for a link, ``device`` for a device."""

    kind: Kind
    mode: int
    data: bytes = b""
    target: str = ""
    device: tuple[int, int] = (0, 0)


def normal(path: str) -> str:
    """The one name of ``path`` in a Tree: relative to the root, no ``.`` or ``..``, /usr merged."""
    name = posixpath.normpath("/" + path).lstrip("/")
    if name.split("/", 1)[0] in MERGED and name not in MERGED:
        return "usr/" + name
    return name


class Tree:
    """Names to nodes.  Parents of an added name come into being as directories."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __contains__(self, path: str) -> bool:
        return normal(path) in self._nodes

    def __getitem__(self, path: str) -> Node:
        return self._nodes[normal(path)]

    def __len__(self) -> int:
        return len(self._nodes)

    def items(self) -> Iterator[tuple[str, Node]]:
        """Every name with its node, sorted, so that a directory comes before what is in it."""
        return iter(sorted(self._nodes.items()))

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``, replacing what was there; a directory never replaces a link."""
        name = normal(path)
        if not name:
            return
        if node.kind is Kind.DIRECTORY and name in self._nodes:
            return
        self._nodes[name] = node
        parent = posixpath.dirname(name)
        if parent and parent not in self._nodes:
            self.add(parent, Node(Kind.DIRECTORY, 0o755))

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self.add(path, Node(Kind.FILE, mode, data=data))

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """A directory."""
        self.add(path, Node(Kind.DIRECTORY, mode))

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.add(path, Node(Kind.LINK, 0o777, target=target))

    def add_character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self.add(path, Node(Kind.CHARACTER, mode, device=(major, minor)))

    def add_merged_usr(self) -> None:
        """``/bin`` -> ``usr/bin`` and so on: makes the merged names reachable by their old ones."""
        for name in MERGED:
            self.add_directory(f"usr/{name}")
            self._nodes[name] = Node(Kind.LINK, 0o777, target=f"usr/{name}")

    def chain(self, path: str) -> list[str]:
        """The names from ``path`` to the file it ends at, through symbolic links; empty if it dangles."""
        names = [normal(path)]
        for _ in range(LINK_DEPTH_LIMIT):
            node = self._nodes.get(names[-1])
            if node is None:
                return []
            if node.kind is not Kind.LINK:
                return names
            names.append(normal(posixpath.join("/", posixpath.dirname(names[-1]), node.target)))
        return []

    def write_to(self, directory: Path) -> None:
        """Write every node below ``directory``, times 0.  Device nodes are left out: they need root."""
        for name, node in self.items():
            target = directory / name
            match node.kind:
                case Kind.DIRECTORY:
                    target.mkdir(mode=0o755, exist_ok=True)
                case Kind.FILE:
                    target.write_bytes(node.data)
                    target.chmod(node.mode)
                case Kind.LINK:
                    target.symlink_to(node.target)
                case Kind.CHARACTER:
                    continue
        for name, node in sorted(self.items(), reverse=True):
            if node.kind is Kind.CHARACTER:
                continue
            if node.kind is Kind.DIRECTORY:
                (directory / name).chmod(node.mode)
            os.utime(directory / name, (0, 0), follow_symlinks=False)
        os.utime(directory, (0, 0))

    def add_from(self, other: Tree, path: str) -> str:
        """Copy ``path`` of another tree with the links that lead to it; answers the final name."""
        chain = other.chain(path)
        if not chain:
            raise GuestBuildError(f"{path}: not in the packages that were unpacked")
        for name in chain:
            self.add(name, other[name])
        return chain[-1]
