"""QEMU as a fault injector drives it: QMP for its life and its snapshots, the gdb stub for its state.

The guest runs on TCG with ``-icount shift=0,sleep=off``: an instruction takes a nanosecond of its time and
idle time takes none of the host's, as on our machine.  That is the most repeatable QEMU without a recording.

Its snapshots are QEMU's internal ones (QMP ``snapshot-save``, ``snapshot-load``), in a qcow2 image that the
guest does not see and that is made here, through QMP.  The guest is stopped and continued through the gdb
stub only, which alone says why it stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, QMPClient, QMPError

from tools.benchmarks.emulator import CLOCK_WORDS, PROCESS_CPU_CLOCK, Lost
from tools.benchmarks.host import program
from tools.benchmarks.qemu_injector_gdb import SIGINT, Gdb
from vmm.guest import BuiltGuest

BOARD = (
    *("-accel", "tcg", "-icount", "shift=0,sleep=off", "-machine", "pc", "-cpu", "qemu64"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
    *("-action", "reboot=shutdown,shutdown=pause"),  # a guest that ends leaves a QEMU that can be used again
    *("-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng", "-seed", "1"),
)
CONNECT_S, ANSWER_S = 30.0, 60.0
POLL_S = 0.002
"""Between two looks at a socket that is not there yet, or at a job: nothing tells when it ends."""
LOOK_S = 0.02
"""Between two looks at how much time QEMU has used."""
IDLE_TIMES = 20
STATE_BYTES = 1 << 30
TAG = "begin"


class Console:
    """The guest's serial port, as a socket.  What it said is here as soon as QEMU has stopped."""

    def __init__(self, path: Path, changed: asyncio.Event) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.setblocking(False)
        self._changed = changed
        self.data = bytearray()
        asyncio.get_running_loop().add_reader(self._socket, self.drain)

    def drain(self) -> None:
        with suppress(BlockingIOError):
            while data := self._socket.recv(1 << 16):
                self.data += data
                self._changed.set()

    def clear(self) -> None:
        """Forget what was said so far, that on its way included."""
        self.drain()
        self.data.clear()

    def type(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class Qemu:
    """A running one, its guest stopped at first."""

    def __init__(self, pid: int, console: Console, gdb: Gdb, qmp: QMPClient, changed: asyncio.Event) -> None:
        self._pid = pid
        self.console, self.gdb = console, gdb
        self._qmp, self._changed = qmp, changed
        self._jobs = itertools.count()
        self._stop: asyncio.Task[int] | None = None
        """Waits for the guest's next stop while it runs."""

    # Running

    async def go_on(self) -> None:
        await self.gdb.go_on()
        self._stop = asyncio.create_task(self.gdb.stopped())
        self._stop.add_done_callback(lambda task: self._changed.set())

    async def run_for(self, seconds: float) -> None:
        """So long on the host's clock, or until the guest stops by itself."""
        assert self._stop is not None, "the guest is stopped"
        await asyncio.wait((self._stop,), timeout=seconds)

    async def run_until(self, done: Callable[[], bool], limit_s: float) -> bool:
        """The guest runs until ``done`` (True); or until it stops by itself, or is late (False).

        ``limit_s`` is of the time that QEMU computes, so that a busy host makes nobody late; a guest that has
        QEMU do nothing is late when the host's clock says so.
        """
        assert self._stop is not None, "the guest is stopped"
        used_s, began_s = self.cpu_seconds(), time.monotonic()
        while not self._stop.done() and not done():
            if self.cpu_seconds() - used_s > limit_s or time.monotonic() - began_s > IDLE_TIMES * limit_s:
                break
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
        self.console.drain()
        return done()

    def cpu_seconds(self) -> float:
        """What all threads of QEMU have used so far."""
        return time.clock_gettime(~self._pid << 3 | PROCESS_CPU_CLOCK)

    async def stop(self) -> int:
        """The signal: SIGINT, or another one when the guest had stopped by itself."""
        if self._stop is None:
            return SIGINT
        if not self._stop.done():
            self.gdb.interrupt()
        async with asyncio.timeout(ANSWER_S):
            signal, self._stop = await self._stop, None
        self.console.drain()
        return signal

    async def expect(self, text: str) -> None:
        """Run on until the console says so."""
        wanted = text.encode()
        if not await self.run_until(lambda: wanted in self.console.data, ANSWER_S):
            raise Lost(f"QEMU's guest did not say {text!r}; last seen: {bytes(self.console.data[-300:])!r}")

    # Snapshots

    async def make_store(self, path: Path) -> None:
        """An image that snapshots can be in."""
        await self._job("blockdev-create", options={"driver": "file", "filename": str(path), "size": 0})
        await self._qmp.execute(
            "blockdev-add", {"driver": "file", "filename": str(path), "node-name": "store-file"}
        )
        await self._job(
            "blockdev-create", options={"driver": "qcow2", "file": "store-file", "size": STATE_BYTES}
        )
        await self._qmp.execute(
            "blockdev-add", {"driver": "qcow2", "file": "store-file", "node-name": "store"}
        )

    async def save(self) -> None:
        await self._job("snapshot-save", tag=TAG, vmstate="store", devices=["store"])

    async def load(self) -> None:
        """Back to where :meth:`save` was; also after the guest has ended."""
        await self._job("snapshot-load", tag=TAG, vmstate="store", devices=["store"])
        self.console.clear()

    async def reset(self) -> None:
        """A guest that has ended needs it; and what stops the guest at a reboot would stop this too."""
        await self._qmp.execute("set-action", {"reboot": "reset"})
        await self._qmp.execute("system_reset")
        async with asyncio.timeout(ANSWER_S):
            while await self._has_ended():
                await asyncio.sleep(POLL_S)
        await self._qmp.execute("set-action", {"reboot": "shutdown"})

    async def _has_ended(self) -> bool:
        status: Any = await self._qmp.execute("query-status")
        return bool(status["status"] == "shutdown")

    async def _job(self, command: str, **arguments: Any) -> None:
        name = f"job{next(self._jobs)}"
        await self._qmp.execute(command, {"job-id": name, **arguments})
        while True:
            jobs: Any = await self._qmp.execute("query-jobs")
            found = next(each for each in jobs if each["id"] == name)
            if found["status"] == "concluded":
                break
            await asyncio.sleep(POLL_S)
        await self._qmp.execute("job-dismiss", {"id": name})
        if "error" in found:
            raise Lost(f"QEMU: {command}: {found['error']}")


def command(guest: BuiltGuest, folder: Path) -> list[str]:
    append = " ".join(word for word in guest.cmdline.split() if not word.startswith(CLOCK_WORDS))
    words = [program("qemu-system-x86_64"), *BOARD, "-m", str(guest.info.ram_mib)]
    words += ["-kernel", str(guest.kernel), "-append", append]
    words += ["-initrd", str(guest.initrd)] if guest.initrd else []
    words += ["-chardev", f"socket,id=com1,path={folder}/com1,server=on,wait=off", "-serial", "chardev:com1"]
    words += ["-gdb", f"unix:{folder}/gdb,server=on,wait=off"]
    return [*words, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]


@asynccontextmanager
async def started(guest: BuiltGuest) -> AsyncIterator[Qemu]:
    """QEMU with ``guest`` at its first instruction; its end ends the process."""
    with tempfile.TemporaryDirectory(prefix="colo-qemu-") as name, tempfile.TemporaryFile() as errors:
        folder = Path(name)
        process = subprocess.Popen(command(guest, folder), stdin=subprocess.DEVNULL, stderr=errors)
        qmp = QMPClient("injector")
        changed = asyncio.Event()
        try:
            await _connect(qmp, folder / "qmp", process)
            console = Console(folder / "com1", changed)
            try:
                gdb = await Gdb.connect(folder / "gdb")
                try:
                    made = Qemu(process.pid, console, gdb, qmp, changed)
                    yield made
                    await made.stop()
                finally:
                    await gdb.close()
            finally:
                console.close()
                await qmp.disconnect()
        except (QMPError, EOFError, ConnectionError, TimeoutError) as exc:
            errors.seek(0)
            said = errors.read()[-2000:].decode(errors="replace").strip()
            raise Lost(f"QEMU: {exc!r} {said}") from exc
        finally:
            process.kill()
            process.wait()


async def _connect(qmp: QMPClient, path: Path, process: subprocess.Popen[bytes]) -> None:
    """When QEMU answers there, all its sockets are there.  A socket has a path before it listens."""
    async with asyncio.timeout(CONNECT_S):
        while True:
            if process.poll() is not None:
                raise ConnectionError(f"it ended with status {process.returncode}")
            with suppress(ConnectError):
                await qmp.connect(str(path))
                return
            await asyncio.sleep(POLL_S)
