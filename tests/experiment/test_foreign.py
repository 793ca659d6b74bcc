"""What redis-benchmark and wrk print, as it was recorded, and that they are there or are named."""

from __future__ import annotations

import asyncio
import shutil
import sys

import pytest

from colo.experiment import foreign
from colo.experiment.foreign import Foreign
from colo.experiment.outcome import Faults, Latency, Unusable
from colo.experiment.workloads import choose

REDIS = """
GET: rps=0.0 (overall: -nan) avg_msec=-nan (overall: -nan)
GET: rps=1800.0 (overall: 1002.0) avg_msec=32.442 (overall: 42.741)
====== GET ======
  3000 requests completed in 2.03 seconds
  50 parallel clients
  3 bytes payload
  keep alive: 1

Latency by percentile distribution:
0.000% <= 12.719 milliseconds (cumulative count 1)
50.000% <= 25.791 milliseconds (cumulative count 1503)
75.000% <= 34.719 milliseconds (cumulative count 2250)
87.500% <= 51.839 milliseconds (cumulative count 2626)
93.750% <= 57.279 milliseconds (cumulative count 2814)
98.438% <= 135.295 milliseconds (cumulative count 2955)
99.219% <= 135.551 milliseconds (cumulative count 2985)
99.902% <= 139.391 milliseconds (cumulative count 2999)
100.000% <= 139.519 milliseconds (cumulative count 3000)

Cumulative distribution of latencies:
0.000% <= 0.103 milliseconds (cumulative count 0)
89.000% <= 53.119 milliseconds (cumulative count 2670)
90.567% <= 54.111 milliseconds (cumulative count 2717)
100.000% <= 140.159 milliseconds (cumulative count 3000)

Summary:
  throughput summary: 1480.02 requests per second
  latency summary (msec):
          avg       min       p50       p95       p99       max
       32.300    12.712    25.791    60.383   135.423   139.519
"""
WRK = """Running 1s test @ http://10.77.0.2:80/1k.txt
  1 threads and 8 connections
  569 requests in 1.00s, 702.90KB read
colo answers=569 us=1000123 p50=13200 p90=21100 p99=39900 p999=39950 max=40000 wrong=3 errors=1 stuck=2
"""


def test_redis_benchmark() -> None:
    found = foreign.read_redis(REDIS)
    assert found.answers == 3000
    assert found.per_second == pytest.approx(1480.02)
    assert found.seconds == pytest.approx(2.027, abs=1e-3)
    assert found.latency == Latency(25.791, 54.111, 135.551, 139.391, 139.519)
    assert found.faults == Faults()


def test_error_replies_of_redis_count() -> None:
    assert foreign.read_redis("Error from server: OOM\n" * 2 + REDIS).faults == Faults(errors=2)


def test_wrk() -> None:
    found = foreign.read_wrk(WRK)
    assert (found.answers, found.seconds) == (569, 1.000123)
    assert found.latency == Latency(13.2, 21.1, 39.9, 39.95, 40.0)
    assert found.faults == Faults(wrong=3, errors=1, stuck=2)


@pytest.mark.parametrize("read", [foreign.read_redis, foreign.read_wrk])
def test_no_report(read: type) -> None:
    with pytest.raises(Unusable, match="Could not connect"):
        read("Could not connect to Redis at 10.77.0.2:6379")


def test_redis_benchmark_is_told_how_many_requests_fit() -> None:
    (workload,) = choose("redis", ["get-16"])
    client = Foreign(workload, "10.77.0.2", 50)

    def requests(seconds: float) -> int:
        words = client.command(seconds)
        return int(words[words.index("-n") + 1])

    assert requests(1.0) == 4 * 50 * 16  # nothing is known yet
    client.settle(foreign.read_redis(REDIS))
    assert requests(10.0) == 14_800
    assert requests(0.001) == 50 * 16  # each connection has one pipeline


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1s"), (2.6, "3s")])
def test_wrk_takes_whole_seconds(seconds: float, said: str) -> None:
    (workload,) = choose("nginx", ["wrk"])
    words = Foreign(workload, "10.77.0.2", 8).command(seconds)
    assert words[words.index("--duration") + 1] == said


def test_the_script_for_wrk_comes_with_the_package() -> None:
    assert "function done" in foreign.SCRIPT.read_text()


def test_who_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    (get,) = choose("redis", ["get"])
    (echo,) = choose("kv", ["echo"])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert foreign.missing(get) == "redis-benchmark is not installed: apt install redis-tools"
    assert foreign.missing(echo) is None


def test_a_client_that_fails_says_why() -> None:
    with pytest.raises(Unusable, match=r"status 3: so it goes"):
        asyncio.run(foreign.run([sys.executable, "-c", "print('so it goes'); raise SystemExit(3)"], 1.0))


def test_a_client_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "PATIENCE_MIN_S", 0.2)
    with pytest.raises(Unusable, match=r"no end within 0\.2 s"):
        asyncio.run(foreign.run([sys.executable, "-c", "import signal; signal.pause()"], 0.0))
