"""Entering namespaces and running programs in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colo.errors import NetworkError
from colo.network.host import Network, enter, run_in
from tests.network.support import ROOT, inside, namespace_of, needs_root

THREADED = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from colo.errors import NetworkError
from colo.network.host import enter
wait = threading.Event()
thread = threading.Thread(target=wait.wait)
thread.start()
try:
    enter(sys.argv[2], sys.argv[3])
except NetworkError as exc:
    print(exc)
wait.set()
"""


@needs_root
def test_a_program_run_inside_is_inside(network: Network) -> None:
    assert network.namespace is not None
    assert network.pid is not None
    done = network.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == namespace_of(network.pid)
    done = run_in(network.namespace, ["sh", "-c", "exit 7"])
    assert done.returncode == 7


@needs_root
def test_a_program_run_inside_has_the_environment_and_folder_of_its_caller(
    network: Network, tmp_path: Path
) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ.get('WORD'), os.environ.get('PYTHONPATH'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = network.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "WORD": "kept"},
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path), "kept", "None"]


@needs_root
def test_a_program_that_is_not_there_is_said(network: Network) -> None:
    done = network.run(["no-such-program"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "running no-such-program in" in done.stderr
    assert "Traceback" not in done.stderr


@needs_root
def test_entering_again_is_no_error(network: Network) -> None:
    assert network.namespace is not None
    namespace = network.namespace
    inside(network, lambda: enter(namespace, "/proc/self/ns/user"))


def test_a_namespace_that_is_gone_is_said() -> None:
    with pytest.raises(NetworkError, match=r"/proc/0/ns/net: does not exist: expected the process"):
        enter("/proc/0/ns/net")


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel looks at the permission first")
def test_what_is_no_network_namespace_is_said(tmp_path: Path) -> None:
    for path in (str(tmp_path), "/proc/self/ns/mnt"):
        with pytest.raises(NetworkError, match="is not such a namespace"):
            enter(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter")
def test_a_namespace_of_another_user_is_said() -> None:
    with pytest.raises(NetworkError, match="belongs to another user"):
        enter("/proc/1/ns/net")


@needs_root
def test_a_process_with_threads_cannot_enter_a_user_namespace_and_is_told_why() -> None:
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(b"there\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"there\n"
        spaces = [f"/proc/{other.pid}/ns/{kind}" for kind in ("net", "user")]
        done = subprocess.run(
            [sys.executable, "-c", THREADED, str(ROOT), *spaces], capture_output=True, text=True, check=True
        )
        other.stdin.close()
    assert "this process has 2 threads already: expected one; enter before starting others" in done.stdout


def test_a_network_that_is_not_started_is_said() -> None:
    network = Network("colo-test")
    for use in (network.stats, lambda: network.command(["true"]), lambda: network.run(["true"])):
        with pytest.raises(NetworkError, match="not started"):
            use()
    network.close()


@pytest.mark.parametrize(
    ("address", "guest"),
    [
        ("10.77.0.1", "10.77.0.2"),
        ("10.77.0.1/24", "10.78.0.2"),
        ("10.77.0.1/24", "10.77.0.1"),
        ("10.77.0.1/33", "10.77.0.2"),
        ("fd00::1/64", "fd00::2"),
        ("10.77.0.1/24", "redis"),
    ],
)
def test_addresses_that_make_no_network_are_refused(address: str, guest: str) -> None:
    with pytest.raises(NetworkError, match=r"the pair's network.*expected"):
        Network("colo-test", address=address, guest_address=guest)
