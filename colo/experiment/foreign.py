"""The clients of others: redis-benchmark and wrk, started, waited for, and read.

Both are Debian packages.  Redis-benchmark (redis-tools) takes a number of requests and no time, so a short
run first finds how many fit; its percentiles are the bounds of its own histogram, three digits exact, and it
judges nothing but error replies.  Wrk takes whole seconds; a Lua script of ours has it compare every body
and print what is asked here.  What either measures includes its own process, as with everybody who uses it.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from colo.experiment.outcome import PERCENTS, Faults, Latency, Outcome, Unusable
from colo.experiment.workloads import Workload

PACKAGES = {"redis-benchmark": "redis-tools", "wrk": "wrk"}
SETTLE_ROUNDS = 4
"""Pipelines on each connection by which the rate is first estimated; what runs then settles it."""
PATIENCE = 10.0
"""Times what a run should take: redis-benchmark tries for ever to reach a server that has gone."""
PATIENCE_MIN_S = 30.0
WORDS_MAX = 300

_RATE = re.compile(r"throughput summary: ([\d.]+) requests per second")
_BOUND = re.compile(r"<= ([\d.]+) milliseconds \(cumulative count (\d+)\)")
_ERROR_REPLY = re.compile(r"^Error from server", re.MULTILINE)
_WRK = re.compile(r"^colo (.*)$", re.MULTILINE)

SCRIPT = Path(__file__).with_name("client") / "wrk.lua"


def missing(workload: Workload) -> str | None:
    """Why this workload cannot be had here; None if it can."""
    if workload.client == "loadgen" or shutil.which(workload.client):
        return None
    return f"{workload.client} is not installed: apt install {PACKAGES[workload.client]}"


class Foreign:
    """One of them, ready for one load after another."""

    def __init__(self, workload: Workload, host: str, connections: int) -> None:
        self._workload, self._host, self._connections = workload, host, connections
        self._rate = 0.0

    @property
    def warm_ups(self) -> int:
        """Runs before the one that counts: redis-benchmark's first one only estimates the rate."""
        return 1 if self._workload.client == "wrk" else 2

    def command(self, seconds: float) -> list[str]:
        """For about so long, as far as the outcomes that it was told of say."""
        if self._workload.client == "wrk":
            return self._wrk(max(1, round(seconds)))
        least = self._connections * self._workload.argument
        return self._redis(max(least, round(self._rate * seconds)) if self._rate else least * SETTLE_ROUNDS)

    def settle(self, outcome: Outcome) -> None:
        self._rate = outcome.per_second

    def read(self, said: str) -> Outcome:
        return read_wrk(said) if self._workload.client == "wrk" else read_redis(said)

    def _redis(self, requests: int) -> list[str]:
        workload = self._workload
        words = ["redis-benchmark", "-h", self._host, "-p", str(workload.port), "-t", workload.ask, "-e"]
        words += ["-c", str(self._connections), "-P", str(workload.argument), "-n", str(requests)]
        return [*words, "--precision", "3"]

    def _wrk(self, seconds: int) -> list[str]:
        workload = self._workload
        url = f"http://{self._host}:{workload.port}{workload.ask}"
        words = [
            "wrk",
            "--threads",
            "1",
            "--connections",
            str(self._connections),
            "--duration",
            f"{seconds}s",
        ]
        return [*words, "--script", str(SCRIPT), url]


async def run(argv: Sequence[str], seconds: float) -> str:
    """What the command printed; Unusable if it failed or did not end."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    limit_s = max(PATIENCE_MIN_S, PATIENCE * seconds)
    try:
        async with asyncio.timeout(limit_s):
            said, _ = await process.communicate()
    except TimeoutError:
        raise Unusable(f"no end within {limit_s:g} s: does the guest still answer?") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    text = said.decode(errors="replace").replace("\r", "\n")
    if process.returncode:
        raise Unusable(f"the client ended with status {process.returncode}: {_last(text)}")
    return text


def read_redis(said: str) -> Outcome:
    """The report of one test."""
    rate = _RATE.search(said)
    bounds = [(int(count), float(limit)) for limit, count in _BOUND.findall(said)]
    if rate is None or not bounds:
        raise Unusable(f"redis-benchmark printed no report: {_last(said)}")
    answers = max(count for count, _ in bounds)
    cuts_ms = [_cut(bounds, answers * percent / 100) for percent in (*PERCENTS, 100)]
    faults = Faults(errors=len(_ERROR_REPLY.findall(said)))
    return Outcome(answers, answers / float(rate[1]), Latency(*cuts_ms), faults)


def _cut(bounds: Sequence[tuple[int, float]], wanted: float) -> float:
    """The smallest bound below which so many answers are."""
    return min(limit for count, limit in bounds if count >= wanted)


def read_wrk(said: str) -> Outcome:
    """The line that our script prints."""
    found = _WRK.search(said)
    if found is None:
        raise Unusable(f"wrk printed no report: {_last(said)}")
    facts = {name: int(value) for name, value in (word.split("=") for word in found[1].split())}
    cuts_ms = [facts[name] / 1000 for name in ("p50", "p90", "p99", "p999", "max")]
    latency = Latency(*cuts_ms)
    faults = Faults(wrong=facts["wrong"], errors=facts["errors"], stuck=facts["stuck"])
    return Outcome(facts["answers"], facts["us"] / 1e6, latency, faults)


def _last(said: str) -> str:
    return " | ".join(line for line in said.strip().splitlines()[-4:] if line)[-WORDS_MAX:]
