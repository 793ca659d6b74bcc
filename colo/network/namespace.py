"""Network namespaces: making one, entering one, running a program in one.

Follows namespaces(7), network_namespaces(7), user_namespaces(7) and setns(2).  Root makes a network
namespace directly.  Everybody else first needs a user namespace, in which they are root over the
namespaces made with it and over nothing else; uid and gid are mapped one to one, and setgroups(2) is
given up, without which the kernel lets nobody map a group (user_namespaces(7)).

A namespace here has no name in /run/netns: it is ``/proc/PID/ns/net`` of a process and ends with the
last process in it, so that nothing stays behind however that process ended.

setns and unshare are called through ctypes, because Python has them from 3.12 on only.

Not modelled: other kinds of namespace.  In particular /sys shows the interfaces of the namespace it
was mounted in; what runs in ours asks netlink or /proc/net, which follow the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from colo.errors import NetworkError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
NO_NAMESPACE = "-"
"""On the command line: no user namespace to enter first."""

_PROC_SYS = Path("/proc/sys")
_USERNS_CLONE = "kernel/unprivileged_userns_clone"
_USERNS_MAX = "user/max_user_namespaces"
_NETNS_MAX = "user/max_net_namespaces"
_APPARMOR = "kernel/apparmor_restrict_unprivileged_userns"
_HUB = "or use --network hub, which needs no privilege"


def create() -> bool:
    """Move this process, which must have one thread, into a new network namespace.

    True when it took a user namespace as well.
    """
    refused = _unshare(CLONE_NEWNET)
    if refused == 0:
        return False
    if refused == errno.EPERM:
        uid, gid = os.geteuid(), os.getegid()
        refused = _unshare(CLONE_NEWUSER | CLONE_NEWNET)
        if refused == 0:
            _map_ids(uid, gid)
            return True
    raise NetworkError(_why_no_namespace(refused))


def enter(namespace: str, user_namespace: str | None = None) -> None:
    """Move this process into the namespaces at these paths.

    A user namespace admits single-threaded processes only, so a node calls this before anything else.
    """
    what = f"entering the network namespace {namespace}"
    wanted = [(namespace, CLONE_NEWNET)]
    if user_namespace is not None and not _is_ours(user_namespace):
        wanted.insert(0, (user_namespace, CLONE_NEWUSER))
    # All are opened first: from inside the user namespace the paths may lead nowhere.
    opened: list[tuple[int, str, int]] = []
    try:
        for path, kind in wanted:
            opened.append((_open(path, what), path, kind))
        for fd, path, kind in opened:
            _setns(fd, path, kind, what)
    finally:
        for fd, _, _ in opened:
            os.close(fd)


def command_in(namespace: str, argv: Sequence[str], user_namespace: str | None = None) -> list[str]:
    """The command that runs ``argv`` in the namespaces, as that same process."""
    return [*python_module("colo.network.namespace"), namespace, user_namespace or NO_NAMESPACE, *argv]


def run_in(
    namespace: str,
    argv: Sequence[str],
    user_namespace: str | None = None,
    *,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program in the namespaces and wait for it; ``options`` are those of subprocess.run."""
    return subprocess.run(command_in(namespace, argv, user_namespace), check=check, **options)


def python_module(name: str) -> list[str]:
    """The command that runs a module of ours with this interpreter, wherever it is called."""
    # Put in front of sys.path rather than into the environment, which the program would inherit.
    root = str(Path(__file__).resolve().parent.parent)
    code = f"import runpy, sys; sys.path.insert(0, {root!r}); runpy.run_module({name!r}, None, '__main__')"
    return [sys.executable, "-P", "-c", code]


