"""Our client sees every planted fault, says which kind it is, and when each answer came."""

from __future__ import annotations

import asyncio
import shutil
import string
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from colo.experiment import loadgen
from colo.experiment.loadgen import Load, Records
from colo.experiment.outcome import Faults, Unusable
from colo.experiment.workloads import Workload
from tests.experiment import servers
from tests.experiment.servers import Script, Whole, serving

LIMIT_S, LOOK_S = 60.0, 0.01
LETTERS = (string.ascii_lowercase * 2600)[:65536] * 2
"""The pattern of kvd.c, which starts again after 64 KiB, twice."""


@pytest.fixture(autouse=True)
def _compiler(tool: Callable[[str], str]) -> None:
    tool("gcc")


def workload(mode: str, port: int, argument: int = 64) -> Workload:
    return Workload("x", "x", "", "loadgen", port, mode, argument=argument)


async def _load(words: Sequence[str], raw: Path, enough: Callable[[Records], bool]) -> tuple[Records, Faults]:
    async with Load(words, raw) as load:
        async with asyncio.timeout(LIMIT_S):
            while not enough(loadgen.read(raw)):
                await asyncio.sleep(LOOK_S)
        return await load.end()


def two_hundred(records: Records) -> bool:
    return len(records) >= 200


def load(
    tmp_path: Path,
    mode: str,
    script: Script,
    whole: Whole = servers.a_line,
    *,
    argument: int = 64,
    connections: int = 1,
    once: bool = False,
    enough: Callable[[Records], bool] = two_hundred,
) -> tuple[Records, Faults]:
    """What the client says of a server that follows ``script``."""
    raw = tmp_path / "answers"
    with serving(script, whole, once=once) as port:
        words = loadgen.command(workload(mode, port, argument), "127.0.0.1", connections, LIMIT_S, raw)
        return asyncio.run(_load(words, raw, enough))


def counting(plan: Callable[[int], int]) -> Script:
    """INC, the value of each answer by ``plan``."""

    def answer(number: int, request: bytes) -> bytes:
        return b"VAL %s %d\n" % (request.split()[1], plan(number))

    return answer


