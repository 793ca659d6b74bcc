"""What the network's tests share: programs of their own, a thread inside, and what is left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from colo.network.host import Network, enter
from vmm.backends import tap

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0
"""Limit of every wait: far more than anything here takes on a busy host."""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(tap.DEVICE).exists(), reason="needs root and /dev/net/tun"
)

T = TypeVar("T")


def script(name: str, *arguments: str) -> list[str]:
    """The command of a program beside this file."""
    path = Path(__file__).with_name(f"{name}.py")
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[:1] = [{name!r}]"
    return [
        sys.executable,
        "-P",
        "-c",
        f"{code}; runpy.run_path({str(path)!r}, None, '__main__')",
        *arguments,
    ]


@contextmanager
def running(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line; killed at the end."""
    process: subprocess.Popen[str] = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload]
    with process:
        try:
            yield process
        finally:
            if options.get("start_new_session"):  # a shell, with what it started
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], WAIT_S)[0], "it says nothing"
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def inside(network: Network, work: Callable[[], T]) -> T:
    """``work`` done by a thread in the namespace; the descriptors that it opens are good anywhere."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            assert network.namespace is not None
            enter(network.namespace)
            done.append(work())
        except BaseException as exc:  # handed to the test's own thread
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT_S)
    if failed:
        raise failed[0]
    return done[0]


def namespace_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def inhabitants(namespace: str) -> list[int]:
    """Processes in a network namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            if namespace_of(int(process.name)) == namespace:
                found.append(int(process.name))
    return found


def ended(pidfd: int) -> bool:
    """Has the process ended, within the limit?"""
    return bool(select.select([pidfd], [], [], WAIT_S)[0])


def descriptors() -> dict[str, str]:
    """This process's descriptors, by number."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor that this loop itself used
            found[link.name] = str(link.readlink())
    return found
