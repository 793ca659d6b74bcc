"""The workloads: what each guest is asked, by which client, and how answers are judged.

``loadgen`` is ours: a closed loop, one request in flight on each connection, every answer compared with
what it must be.  ``redis-benchmark`` and ``wrk`` are what people measure these servers with; they judge
less (an error reply, a status) and are there because their figures can be compared with other people's.

Not modelled: open loops.  A closed loop asks less when answers are late, so the latencies of a slow
policy are those of the fewer requests that were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vmm.errors import ConfigError

Client = Literal["loadgen", "redis-benchmark", "wrk"]
BULK_BYTES = 100_000
"""As the reference measurements of QEMU's COLO have it."""
CONNECTIONS_MAX = 256
"""What the kv guest takes; the others take more."""


@dataclass(frozen=True)
class Workload:
    """One thing to ask a guest, again and again."""

    name: str
    guest: str
    about: str
    client: Client
    port: int
    ask: str
    """loadgen's mode, redis-benchmark's test, wrk's path."""
    connections: int = 1
    """Unless told otherwise."""
    argument: int = 64
    """loadgen's; redis-benchmark's pipeline."""
    payload_bytes: int = 0
    """Of one request and its answer, where the throughput of interest is bytes."""
    counts: bool = False
    """Its answers show whether a failover lost or repeated anything: what ``--kills`` uses."""


WORKLOADS = (
    Workload("echo", "kv", "64 bytes there and back, each time others", "loadgen", 7, "echo"),
    Workload(
        "inc",
        "kv",
        "a counter a connection; each answer must be one more than the last",
        "loadgen",
        7000,
        "inc",
        counts=True,
    ),
    Workload("http", "kv", "BusyBox httpd: GET of 1 KiB, a new connection each time", "loadgen", 80, "http"),
    Workload(
        "bulk-out",
        "kv",
        "answers of 100 kB, the guest sends",
        "loadgen",
        7000,
        "bulk",
        argument=BULK_BYTES,
        payload_bytes=BULK_BYTES,
    ),
    Workload(
        "bulk-in",
        "kv",
        "requests of 100 kB, the guest receives and compares them",
        "loadgen",
        7000,
        "take",
        argument=BULK_BYTES,
        payload_bytes=BULK_BYTES,
    ),
    Workload("time", "kv", "answers with the time in them, no two alike", "loadgen", 7000, "time"),
    Workload(
        "incr",
        "redis",
        "INCR of a key a connection; each answer must be one more than the last",
        "loadgen",
        6379,
        "incr",
        counts=True,
    ),
    Workload("get", "redis", "redis-benchmark, GET", "redis-benchmark", 6379, "get", 50, 1),
    Workload("set", "redis", "redis-benchmark, SET", "redis-benchmark", 6379, "set", 50, 1),
    Workload("get-16", "redis", "GET, pipelines of 16", "redis-benchmark", 6379, "get", 50, 16),
    Workload("set-16", "redis", "SET, pipelines of 16", "redis-benchmark", 6379, "set", 50, 16),
    Workload(
        "http",
        "nginx",
        "nginx: GET of 1 KiB, a new connection each time",
        "loadgen",
        80,
        "http",
        counts=True,
    ),
    Workload("wrk", "nginx", "GET of 1 KiB, connections are kept", "wrk", 80, "/1k.txt", 8),
)


def guests() -> list[str]:
    """Those that have workloads."""
    return list(dict.fromkeys(each.guest for each in WORKLOADS))


def choose(guest: str, names: Sequence[str] = ()) -> list[Workload]:
    """The workloads of ``guest`` that are asked for, all of them if none is; ConfigError with the choice."""
    known = {each.name: each for each in WORKLOADS if each.guest == guest}
    if not known:
        raise ConfigError(
            f"guest {guest}: there is no workload for it; there are some for {', '.join(guests())}"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"workload {unknown[0]!r}: guest {guest} has {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names or known)]


def counting(guest: str) -> Workload:
    """The workload during which nodes are killed."""
    return next(each for each in WORKLOADS if each.guest == guest and each.counts)
