"""``colo run`` with Linux: sessions, snapshots and logs as people use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import logs
from tests.cli.command import Done, colo
from vmm.guest import BuiltGuest
from vmm.record import Input, Record

SESSION = "send uname -srm\nexpect x86_64 [within 10s]\nsend poweroff\n"


@pytest.fixture(scope="module")
def booted(guest: Callable[[str], BuiltGuest], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A snapshot at the prompt, and what the run that made it said."""
    guest("linux")
    path = tmp_path_factory.mktemp("linux") / "booted.snapshot"
    done = colo(
        "run",
        "linux",
        "--exit-on",
        "~ # ",
        "--until-virtual",
        "30",
        "--net",
        "none",
        "--save",
        path,
        "--json",
    )
    assert done.status == 0, done.err
    return path, done


def session(tmp_path: Path) -> Path:
    script = tmp_path / "session.script"
    script.write_text(SESSION)
    return script


def test_a_snapshot_is_the_machine_that_was_saved(booted: tuple[Path, Done]) -> None:
    path, done = booted
    facts = done.facts
    assert facts["reason"] == "exit-on"
    assert b"GUEST-READY linux" in done.out
    at = facts["virtual_ns"]
    loaded = colo("run", "--load", path, "--until-virtual", f"{at / 1e9:.9f}", "--json")
    assert loaded.facts["virtual_ns"] == at
    assert loaded.facts["state_hash"] == facts["state_hash"]


def test_a_session_is_recorded_and_replayed(booted: tuple[Path, Done], tmp_path: Path) -> None:
    log, planted = tmp_path / "run.log", tmp_path / "planted.log"
    ran = colo(
        "run",
        "--load",
        booted[0],
        "--script",
        session(tmp_path),
        "--until-virtual",
        "60",
        "--record",
        log,
        "--json",
    )
    assert ran.status == 0, ran.err
    assert ran.facts["reason"] == "poweroff"
    assert b"Linux 6" in ran.out
    replayed = colo("run", "--replay", log, "--json")
    assert replayed.status == 0, replayed.err
    assert replayed.facts["state_hash"] == ran.facts["state_hash"]
    assert replayed.said == ran.said

    def mistype(record: Record) -> Record:
        if isinstance(record, Input) and b"uname" in record.payload:
            return Input(record.ns, record.port, record.payload.replace(b"uname", b"unamf"))
        return record

    logs.rewrite(log, planted, mistype)
    departed = colo("run", "--replay", planted)
    assert departed.status == 1
    assert "replay departs at" in departed.err


def test_bytes_from_a_pipe_go_in(booted: tuple[Path, Done]) -> None:
    done = colo(
        "run", "--load", booted[0], "--exit-on", "= 42", "--until-virtual", "60", stdin=b"echo = $((6*7))\n"
    )
    assert done.status == 0, done.err
    assert b"= 42" in done.out


def test_a_panic_ends_the_run_with_no_reboot(booted: tuple[Path, Done]) -> None:
    """The guest's command line has panic=-1: the kernel resets the machine at once."""
    crash = b"echo c > /proc/sysrq-trigger\n"
    done = colo("run", "--load", booted[0], "--no-reboot", "--until-virtual", "60", "--json", stdin=crash)
    assert done.status == 0, done.err
    assert done.facts["reason"] == "reset"
    assert b"Kernel panic" in done.out


def test_a_reset_of_a_loaded_machine_loads_what_was_named(booted: tuple[Path, Done]) -> None:
    """Without an image a reset could load nothing, and ends the run."""
    words = ("run", "linux", "--load", booted[0], "--exit-on", "GUEST-READY", "--until-virtual", "60")
    done = colo(*words, stdin=b"reboot -f\n")
    assert done.status == 0, done.err
    alone = colo("run", "--load", booted[0], "--until-virtual", "60", "--json", stdin=b"reboot -f\n")
    assert alone.facts["reason"] == "reset"
