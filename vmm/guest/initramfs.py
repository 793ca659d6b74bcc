"""The initial RAM file system: a cpio archive in the "newc" format, uncompressed.

Follows the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: per file a 110-byte
ASCII header (magic ``070701`` and thirteen 8-digit hexadecimal fields), the name with its NUL, padding
to 4, the data, padding to 4; the archive ends with the name ``TRAILER!!!``.

Deterministic: names sorted, owner 0, times 0, inode numbers counted from 1.  The same tree gives the
same bytes on any host, so the archive can be named by its digest.

Uncompressed on purpose: the guest would spend more virtual time in its own inflate than the host
spends reading the extra megabytes, and the pages are freed once the kernel has unpacked them.

Not written: hard links (each name has its own copy) and the checksum variant ``070702``.
"""

from __future__ import annotations

from vmm.errors import ImageError
from vmm.guest.tree import Kind, Node, Tree

MAGIC = b"070701"
HEADER_BYTES = 110
TRAILER = "TRAILER!!!"
FIELDS = 13
"""ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check"""

ARCHIVE_MULTIPLE = 512
"""cpio pads an archive to whole blocks; the kernel skips the zeros."""

NAME_LIMIT = 4096
"""PATH_MAX: the kernel refuses longer names, so does the reader."""

TYPE_BITS = {  # inode(7), the file type and mode
    Kind.FILE: 0o100000,
    Kind.DIRECTORY: 0o040000,
    Kind.LINK: 0o120000,
    Kind.CHARACTER: 0o020000,
}


def write(tree: Tree) -> bytes:
    """The archive that unpacks to ``tree``."""
    out = bytearray()
    for inode, (name, node) in enumerate(tree.items(), start=1):
        data = node.target.encode() if node.kind is Kind.LINK else node.data
        links = 2 if node.kind is Kind.DIRECTORY else 1
        _entry(out, inode, TYPE_BITS[node.kind] | node.mode, links, node.device, name, data)
    _entry(out, 0, 0, 1, (0, 0), TRAILER, b"")
    out.extend(bytes(-len(out) % ARCHIVE_MULTIPLE))
    return bytes(out)


def read(archive: bytes) -> Tree:
    """The tree in ``archive``; ImageError with the offset when it is not a newc archive."""
    tree = Tree()
    kinds = {bits: kind for kind, bits in TYPE_BITS.items()}
    offset = 0
    while True:
        fields = _header(archive, offset)
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_at = offset + HEADER_BYTES
        data_at = _aligned(name_at + name_size)
        if not 1 < name_size <= NAME_LIMIT or data_at + size > len(archive):
            raise ImageError(f"cpio archive: entry at offset {offset:#x} runs past the end or has a bad name")
        name = archive[name_at : name_at + name_size - 1].decode(errors="surrogateescape")
        if name == TRAILER:
            return tree
        kind = kinds.get(mode & 0o170000)
        if kind is None:
            raise ImageError(f"cpio archive: {name} at offset {offset:#x} has unknown file type {mode:#o}")
        data = archive[data_at : data_at + size]
        link = kind is Kind.LINK
        tree.add(
            name,
            Node(
                kind,
                mode & 0o7777,
                data=b"" if link else data,
                target=data.decode(errors="surrogateescape") if link else "",
                device=(fields[9], fields[10]),
            ),
        )
        offset = _aligned(data_at + size)


def _header(archive: bytes, offset: int) -> list[int]:
    header = archive[offset : offset + HEADER_BYTES]
    if len(header) < HEADER_BYTES or header[:6] != MAGIC:
        raise ImageError(
            f"cpio archive: at offset {offset:#x} found {bytes(header[:6])!r}, expected {MAGIC!r} (newc)"
        )
    try:
        return [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(FIELDS)]
    except ValueError:
        raise ImageError(f"cpio archive: header at offset {offset:#x} is not hexadecimal") from None


def _entry(
    out: bytearray, inode: int, mode: int, links: int, device: tuple[int, int], name: str, data: bytes
) -> None:
    encoded = name.encode() + b"\0"
    #         ino    mode  uid gid nlink mtime filesize dev    rdev     namesize     check
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
    out.extend(MAGIC + b"".join(b"%08X" % field for field in fields))
    out.extend(encoded)
    out.extend(bytes(-len(out) % 4))
    out.extend(data)
    out.extend(bytes(-len(out) % 4))


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3
