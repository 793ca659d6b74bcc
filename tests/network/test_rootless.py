"""Without root: a user namespace where the kernel has them, and the reason where something is missing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.network import namespace as network_namespace
from tests.network.support import ROOT, WAIT_S, needs_root, script
from vmm.backends.tap import DEVICE

START = """
import sys
sys.path.insert(0, sys.argv[1])
from colo.errors import NetworkError
from colo.network.host import Network, enter
network = Network("colo-test", publish=[(0, 6379)])
try:
    network.start()
except NetworkError as exc:
    print(exc)
    sys.exit(3)
"""
USE = (
    START
    + """
import json, os, socket, subprocess
from colo.network.namespace import python_module
from tests.network.support import said, script, running
said_by_node = subprocess.run(
    [sys.executable, "-P", "-c", sys.argv[2], sys.argv[1], network.namespace, network.user_namespace],
    capture_output=True, text=True,
)
network.run(["ip", "address", "add", "10.77.0.2/32", "dev", "lo"], check=True)
with running(network.command(script("echo", "10.77.0.2", "6379"))) as service:
    assert said(service) == "ready"
    with socket.create_connection(("127.0.0.1", network.published[0].host_port)) as client:
        client.sendall(b"rootless")
        echoed = client.recv(100).decode()
network.add_tap("tap-c")
holder = network.pid
network.close()
print(json.dumps({
    "uid": os.getuid(), "node": said_by_node.stdout + said_by_node.stderr, "echoed": echoed,
    "left": os.path.exists(f"/proc/{holder}"),
}))
"""
)
NODE = """
import sys
sys.path.insert(0, sys.argv[1])
from colo.network.host import enter
from vmm.backends.tap import Tap
enter(sys.argv[2], sys.argv[3])
taps = [Tap("tap-a"), Tap("tap-b")]
print("holds", *(tap.name for tap in taps), end="")
"""
NO_MORE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from colo.network.namespace import _map_ids, _unshare, CLONE_NEWUSER
if _unshare(CLONE_NEWUSER) != 0:
    sys.exit(4)
_map_ids(65534, 65534)
for kind in ("user", "net"):
    pathlib.Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")
"""

pytestmark = needs_root


def rootless(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        script("rootless", *arguments), capture_output=True, text=True, timeout=4 * WAIT_S, check=False
    )


@pytest.fixture(scope="module")
def user_namespaces() -> None:
    """Skips where the kernel gives none, with the reason that a user would see."""
    done = rootless("--tun", START, str(ROOT))
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("user_namespaces")
def test_the_whole_network_without_root(tool: Callable[[str], str]) -> None:
    tool("ip")
    done = rootless("--tun", USE, str(ROOT), NODE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found == {"uid": 65534, "node": "holds tap-a tap-b", "echoed": "rootless", "left": False}


@pytest.mark.usefixtures("user_namespaces")
def test_a_tap_device_that_only_root_may_open_is_said() -> None:
    mode = stat.S_IMODE(Path(DEVICE).stat().st_mode)
    if mode & 0o006:
        pytest.skip(f"{DEVICE} has mode {mode:04o} here: everybody may open it")
    done = rootless(START, str(ROOT))
    assert done.returncode == 3, done.stderr
    assert "tap-a: /dev/net/tun may not be opened: a TAP interface needs it; run as root" in done.stdout
    assert f"/dev/net/tun has mode {mode:04o} and its owner is another: expected 0666" in done.stdout
    assert "chmod 666 /dev/net/tun" in done.stdout
    assert "--network hub" in done.stdout


@pytest.mark.usefixtures("user_namespaces")
def test_a_limit_on_namespaces_is_named() -> None:
    done = rootless("--tun", NO_MORE + START, str(ROOT))
    assert done.returncode == 3, done.stderr
    assert "no more are allowed (user.max_user_namespaces=0, user.max_net_namespaces=0)" in done.stdout
    assert "--network hub" in done.stdout


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("kernel/other", "1", "run outside the container, give it --cap-add SYS_ADMIN"),
    ],
)
def test_a_kernel_that_forbids_user_namespaces_says_by_which_setting(
    setting: str, value: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of distributions whose kernels we do not run on here."""
    (tmp_path / setting).parent.mkdir(parents=True)
    (tmp_path / setting).write_text(f"{value}\n")
    monkeypatch.setattr(network_namespace, "_PROC_SYS", tmp_path)
    monkeypatch.setattr(network_namespace, "_unshare", lambda flags: 1)  # EPERM
    with pytest.raises(network_namespace.NetworkError) as caught:
        network_namespace.create()
    assert advice in str(caught.value)
    assert "use --network hub" in str(caught.value)
    assert f"as user {os.geteuid()}" in str(caught.value)
