"""Consoles on real terminals (pseudo-terminals), pipes and files."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vmm.backends import terminal as plumbing
from vmm.backends.console import MENU, SNAPSHOT_HINT, Capture, Console, Tee, Terminal
from vmm.errors import BackendError

LIMIT_S = 60
"""Of every wait: far more than anything here takes on a busy host."""


def readable(fd: int, wait_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(wait_ms))


def read_until(fd: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        assert readable(fd, 5000), f"waited for {text!r}, saw {seen!r}"
        seen += os.read(fd, 4096)
    return seen


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """``(user, ours)``: what the user types into, and the terminal that we are given."""
    user, ours = os.openpty()
    yield user, ours
    os.close(user)
    os.close(ours)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):  # closed by the test
            os.close(end)


def local_flags(fd: int) -> int:
    return int(termios.tcgetattr(fd)[3])


def test_keys_go_to_the_guest_ctrl_c_included(pty: tuple[int, int]) -> None:
    user, ours = pty
    with Terminal(ours, ours) as terminal:
        console: Console = terminal
        os.write(user, b"ls\x03\x1a\x04\r")
        assert readable(console.fileno(), 5000)
        assert console.receive() == b"ls\x03\x1a\x04\r"
        assert not readable(console.fileno())
        assert console.receive() is None


def test_the_terminal_is_raw_inside_and_as_before_outside(pty: tuple[int, int]) -> None:
    user, ours = pty
    before = termios.tcgetattr(ours)
    with Terminal(ours, ours) as terminal:
        assert terminal.interactive
        assert not int(termios.tcgetattr(ours)[1]) & termios.OPOST
        assert not local_flags(ours) & (termios.ECHO | termios.ICANON | termios.ISIG)
        assert MENU.encode() in read_until(user, b" --\r\n")
    assert termios.tcgetattr(ours) == before
    terminal.close()
    with pytest.raises(RuntimeError, match="broken"), Terminal(ours, ours):
        raise RuntimeError("broken")
    assert termios.tcgetattr(ours) == before


def test_output_reaches_the_user(pty: tuple[int, int]) -> None:
    user, ours = pty
    with Terminal(ours, ours) as terminal:
        terminal.write(b"Linux version 6.1\r\n")
        assert read_until(user, b"6.1\r\n").endswith(b" --\r\nLinux version 6.1\r\n")
        assert not terminal.pending_output


def test_the_menu(pty: tuple[int, int]) -> None:
    user, ours = pty
    with Terminal(ours, ours) as terminal:

        def typed(keys: bytes) -> bytes | None:
            os.write(user, keys)
            assert readable(terminal.fileno(), 5000)
            return terminal.receive()

        read_until(user, b" --\r\n")
        assert typed(b"a\x1dhb") == b"ab"
        assert MENU.encode() in read_until(user, b" --\r\n")
        assert typed(b"\x1ds") is None
        assert SNAPSHOT_HINT.encode() in read_until(user, b" --\r\n")
        assert typed(b"\x1d\x1d") == b"\x1d"
        assert typed(b"\x1d") is None  # the letter may come later
        assert typed(b"z") is None
        assert b"no such command" in read_until(user, b" --\r\n")
        assert not terminal.quit_requested
        assert typed(b"x\x1dq") == b"x"
        assert terminal.quit_requested


def test_a_pipe_brings_every_byte_and_then_an_end(pipe: tuple[int, int]) -> None:
    here, there = pipe
    sink = os.open(os.devnull, os.O_WRONLY)
    with Terminal(here, sink) as terminal:
        assert not terminal.interactive
        os.write(there, b"\x1dq\x03")
        assert terminal.receive() == b"\x1dq\x03"
        os.close(there)
        assert readable(terminal.fileno(), 5000)
        assert terminal.receive() is None
        assert terminal.eof
        assert not readable(terminal.fileno())  # the loop is not woken for nothing, for ever
        assert not terminal.quit_requested
    os.close(sink)


@pytest.mark.parametrize("contents", [b"", b"echo hello\n"])
def test_a_file_and_dev_null_are_inputs_too(tmp_path: Path, contents: bytes) -> None:
    """epoll(7) refuses both; the loop must not notice."""
    path = tmp_path / "typed"
    path.write_bytes(contents)
    for name in (str(path), os.devnull):
        source, sink = os.open(name, os.O_RDONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        with Terminal(source, sink) as terminal:
            got = b""
            while readable(terminal.fileno()):
                got += terminal.receive() or b""
            assert terminal.eof
            assert got == (contents if name != os.devnull else b"")
            terminal.write(b"x" * 100_000)
            assert not terminal.pending_output
        os.close(source)
        os.close(sink)
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000


def test_a_reader_that_falls_behind_does_not_stop_the_machine(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plumbing, "OUTPUT_MAX", 1 << 20)
    here, there = pipe
    source = os.open(os.devnull, os.O_RDONLY)
    with Terminal(source, there) as terminal:
        while terminal.receive() is not None or not terminal.eof:
            pass
        said = bytes(range(256)) * 8192  # 2 MiB
        terminal.write(said)
        assert terminal.pending_output
        assert terminal.output_dropped == len(said) - (1 << 20)
        assert not readable(terminal.fileno())
        got = bytearray()
        while len(got) < 1 << 20:
            got += os.read(here, 65536)
            if len(got) < 1 << 19:
                assert readable(terminal.fileno(), 5000)  # room wakes the loop
            assert terminal.receive() is None
        assert got == said[: 1 << 20]
        assert not readable(terminal.fileno())
        assert os.get_blocking(there)  # the descriptor that others share is as it was
    os.close(source)


def test_a_reader_that_left_is_no_error(pipe: tuple[int, int]) -> None:
    here, there = pipe
    source = os.open(os.devnull, os.O_RDONLY)
    with Terminal(source, there) as terminal:
        os.close(here)
        terminal.write(b"anyone?")
        terminal.write(b"no")
        assert terminal.output_dropped == 9
        assert not terminal.pending_output
    terminal.write(b"after the end")
    assert terminal.output_dropped == 22
    os.close(source)


def test_the_end_waits_for_a_reader_that_reads(pipe: tuple[int, int]) -> None:
    here, there = pipe
    reader = subprocess.Popen(("wc", "-c"), stdin=here, stdout=subprocess.PIPE)
    os.close(here)
    source = os.open(os.devnull, os.O_RDONLY)
    with Terminal(source, there) as terminal:
        terminal.write(b"x" * 3_000_000)
    os.close(there)
    os.close(source)
    assert reader.communicate(timeout=LIMIT_S)[0].strip() == b"3000000"


def test_closed_standard_input_says_what_to_type() -> None:
    with pytest.raises(BackendError, match=r"standard input is closed: .* start with < /dev/null"):
        Terminal(10_000, 1)


CHILD = """
import os, select, signal, sys
from vmm.backends.console import Terminal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
signal.signal(signal.SIGHUP, signal.{hangup})  # and nohup has this one ignored
terminal = Terminal(0, 0)
def end(): {end}
with terminal:
    os.write(2, b"raw\\n")
    while True:
        select.select([terminal.fileno()], [], [])
        typed = terminal.receive()
        if typed: os.write(2, typed)
        if terminal.quit_requested or typed == b"!": end(); break
