"""Run a Python program as a user without privilege; for root, who alone can become one.

    rootless.py [--tun] CODE ARGUMENT...

In a mount namespace of its own the interpreter and the checkout are made reachable where a closed home
directory hides them, and with --tun the TAP device is one that everybody may open, as distributions
have it.  The host's own files are not touched.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

NOBODY = 65534
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
STAGE = Path("/mnt")
TUN = Path("/dev/net/tun")


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = (source.encode(), str(target).encode(), kind.encode() or None)
    if libc.mount(*texts, ctypes.c_ulong(flags), options.encode() or None) != 0:
        sys.exit(f"mounting {source} on {target}: {os.strerror(ctypes.get_errno())}")


def closed(path: Path) -> list[Path]:
    """The directories above that others may not pass."""
    return [above for above in path.parents if not above.stat().st_mode & stat.S_IXOTH]


def reach(paths: list[Path]) -> None:
    """Put empty, open directories in place of closed ones, and in them what is needed."""
    hidden = {number: path for number, path in enumerate(paths) if closed(path)}
    tops = sorted({closed(path)[-1] for path in hidden.values()})
    for number, path in hidden.items():
        kept = STAGE / str(number)
        kept.mkdir()
        mount(str(path), kept, flags=MS_BIND | MS_REC)
    for top in tops:
        mount("tmpfs", top, "tmpfs", options="mode=755")
    for number, path in hidden.items():
        path.mkdir(parents=True)
        mount(str(STAGE / str(number)), path, flags=MS_BIND | MS_REC)


def main(arguments: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        sys.exit(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", STAGE, "tmpfs", options="mode=755")
    checkout = Path(__file__).resolve().parents[2]
    reach([Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), checkout])
    if arguments[0] == "--tun":
        arguments = arguments[1:]
        node = STAGE / "tun"
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 200))
        node.chmod(0o666)
        mount(str(node), TUN, flags=MS_BIND)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execv(sys.executable, [sys.executable, "-P", "-c", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