def main(arguments: list[str]) -> NoReturn:
    """``NAMESPACE USER-NAMESPACE|- COMMAND...``: enter and become the command."""
    namespace, user_namespace, *argv = arguments
    try:
        enter(namespace, None if user_namespace == NO_NAMESPACE else user_namespace)
        os.execvp(argv[0], argv)
    except NetworkError as exc:
        sys.exit(str(exc))
    except OSError as exc:
        sys.exit(f"running {argv[0]} in {namespace}: {exc.strerror}: expected a program that can be run")


def _unshare(flags: int) -> int:
    """0, or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(flags) != 0 else 0


def _setns(fd: int, path: str, kind: int, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, kind) == 0:
        return
    number = ctypes.get_errno()
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - a count, no paths
    if number == errno.EINVAL and kind == CLONE_NEWUSER and threads > 1:
        found = f"this process has {threads} threads already: expected one; enter before starting others"
    elif number == errno.EINVAL:
        found = "is not such a namespace: expected /proc/PID/ns/... or a file in /run/netns"
    elif number == errno.EPERM:
        found = "not permitted: expected root, or the user who made the network; run as that user"
    else:
        found = f"the kernel refuses ({os.strerror(number)})"
    raise NetworkError(f"{what}: {path}: {found}")


def _open(path: str, what: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        found = "does not exist: expected the process that holds it to be alive; start the network again"
    except PermissionError:
        found = "belongs to another user: expected root, or the user who made the network"
    except OSError as exc:
        found = f"cannot be opened ({exc.strerror})"
    raise NetworkError(f"{what}: {path}: {found}")


def _is_ours(user_namespace: str) -> bool:
    """Is this process in it already?  The kernel refuses to enter it a second time."""
    try:
        return Path(user_namespace).samefile("/proc/self/ns/user")
    except OSError:  # opening it will say what is wrong
        return False


def _map_ids(uid: int, gid: int) -> None:
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as exc:
        raise NetworkError(
            f"making a network namespace: the user namespace was made, but user {uid} may not be mapped in"
            f" it ({exc.strerror}): {_restriction(errno.EPERM)}"
        ) from None


def _why_no_namespace(number: int) -> str:
    what = f"making a network namespace as user {os.geteuid()}"
    if number in (errno.ENOSPC, errno.EUSERS):
        return (
            f"{what}: no more are allowed ({_setting(_USERNS_MAX)}, {_setting(_NETNS_MAX)}): expected room"
            f" for one; as root raise them with sysctl -w, {_HUB}"
        )
    if number == errno.EINVAL:
        return (
            f"{what}: the kernel has none: expected CONFIG_NET_NS, and CONFIG_USER_NS where one is not root;"
            f" use another kernel, {_HUB}"
        )
    if number != errno.EPERM:
        return f"{what}: the kernel refuses ({os.strerror(number)}): expected it to make one; {_HUB[3:]}"
    return f"{what}: not permitted: {_restriction(number)}"


def _restriction(number: int) -> str:
    """Which of the usual settings keeps users from having namespaces, and what to do."""
    if _read(_USERNS_CLONE) == "0":
        return (
            f"{_setting(_USERNS_CLONE)}: expected 1, or root; as root: sysctl -w"
            f" kernel.unprivileged_userns_clone=1; {_HUB}"
        )
    if _read(_APPARMOR) == "1":
        return (
            f"{_setting(_APPARMOR)}: expected 0, or root; as root: sysctl -w"
            f" kernel.apparmor_restrict_unprivileged_userns=0; {_HUB}"
        )
    return (
        f"{os.strerror(number)}, as under a container's seccomp filter: expected root with CAP_SYS_ADMIN or"
        f" user namespaces; run outside the container, give it --cap-add SYS_ADMIN, {_HUB}"
    )


def _read(setting: str) -> str | None:
    try:
        return (_PROC_SYS / setting).read_text().strip()
    except OSError:  # a kernel without it
        return None


def _setting(setting: str) -> str:
    return f"{setting.replace('/', '.')}={_read(setting) or 'unknown'}"


if __name__ == "__main__":
    main(sys.argv[1:])