def page(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


BODY = LETTERS[:1023].encode() + b"\n"


def test_right_counters_are_right(tmp_path: Path) -> None:
    records, faults = load(tmp_path, "inc", counting(lambda number: number), connections=3)
    assert faults == Faults()
    assert set(records["connection"]) == {0, 1, 2}
    assert not records["verdict"].any()
    assert (records["latency_ns"] > 0).all()
    assert list(records["at_ns"]) == sorted(records["at_ns"])


@pytest.mark.parametrize(
    ("plan", "faults"),
    [
        (lambda number: number - (number >= 10), Faults(lost=1)),  # an acknowledged one was forgotten
        (lambda number: number - 5 * (number >= 10), Faults(lost=1)),
        (lambda number: number + (number >= 10), Faults(repeated=1)),  # one was done twice
        (lambda number: 7 if number == 10 else number, Faults(lost=1, repeated=1)),
    ],
)
def test_counters_that_jump(tmp_path: Path, plan: Callable[[int], int], faults: Faults) -> None:
    assert load(tmp_path, "inc", counting(plan))[1] == faults
    assert load(tmp_path, "incr", lambda number, _: b":%d\r\n" % plan(number), servers.resp)[1] == faults


def test_a_clock_may_jump_but_not_back(tmp_path: Path) -> None:
    assert load(tmp_path, "time", lambda number, _: b"T %d\n" % (number * number))[1] == Faults()
    back = load(tmp_path, "time", lambda number, _: b"T %d\n" % (number - 4 * (number >= 10)))
    assert back[1] == Faults(lost=1)


def test_answers_of_another_kind(tmp_path: Path) -> None:
    def answer(number: int, request: bytes) -> bytes:
        return b"ERR\n" if number == 5 else b"VAL %s %d\n" % (request.split()[1], number)

    assert load(tmp_path, "inc", answer)[1] == Faults(wrong=1, repeated=1)  # and the next one is two more


def test_an_echo_is_that_of_this_request(tmp_path: Path) -> None:
    first: list[bytes] = []

    def late(number: int, request: bytes) -> bytes:
        first.append(request)
        return first[-2] if number == 9 else request

    whole = servers.so_many(64)
    assert load(tmp_path, "echo", lambda _, request: request, whole)[1] == Faults()
    assert load(tmp_path, "echo", late, whole)[1] == Faults(wrong=1)
    assert len(set(first)) == len(first)


def test_more_than_was_asked_for(tmp_path: Path) -> None:
    def twice(number: int, request: bytes) -> bytes:
        answer = b"T %d\n" % number
        return answer + answer if number == 9 else answer

    assert load(tmp_path, "time", twice)[1] == Faults(repeated=1)
    surplus = load(tmp_path, "echo", lambda n, data: data + b"!" * (n == 3), servers.so_many(64))
    assert surplus[1] == Faults(repeated=1)


@pytest.mark.parametrize("place", [0, 1, 65535, 65536, 99999])
def test_one_letter_of_a_bulk_answer(tmp_path: Path, place: int) -> None:
    right = LETTERS[:100_000].encode()
    other = right[:place] + b"!" + right[place + 1 :]

    def answer(number: int, _: bytes) -> bytes:
        return (other if number == 5 else right) + b"\n"

    assert load(tmp_path, "bulk", answer, argument=100_000)[1] == Faults(wrong=1)


def test_what_the_guest_took_is_judged_by_it(tmp_path: Path) -> None:
    size = 70_000
    asked = b"TAKE %d\n" % size
    seen: list[bytes] = []

    def answer(number: int, request: bytes) -> bytes:
        seen.append(request)
        return b"TOOK %d %d\n" % (size - (number == 4), number == 7)

    _, faults = load(tmp_path, "take", answer, servers.so_many(len(asked) + size), argument=size)
    assert faults == Faults(wrong=2)
    assert set(seen) == {asked + LETTERS[:size].encode()}


@pytest.mark.parametrize(
    "other",
    [
        page(BODY[:-2] + b"!\n"),
        page(BODY[:-1]),
        page(BODY + b"\n"),
        page(BODY).replace(b"200 OK", b"500 Oh"),
        b"HTTP/1.0 200 OK\r\n",
    ],
)
def test_a_page_is_what_was_asked_for(tmp_path: Path, other: bytes) -> None:
    served = [0]

    def answer(_: int, __: bytes) -> bytes:
        served[0] += 1
        return other if served[0] == 20 else page(BODY)

    assert load(tmp_path, "http", answer, servers.http, once=True)[1] == Faults(wrong=1)


def test_a_connection_that_ends_is_counted_and_the_load_goes_on(tmp_path: Path) -> None:
    slots: list[bytes] = []

    def answer(number: int, request: bytes) -> bytes:
        slots.append(request)
        return b"" if request == slots[0] and number == 20 else counting(lambda each: each)(number, request)

    records, faults = load(tmp_path, "inc", answer, connections=2)
    assert faults == Faults(resets=1)
    assert len(records) >= 200


def test_a_connection_that_is_not_answered_is_stuck(tmp_path: Path) -> None:
    slots: list[bytes] = []

    def answer(number: int, request: bytes) -> bytes | None:
        slots.append(request)
        if request == slots[0] and number == 20:
            return None
        return counting(lambda each: each)(number, request)

    def later(records: Records) -> bool:
        """Than a second after the last answer on one of the two connections."""
        last = [records["at_ns"][records["connection"] == each] for each in (0, 1)]
        return all(map(len, last)) and abs(int(last[0][-1]) - int(last[1][-1])) > 1_100_000_000

    _, faults = load(tmp_path, "inc", answer, connections=2, enough=later)
    assert faults == Faults(stuck=1)


def test_a_load_that_cannot_begin_says_so(tmp_path: Path) -> None:
    raw = tmp_path / "answers"
    with serving(lambda _, __: b"") as port:
        words = loadgen.command(workload("inc", port), "127.0.0.1", 1, 5.0, raw)
        with pytest.raises(Unusable, match="end of file"):
            asyncio.run(_load(words, raw, two_hundred))


def test_only_what_came_in_time_counts(tmp_path: Path) -> None:
    records, faults = load(tmp_path, "time", lambda number, _: b"T %d\n" % number)
    at_s = records["at_ns"] / 1e9
    begin_s, end_s = at_s[9:11].mean(), at_s[19:21].mean()  # seconds in a float do not tell a nanosecond
    found = loadgen.between(records, begin_s, end_s, faults)
    assert found.answers == len(found.samples_ns) == 10
    assert found.seconds == pytest.approx(end_s - begin_s)
    assert found.per_second == pytest.approx(10 / (end_s - begin_s))
    assert found.latency.max_ms == pytest.approx(records["latency_ns"][10:20].max() / 1e6, abs=1e-4)


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLO_CACHE", str(tmp_path))
    first = loadgen.program()
    made = first.stat().st_mtime_ns
    assert first.is_relative_to(tmp_path)
    assert loadgen.program() == first
    assert first.stat().st_mtime_ns == made
    assert [each.name for each in first.parent.iterdir()] == [first.name]


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Unusable, match="apt install gcc libc6-dev"):
        loadgen.program()


@pytest.mark.parametrize("words", [[], ["h", "1", "walk", "1", "1"], ["127.0.0.1", "1", "echo", "0", "1"]])
def test_words_that_make_no_load(words: list[str]) -> None:
    done = subprocess.run([loadgen.program(), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
