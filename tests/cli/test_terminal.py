"""``colo run`` in a terminal: keys, the way out, and a terminal that is as it was afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import COLO, LIMIT_S, ROOT

CTRL_C, CTRL_ESCAPE = b"\x03", b"\x1d"


class Screen:
    """A pseudo-terminal with ``colo`` in it."""

    def __init__(self) -> None:
        self.user, self.terminal = os.openpty()
        self.before = self.mode()
        self.seen = b""
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        self.child = subprocess.Popen(
            [*COLO, *words], stdin=self.terminal, stdout=self.terminal, stderr=self.terminal, cwd=ROOT
        )
        return self.child

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.terminal)

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            ready, _, _ = select.select([self.user], [], [], LIMIT_S)
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            self.seen += os.read(self.user, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self.user)
        os.close(self.terminal)


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


def test_ctrl_c_is_the_guests_and_the_escape_leaves(screen: Screen, tmp_path: Path) -> None:
    snapshot = tmp_path / "left.snapshot"
    child = screen.start("run", "counter", "--append", "mib=1", "--save", str(snapshot))
    screen.until(b"Ctrl-] q quit")
    screen.until(b"GUEST-READY")
    assert not screen.mode()[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    screen.type(CTRL_C + CTRL_ESCAPE + b"s")
    screen.until(f"writes {snapshot}".encode())
    assert child.poll() is None
    screen.type(CTRL_ESCAPE + b"q")
    screen.until(b"colo: ended: quit")
    assert child.wait(timeout=LIMIT_S) == 0
    assert screen.mode() == screen.before
    assert snapshot.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_gives_the_terminal_back(screen: Screen, number: signal.Signals, status: int) -> None:
    child = screen.start("run", "counter", "--append", "mib=1")
    screen.until(b"GUEST-READY")
    child.send_signal(number)
    assert child.wait(timeout=LIMIT_S) == status
    assert screen.mode() == screen.before


def test_a_script_in_a_terminal_leaves_the_keys_to_the_user(screen: Screen, tmp_path: Path) -> None:
    """There is nothing to type for, so Ctrl-C is the terminal's own and ends the run."""
    script = tmp_path / "s"
    script.write_text("expect never\n")
    child = screen.start("run", "counter", "--script", str(script))
    screen.until(b"GUEST-READY")
    assert screen.mode() == screen.before
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=LIMIT_S) == 130
