"""Real Linux stacks: one for each machine of a pair and one for the client, in namespaces.

Frames pass through this test, which is the pair: what the primary says waits for the comparison, what the
secondary says and hears is rewritten, some frames are lost.  Two kernels' worth of initial numbers differ by
themselves; that one stack adds a secret to its clock and the other does not makes their time stamps as
different as those of guests that drew their secrets after a checkpoint.  When enough was said, the primary
is not listened to any more.  There is no checkpoint: every connection is one of COLO state.

What the stacks themselves count shows whether they were content: segments refused for their time stamp.
"""

from __future__ import annotations

import array
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colo.compare.comparison import Comparison
from colo.compare.comparison import Settings as Limits
from colo.compare.packet import VNET_HEADER, Kind, parse
from colo.compare.verdict import Diverged, Release
from colo.rewrite import connection
from colo.rewrite.rewriter import Rewriter, Settings
from colo.rewrite.timestamps import Stamps

ROOT = Path(__file__).resolve().parents[2]
LOSS = 0.01
WAIT_S = 60.0
FRAME_MAX = 70_000
UNDER_WAY = 4
"""Segments that the client may refuse after a take-over: they left before it."""
REFUSED = ("PAWSActive", "PAWSEstab", "PAWSOldAck", "TSEcrRejected", "PAWSTimewait")
"""Linux's counters of segments whose time stamp, or echo, was not to its liking."""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK) or not shutil.which("unshare"),
    reason="needs root, /dev/net/tun and unshare, to make network namespaces",
)


