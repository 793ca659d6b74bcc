"""An ext4 disk image from a Tree, made without root by e2fsprogs: mke2fs(8) ``-d``, debugfs(8).

mke2fs copies owners from the directory it is given; an ordinary user cannot make files of root there,
so debugfs sets owner 0 afterwards.  UUID, hash seed and times are fixed, so that the same tree gives
the same image with the same e2fsprogs.

Left out: a partition table (the whole disk is the file system; the kernel mounts /dev/vda).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from vmm.errors import GuestBuildError
from vmm.guest.tree import Kind, Tree

UUID = "c0102012-0000-4000-8000-0000000c0100"
"""Any fixed one: it names the file system and seeds its directory hashes."""

FIXED_TIME = "1"
"""Seconds since 1970 that e2fsprogs takes for now; it treats 0 as not set."""

BLOCK_BYTES = "4096"
"""A page: the page cache then reads whole blocks.  mke2fs would take 1024 for a small disk."""

FEATURES = "^metadata_csum,^64bit,^orphan_file,uninit_bg"
"""No checksums over metadata: they cost guest instructions and need a crypto module on some kernels.
``uninit_bg`` leaves unused inode tables unwritten, so the image stays sparse.  ``orphan_file`` is
newer than the kernels of some distributions; e2fsprogs that do not know the word are told nothing."""

_PLACES = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def build(tree: Tree, image: Path, size_mib: int) -> None:
    """Write the disk ``image``: one ext4 file system of ``size_mib`` MiB holding ``tree``."""
    mke2fs, debugfs = _tool("mke2fs"), _tool("debugfs")
    with tempfile.TemporaryDirectory(prefix="root-", dir=image.parent) as directory:
        root = Path(directory) / "root"
        root.mkdir(mode=0o755)
        tree.write_to(root)
        features = FEATURES if _knows_orphan_file(mke2fs) else FEATURES.replace("^orphan_file,", "")
        options = f"hash_seed={UUID},root_owner=0:0,lazy_itable_init=1,nodiscard"
        command = [
            mke2fs,
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            BLOCK_BYTES,
            "-m",
            "0",
            "-O",
            features,
            "-U",
            UUID,
            "-E",
            options,
        ]
        _run([*command, "-d", str(root), str(image), f"{size_mib}M"], image)
        _own_by_root(tree, image, Path(directory) / "owners", debugfs)


def _own_by_root(tree: Tree, image: Path, script: Path, debugfs: str) -> None:
    """Owner 0 and all times FIXED_TIME, for every file: what mke2fs copied is the builder's."""
    names = ["/", *(f"/{name}" for name, node in tree.items() if node.kind is not Kind.CHARACTER)]
    fields = [
        ("uid", "0"),
        ("gid", "0"),
        *((t, f"@{FIXED_TIME}") for t in ("ctime", "atime", "mtime", "crtime")),
    ]
    lines = [f'set_inode_field "{name}" {field} {value}' for name in names for field, value in fields]
    script.write_text("\n".join(lines) + "\n")
    _run([debugfs, "-w", "-f", str(script), str(image)], image)


def _knows_orphan_file(mke2fs: str) -> bool:
    """Since e2fsprogs 1.47; ``-V`` prints ``mke2fs 1.47.0 (5-Feb-2023)`` to standard error."""
    words = subprocess.run([mke2fs, "-V"], capture_output=True, text=True, check=False).stderr.split()
    numbers = words[1].split(".")[:2] if len(words) > 1 else []
    return [int(n) for n in numbers if n.isdigit()] >= [1, 47]


def _tool(name: str) -> str:
    found = shutil.which(name, path=_PLACES)
    if found is None:
        raise GuestBuildError(
            f"{name} was not found: guests with a disk need e2fsprogs (apt install e2fsprogs)"
        )
    return found


def _run(command: list[str], image: Path) -> None:
    environment = dict(os.environ, LC_ALL="C", E2FSPROGS_FAKE_TIME=FIXED_TIME, SOURCE_DATE_EPOCH=FIXED_TIME)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    complaints = [line for line in done.stderr.splitlines() if not line.startswith(("debugfs ", "mke2fs "))]
    if done.returncode or complaints:
        raise GuestBuildError(f"{image.name}: {Path(command[0]).name} failed: " + "; ".join(complaints[:3]))
