"""The plugin as a user's tests see it: pytest run by pytest, in a directory of its own."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

# An inner run forgets what it imported, and some modules can be imported only once in a process.
import colo.sim.clients
import colo.testing.again
import colo.testing.subjects  # noqa: F401

pytest_plugins = ["pytester"]

COUNTER = '@pytest.mark.colo(guest="counter")\n'
FAILS = "import pytest\n" + COUNTER + "def test_late(machine):\n    machine.expect('second 9', within_s=2)\n"


def section(result: pytest.RunResult) -> list[str]:
    """The plugin's lines about the first test that failed."""
    lines = result.outlines
    start = next(index for index, line in enumerate(lines) if line.strip("- ") == "colo")
    end = next(index for index in range(start, len(lines)) if lines[index].startswith("again: "))
    return lines[start + 1 : end + 1]


def artifacts(pytester: pytest.Pytester, name: str) -> Path:
    return pytester.path / ".pytest_cache" / "colo" / name


def test_every_test_has_a_machine_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n"
        "hashes = []\n"
        '@pytest.mark.colo(guest="counter", seeds=2)\n'
        "def test_goes_on_from_the_same_state(machine):\n"
        "    hashes.append(machine.hash)\n"
        "    machine.expect('second 1 rounds 100', within_s=2)\n"
        "    assert hashes == hashes[:1] * len(hashes)\n"
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_a_marker_further_away_is_completed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n"
        'pytestmark = pytest.mark.colo(guest="redis", seeds=[5, 9])\n'
        + COUNTER
        + "class TestIt:\n"
        + "    def test_both(self, machine, colo_seed):\n"
        + "        assert colo_seed in (5, 9) and machine.expect('second 1 rounds 100', within_s=2)\n"
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("marker", "options", "seeds"),
    [
        ("", "", [0]),
        ("seeds=3", "", [0, 1, 2]),
        ("seeds=[7, 4]", "", [7, 4]),
        ("seeds=3", "--colo-seed 40", [40, 41, 42]),
        ("seeds=[7, 4]", "--colo-seed 40", [40, 41]),
        ("seeds=[7, 4]", "--colo-runs 3", [7, 8, 9]),
        ("seeds=3", "--colo-seed 41 --colo-runs 1", [41]),
    ],
)
def test_seeds(marker: str, options: str, seeds: list[int], pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.colo({marker})\ndef test_it(colo_seed): print('has', colo_seed, '.')\n"
    )
    result = pytester.runpytest_inprocess("-s", *options.split())
    said = [int(line.split("has ")[1].split()[0]) for line in result.outlines if "has " in line]
    assert said == seeds
    names = pytester.runpytest_inprocess("--collect-only", "-q", *options.split()).outlines[: len(seeds)]
    assert names == [f"test_seeds.py::test_it[seed{seed}]" for seed in seeds]


def test_a_random_seed_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(colo_seed): print('has', colo_seed, 'here')")
    said = [pytester.runpytest_inprocess("-s", "--colo-seed", "random") for _ in range(2)]
    seeds = [result.stdout.re_match_lines_random([r"colo: first seed \d+"]) or result for result in said]
    headers = [next(line for line in each.outlines if "first seed" in line) for each in seeds]
    assert headers[0] != headers[1]
    seed = headers[0].split()[-1]
    said[0].stdout.fnmatch_lines([f"*has {seed} here*"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("guset='counter'", "unknown keyword guset: did you mean guest?"),
        ("'counter'", "'counter' has no name: expected keywords"),
        ("seeds=0", "seeds = 0: expected how many"),
        ("seeds=[]", "seeds = []: expected how many"),
        ("seeds=[1, -1]", "seeds = [[]1, -1]: expected how many"),
        ("policy='lockstop'", "policy = 'lockstop': did you mean lockstep?"),
        ("guest=3", "guest = 3: expected a name"),
    ],
)
def test_mistakes_in_a_marker_are_named(marker: str, message: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.colo({marker})\ndef test_it(machine): pass\n")
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    escaped = message if message.startswith("seeds = [[]") else message.replace("[", "[[]")
    result.stdout.fnmatch_lines([f"*test_it*@pytest.mark.colo: {escaped}*"])


def test_options_that_make_no_sense(pytester: pytest.Pytester) -> None:
    for option, value in (("--colo-seed", "x"), ("--colo-runs", "0")):
        result = pytester.runpytest_inprocess(option, value)
        result.stderr.fnmatch_lines([f"*{value!r} is no whole number from * on*"])


def test_a_failure_says_what_happened_and_how_to_see_it_again(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAILS)
    told = section(pytester.runpytest_inprocess("--colo-seed", "3"))
    assert told[0] == "seed 3, guest counter"
    assert told[1].startswith("console at 2.00")
    assert told[-3].startswith("  second 2 rounds 200") or "second 1" in told[-3]
    directory = artifacts(pytester, "test_it.py-test_late-seed3")
    assert told[-2] == f"files in {directory}: console.txt, replay.txt, trial.toml"
    assert "second 1 rounds 100" in (directory / "console.txt").read_text()
    command = told[-1].removeprefix("again: ")
    assert (directory / "replay.txt").read_text() == command + "\n"
    again = section(pytester.runpytest_inprocess(*shlex.split(command)[1:]))
    assert again == told, "the same run, to the nanosecond"


def test_files_go_where_they_are_wanted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAILS)
    pytester.runpytest_inprocess("--colo-artifacts", "here/there").assert_outcomes(failed=1)
    assert (pytester.path / "here/there/test_it.py-test_late-seed0/console.txt").exists()
    assert not artifacts(pytester, "").exists()


