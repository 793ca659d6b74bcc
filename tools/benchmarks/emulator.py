"""Either emulator as a process whose serial console is a pipe.

Both are driven through the same few lines, and every time is taken here, on the host, when the
bytes arrive: neither side's own clock is asked.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tools.benchmarks.host import ROOT, program
from tools.benchmarks.measure import OURS
from vmm.backends.script import PlainText

PROMPT = "~ # "
WITHIN_S = 120.0
"""Wall time that an answer may take: the slowest of them takes a few seconds on a busy host."""
RAM_MIB = 256
CLOCK_WORDS = ("tsc=reliable", "tsc_early_khz=")
"""What our guests' command lines say of our clock, which is not true of QEMU's."""
PROCESS_CPU_CLOCK = 2
"""With the complement of a process id above it, that process's clock (clock_getcpuclockid(3))."""
MAC = "52:54:00:c0:10:02"


class Lost(Exception):
    """An emulator ended, or did not answer in time."""


@dataclass(frozen=True)
class Board:
    """What is to be started, for either side."""

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    multiboot: Path | None = None
    tap: str = ""
    disk: Path | None = None
    paced: bool = False
    marks: bool = False
    namespace: str = ""

    def command(self, side: str) -> list[str]:
        inside = [program("ip"), "netns", "exec", self.namespace] if self.namespace else []
        return inside + (self._ours() if side == OURS else self._qemu())

    def _ours(self) -> list[str]:
        words = [sys.executable, "-m", "tools.benchmarks.ours", "--ram", str(RAM_MIB)]
        if self.multiboot:
            words += ["--multiboot", str(self.multiboot)]
        else:
            words += ["--kernel", str(self.kernel), "--initrd", str(self.initrd), "--append", self.append]
        words += ["--tap", self.tap] if self.tap else []
        words += ["--disk", str(self.disk)] if self.disk else []
        words += ["--paced"] if self.paced else []
        return [*words, "--marks"] if self.marks else words

    def _qemu(self) -> list[str]:
        words = [program("qemu-system-x86_64"), *QEMU_BOARD]
        if self.multiboot:
            return [*words, "-kernel", str(self.multiboot)]
        append = " ".join(word for word in self.append.split() if not word.startswith(CLOCK_WORDS))
        words += ["-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", append]
        if self.tap:
            words += ["-netdev", f"tap,id=n,ifname={self.tap},script=no,downscript=no,vhost=off,vnet_hdr=on"]
            words += ["-device", f"virtio-net-pci,netdev=n,mac={MAC}"]
        if self.disk:
            words += ["-drive", f"file={self.disk},format=raw,if=none,id=d,cache=writeback"]
            words += ["-device", "virtio-blk-pci,drive=d"]
        return [*words, "-device", "virtio-rng-pci"]


QEMU_BOARD = (
    *("-accel", "tcg", "-machine", "pc", "-cpu", "qemu64", "-m", str(RAM_MIB)),
    *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio"),
    "-no-reboot",
)


def usual_environment() -> dict[str, str]:
    """Ours, but Python keeps compiled modules as it does by default: a start does not parse them again."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Emulator:
    """A running one.  Use it in a ``with`` statement, which ends the process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._plain = PlainText()
        self._unread = b""
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=usual_environment(),
            bufsize=0,
        )

    @classmethod
    def start(cls, side: str, board: Board) -> Emulator:
        return cls(board.command(side))

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What the process has used so far, all its threads; other load on the host does not enter."""
        return time.clock_gettime(~self._process.pid << 3 | PROCESS_CPU_CLOCK)

    def read(self, within_s: float = WITHIN_S) -> tuple[bytes, float]:
        """Some console output, and when it came."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], within_s)[0]:
            raise Lost(f"no answer within {within_s:g} s; last seen: {self._unread[-300:]!r}")
        data = os.read(descriptor, 65536)
        if not data:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read()[-2000:].decode(errors="replace").strip()
            raise Lost(f"it ended with status {self._process.returncode}: {said or self._unread[-300:]!r}")
        return data, time.perf_counter()

    def expect(self, text: str, within_s: float = WITHIN_S) -> tuple[str, float]:
        """Read on until ``text``: what was said before it, and when it came."""
        wanted = text.encode()
        came = time.perf_counter()
        while wanted not in self._unread:
            data, came = self.read(within_s)
            self._unread += self._plain.feed(data)
        before, _, self._unread = self._unread.partition(wanted)
        return before.decode(errors="replace"), came

    def send(self, text: str) -> float:
        assert self._process.stdin is not None
        sent = time.perf_counter()
        self._process.stdin.write(text.encode())
        return sent

    def command(self, line: str) -> tuple[str, float]:
        """Type a shell command: its output, and the seconds until the next prompt."""
        sent = self.send(line + "\n")
        said, came = self.expect(PROMPT)
        return said.replace("\r", "").partition("\n")[2], came - sent