"""


def start(ours: int, end: str = "pass", hangup: str = "SIG_DFL") -> subprocess.Popen[bytes]:
    program = CHILD.format(end=end, hangup=hangup)
    made = subprocess.Popen((sys.executable, "-c", program), stdin=ours, stderr=subprocess.PIPE, bufsize=0)
    assert made.stderr is not None
    read_until(made.stderr.fileno(), b"raw\n")
    assert not local_flags(ours) & termios.ICANON
    return made


def finish(child: subprocess.Popen[bytes]) -> int:
    code = child.wait(LIMIT_S)
    assert child.stderr is not None
    child.stderr.close()
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_puts_the_terminal_back_and_still_kills(
    pty: tuple[int, int], number: signal.Signals
) -> None:
    before = termios.tcgetattr(pty[1])
    child = start(pty[1])
    child.send_signal(number)
    assert finish(child) == -number
    assert termios.tcgetattr(pty[1]) == before


def test_an_ignored_hangup_changes_nothing(pty: tuple[int, int]) -> None:
    """As under nohup: the terminal stays raw and its user can go on typing."""
    user, ours = pty
    child = start(ours, hangup="SIG_IGN")
    child.send_signal(signal.SIGHUP)
    os.write(user, b"a")
    assert child.stderr is not None
    read_until(child.stderr.fileno(), b"a")
    assert not local_flags(ours) & termios.ICANON
    os.write(user, b"!")
    assert finish(child) == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(3)", 3), ("raise ValueError", 1), ("pass", 0), ("terminal.__class__.close", 0)],
)
def test_every_end_puts_the_terminal_back(pty: tuple[int, int], end: str, code: int) -> None:
    user, ours = pty
    before = termios.tcgetattr(ours)
    child = start(ours, end)
    os.write(user, b"!")
    assert finish(child) == code
    assert termios.tcgetattr(ours) == before


def test_a_terminal_that_was_never_left_is_put_back_at_exit(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    program = "from vmm.backends.console import Terminal\nTerminal(0, 0).__enter__()"
    subprocess.run((sys.executable, "-c", program), stdin=pty[1], check=True, timeout=LIMIT_S)
    assert termios.tcgetattr(pty[1]) == before


def test_a_forked_child_leaves_the_terminal_alone(pty: tuple[int, int]) -> None:
    user, ours = pty
    end = (
        "pid = os.fork(); pid or sys.exit(0); os.waitpid(pid, 0);"
        " pid = os.fork(); pid or os.kill(os.getpid(), 15); print(os.waitpid(pid, 0)[1]);"
        " os.write(2, b'forked'); sys.stdin.readline()"
    )
    child = start(ours, end)
    os.write(user, b"!")
    assert child.stderr is not None
    read_until(child.stderr.fileno(), b"forked")
    assert not local_flags(ours) & termios.ICANON
    os.write(user, b"\n")
    assert finish(child) == 0


def test_stopping_gives_the_terminal_back_for_the_meantime(pty: tuple[int, int]) -> None:
    user, ours = pty
    before = termios.tcgetattr(ours)
    child = start(ours)
    child.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert termios.tcgetattr(ours) == before
    child.send_signal(signal.SIGCONT)
    assert child.stderr is not None
    os.write(user, b"k\n")  # whichever mode it meets, it arrives
    read_until(child.stderr.fileno(), b"k")
    assert not local_flags(ours) & termios.ICANON
    os.write(user, b"\x1dq")
    assert finish(child) == 0
    assert termios.tcgetattr(ours) == before


def test_signal_handlers_are_put_back(pty: tuple[int, int]) -> None:
    def mine(number: int, frame: Any) -> None:
        raise AssertionError("never sent")

    old = signal.signal(signal.SIGTERM, mine)
    try:
        with Terminal(pty[1], pty[1]):
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGCONT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, old)


def test_capture_keeps_the_end() -> None:
    capture = Capture(limit_mib=1)
    console: Console = capture
    for number in range(300):
        console.write(bytes([number % 256]) * 8192)
    assert capture.total == 300 * 8192
    assert len(capture.data) == 1 << 20
    assert capture.data[0] == 300 - 128  # 128 writes of 8 KiB are 1 MiB
    assert capture.data[-1] == 299 % 256
    console.write(b"x" * (2 << 20))
    assert capture.data == b"x" * (1 << 20)
    assert (console.fileno(), console.receive(), console.pending_output) == (-1, None, False)


def test_capture_text_is_never_refused() -> None:
    capture = Capture()
    capture.write(b"caf\xc3")
    capture.write(b"\xa9 \xff")
    assert capture.text == "café \ufffd"


def test_tee_writes_to_all_and_reads_from_the_first(pipe: tuple[int, int]) -> None:
    here, there = pipe
    sink = os.open(os.devnull, os.O_WRONLY)
    first, one, other = Terminal(here, sink), Capture(), Capture()
    tee: Console = Tee(first, one, other)
    assert tee.fileno() == first.fileno()
    os.write(there, b"typed")
    assert tee.receive() == b"typed"
    tee.write(b"said")
    tee.flush()
    assert not tee.pending_output
    assert one.text == other.text == "said"
    tee.close()
    assert first.fileno() == -1
    os.close(sink)