def test_files_that_cannot_be_written_hide_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAILS)
    (pytester.path / "taken").write_text("")
    result = pytester.runpytest_inprocess("--colo-artifacts", "taken/below")
    result.assert_outcomes(failed=1)
    told = section(result)
    assert told[0].startswith("seed 0; nothing more could be written: ")
    assert "Not a directory" in told[0]
    result.stdout.fnmatch_lines(["*ScriptError: expected 'second 9'*"])


def test_what_passes_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAILS.replace("second 9", "second 1"))
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    assert not artifacts(pytester, "").exists()


def test_a_world_tells_its_events(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="from colo.sim.clients import udp_echo\n"
        "def test_echo(world, history):\n"
        "    history.invoke('client0', 'echo', 1, at_ns=5)\n"
        "    world.machine('udpecho')\n"
        "    heard = []\n"
        "    client = world.client(udp_echo(heard.append, operations=3))\n"
        "    world.run_until(lambda: client.is_done, 2)\n"
        "    assert heard == [1, 2]\n"
    )
    told = section(pytester.runpytest_inprocess("--colo-seed", "6"))
    assert told[0] == "seed 6"
    assert any(line.endswith("client0 echo 3") for line in told)
    assert "0.000000 s client0 asks echo(1)" in [line.strip() for line in told]
    assert "digest:" in told
    directory = artifacts(pytester, "test_it.py-test_echo-seed6")
    events = (directory / "events.log").read_text().splitlines()
    assert any(f", {len(events)} events, digest " in line for line in told)
    assert (directory / "history.jsonl").read_text().count("\n") == 1
    timeline = json.loads((directory / "timeline.json").read_text())["traceEvents"]
    rows = {event["tid"]: event["args"]["name"] for event in timeline if event["ph"] == "M"}
    instants = [event for event in timeline if event["ph"] == "i"]
    again = [f"{round(e['ts'] * 1000)} {rows[e['tid']]} {e['name']}" for e in instants]
    assert [" ".join(line.split()[:3]) for line in events] == again
    capture = (directory / "switch.pcap").read_bytes()
    assert capture.count(b"client0 3") == 2, "there and back, each once"


def test_a_guest_that_cannot_be_built_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host whose apt-get reaches nobody."""
    apt = pytester.mkdir("bin") / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Could not resolve the mirror' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("COLO_CACHE", str(pytester.path / "cache"))
    (pytester.mkdir("mine") / "guest.toml").write_text('start = "x"\n')
    pytester.makepyfile('import pytest\n@pytest.mark.colo(guest="mine")\ndef test_it(machine): pass\n')
    result = pytester.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*apt-get update failed:*", "*Could not resolve the mirror*"])


def test_a_fixture_without_a_guest_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(machine): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*the fixture machine needs a guest: @pytest.mark.colo(guest="linux")*'])


def test_other_tests_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass\ndef test_other(): assert 0")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*- colo -*")