class Host:
    """One namespace with its program and TAP."""

    def __init__(self, role: str, folder: Path, stamps: int, vnet: bool) -> None:
        folder.mkdir()
        path = str(folder / "sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(WAIT_S)
            command = ["unshare", "--net", sys.executable, "-m", "tests.rewrite.stack", role, path, "1"]
            self.process = subprocess.Popen(
                [*command, str(stamps), str(int(vnet))], stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
            self.control, _ = listener.accept()
        _, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(4))
        self.tap = array.array("i", ancillary[0][2])[0]

    def refused(self) -> dict[str, int]:
        """Of ``REFUSED``, those that happened here."""
        lines = Path(f"/proc/{self.process.pid}/net/netstat").read_text().splitlines()
        counts = dict(zip(lines[0].split()[1:], map(int, lines[1].split()[1:]), strict=True))
        return {name: counts[name] for name in REFUSED if counts.get(name)}

    def close(self) -> None:
        os.close(self.tap)
        self.control.close()
        self.process.terminate()
        self.process.communicate(timeout=WAIT_S)


class Pair:
    """Two guests and a client."""

    def __init__(self, folder: Path, *, secret: str = "primary", vnet: bool = False, fail_after: int) -> None:
        stamps = {"primary": (1, 2), "secondary": (2, 1)}[secret]
        self.hosts = {
            "primary": Host("guest", folder / "primary", stamps[0], vnet),
            "secondary": Host("guest", folder / "secondary", stamps[1], vnet),
            "client": Host("client", folder / "client", 1, vnet),
        }
        self.l2 = VNET_HEADER if vnet else 0
        self.comparison = Comparison(Limits(vnet=vnet))
        self.rewriter = Rewriter(Settings(vnet=vnet))
        self.fail_after, self.said, self.loss = fail_after, 0, random.Random(1)
        self.alone = False
        self.refused_before: dict[str, int] = {}  # by the client, of the primary's

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()

    def play(
        self, openers: tuple[str, ...] = ("primary", "secondary", "client"), limit_s: float = WAIT_S
    ) -> set[str]:
        """Until both ends have heard everything, or for ``limit_s``; who has."""
        for name in openers:
            self.hosts[name].control.sendall(b"g")
        done: set[str] = set()
        end = time.monotonic() + limit_s
        while time.monotonic() < end and not {"client", "secondary"} <= done:
            sources = {self.hosts[name].tap: name for name in self._listened()}
            sources |= {host.control: name for name, host in self.hosts.items() if name not in done}
            ready, _, _ = select.select(list(sources), [], [], 0.2)
            for source in ready:
                if isinstance(source, int):
                    self._pass_on(sources[source], os.read(source, FRAME_MAX))
                else:
                    self._hear(sources[source])
                    done.add(sources[source])
        return done

    def _hear(self, name: str) -> None:
        """It has heard everything, or else failed, as the primary may when nobody listens to it."""
        host = self.hosts[name]
        if host.control.recv(1) != b"d" and not (name == "primary" and self.alone):
            raise AssertionError(f"{name}: {host.process.communicate(timeout=WAIT_S)[1]}")

    def _listened(self) -> list[str]:
        return [name for name in self.hosts if name != "primary" or not self.alone]

    def _pass_on(self, sender: str, frame: bytes) -> None:
        now_ms = time.monotonic() * 1000
        is_tcp = parse(frame, self.l2).kind is Kind.TCP
        if sender == "client":
            if not is_tcp or self.loss.random() >= LOSS:
                self._write("primary", frame)
                self._write("secondary", self.rewriter.inward(frame, now_ms))
        elif sender == "secondary":
            shown = self.rewriter.outward(frame, now_ms)
            if self.alone or not is_tcp:  # both look for the client's address
                self._write("client", shown)
            else:
                self._decide(self.comparison.feed_secondary(shown, 0.0))
        elif is_tcp:
            self._decide(self.comparison.feed_primary(frame, 0.0))
        elif not self.alone:
            self._write("client", frame)

    def _decide(self, decisions: list[object]) -> None:
        for each in decisions:
            assert not isinstance(each, Diverged), each
            if isinstance(each, Release) and not self.alone:
                self.said += 1
                if self.loss.random() >= LOSS:
                    self._write("client", each.frame)
                if self.said == self.fail_after:
                    self.alone = True
                    self.refused_before = self.hosts["client"].refused()
                    self.rewriter.take_over(time.monotonic() * 1000)

    def _write(self, name: str, frame: bytes) -> None:
        if name != "primary" or not self.alone:
            os.write(self.hosts[name].tap, frame)


@pytest.mark.parametrize("secret", ["primary", "secondary"])
@pytest.mark.parametrize(
    ("fail_after", "vnet"), [(3, False), (12, True), (60, False), (250, True)], ids=lambda each: str(each)
)
def test_every_connection_survives(tmp_path: Path, secret: str, vnet: bool, fail_after: int) -> None:
    pair = Pair(tmp_path, secret=secret, vnet=vnet, fail_after=fail_after)
    try:
        assert pair.play() >= {"client", "secondary"}
        assert pair.alone
        # A retransmission of the primary may overtake what waits for the secondary, and make that look old.
        before, after = pair.refused_before, pair.hosts["client"].refused()
        assert sum(after.values()) - sum(before.values()) <= UNDER_WAY
        assert pair.hosts["secondary"].refused() == {}
        learned = sum(count for name, count in pair.rewriter.counts.items() if name.startswith("learned"))
        assert learned > 0
    finally:
        pair.close()


def left_alone(stamps: Stamps, own: int) -> int:
    stamps.last = own
    return own


def test_with_its_time_stamps_left_alone_a_real_client_refuses_the_survivor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As QEMU's rewriter leaves them; in which of the two cases depends on the secret of this host."""
    monkeypatch.setattr(Stamps, "outward", left_alone)
    refused = 0
    for secret in ("primary", "secondary"):
        (tmp_path / secret).mkdir()
        pair = Pair(tmp_path / secret, secret=secret, fail_after=60)
        try:
            if not pair.play(("client",), limit_s=4.0):
                assert pair.alone
                more = pair.hosts["client"].refused()["PAWSEstab"] - pair.refused_before.get("PAWSEstab", 0)
                refused += more
        finally:
            pair.close()
    assert refused > 0


def test_with_echoes_left_alone_a_real_guest_refuses_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux takes a SYN-ACK only if its echo is of the time since its SYN: the secondary resets, alone."""
    monkeypatch.setattr(connection, "stamps_at", lambda packet: 0)
    pair = Pair(tmp_path, fail_after=10**9)
    try:
        with pytest.raises(AssertionError, match="RST_DIFFERS"):
            pair.play(("primary", "secondary"))
        assert pair.hosts["secondary"].refused().keys() == {"PAWSActive"}
    finally:
        pair.close()
