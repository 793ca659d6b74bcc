"""Our client: ``client/*.c``, compiled when it is first used, started inside the pair's network.

It is C because it shares two cores with what it measures.  The program is kept in the cache under a digest
of its sources and of the compiler, and comes with the package as source: no binary is trusted to fit.

A load is started, says that every connection has had its first answer, and goes on until it is ended; its
records then say when each answer came, so that whoever started it may cut out any part of the time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from colo.experiment.outcome import Faults, Latency, Outcome, Unusable
from colo.experiment.workloads import Workload
from vmm.guest.store import cache_directory

SOURCES = Path(__file__).with_name("client")
FLAGS = ("-std=c11", "-O2")
COMPILERS = ("cc", "gcc", "clang")
COMPILE_LIMIT_S = 60.0
BEGIN_LIMIT_S = 30.0
"""Until every connection has an answer: a failing policy is no reason to wait for ever."""
END_LIMIT_S = 10.0
RECORD = np.dtype([("at_ns", "<u8"), ("latency_ns", "<u8"), ("connection", "<u4"), ("verdict", "<u4")])
"""``struct record`` of loadgen.c."""
Records = npt.NDArray[np.void]
_REPORTED = re.compile(r"(\w+)=([\d.]+)")


def program() -> Path:
    """The client, compiled if it has not been yet.  Unusable says what is missing."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Unusable(
            "the client of this workload is compiled when it is first used, and there is no C compiler:"
            " apt install gcc libc6-dev"
        )
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.blake2b(" ".join((compiler, *FLAGS)).encode(), digest_size=12)
    for source in sources:
        digest.update(source.read_bytes())
    out = cache_directory() / "clients" / f"loadgen-{digest.hexdigest()}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        _compile(compiler, [str(each) for each in sources if each.suffix == ".c"], out)
    return out


def _compile(compiler: str, sources: list[str], out: Path) -> None:
    part = out.with_suffix(f".{os.getpid()}")  # two processes may do this at once
    command = [compiler, *FLAGS, "-o", str(part), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_LIMIT_S)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise Unusable(f"compiling loadgen: {compiler} failed (is libc6-dev there?): {last}")
    part.rename(out)


def command(workload: Workload, host: str, connections: int, limit_s: float, raw: Path) -> list[str]:
    """The words that start it."""
    return [
        str(program()), host, str(workload.port), workload.ask, str(connections), f"{limit_s:.3f}",
        str(workload.argument), str(raw),
    ]  # fmt: skip


class Load:
    """A load that runs.  Use it in an ``async with`` statement; it is entered when all have had an answer."""

    def __init__(self, argv: Sequence[str], raw: Path) -> None:
        """``argv`` runs :func:`command`, wherever that has to be."""
        self._argv = list(argv)
        self._raw = raw
        self._words = raw.with_suffix(".stderr")
        self._process: asyncio.subprocess.Process | None = None
        self._report = b""

    async def __aenter__(self) -> Load:
        with self._words.open("wb") as words:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=words,
                start_new_session=True,  # Ctrl-C is for us, who end it in order
            )
        try:
            await self._begun()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _begun(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(BEGIN_LIMIT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Unusable(f"the guest did not answer every connection within {BEGIN_LIMIT_S:g} s") from None
        if line.strip() != b"begun":
            raise Unusable(f"the load did not begin: {line.decode().strip()} {self.last_words()}".strip())

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def end(self) -> tuple[Records, Faults]:
        """End it, in order: every answer since it began, and what was wrong."""
        process = self._process
        assert process is not None
        with suppress(ProcessLookupError):  # it has lost every connection, and ended
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_LIMIT_S):
                said, _ = await process.communicate()
        except TimeoutError:
            raise Unusable(f"the load did not end within {END_LIMIT_S:g} s: {self.last_words()}") from None
        reported = dict(_REPORTED.findall(said.decode()))
        if "stuck" not in reported:
            raise Unusable(
                f"the load ended without a report (status {process.returncode}): {self.last_words()}"
            )
        counts = {
            "wrong": "wrong", "lost": "lost", "repeated": "repeated", "errs": "errors", "resets": "resets",
            "stuck": "stuck",
        }  # fmt: skip
        return read(self._raw), Faults(**{to: int(reported[name]) for name, to in counts.items()})

    def last_words(self) -> str:
        return " | ".join(self._words.read_text(errors="replace").strip().splitlines()[-3:])


def read(raw: Path) -> Records:
    """The records of a load, in the order of their answers."""
    return np.fromfile(raw, RECORD)


def between(records: Records, begin_s: float, end_s: float, faults: Faults) -> Outcome:
    """What was seen from one moment to another, both of CLOCK_MONOTONIC."""
    at_ns = records["at_ns"]
    inside = records[(at_ns >= begin_s * 1e9) & (at_ns < end_s * 1e9)]
    samples = inside["latency_ns"].copy()
    return Outcome(len(samples), end_s - begin_s, Latency.of(samples), faults, samples)
