"""``colo run`` with the guests that come with the package: statuses, streams, endings, files."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from colo import cli
from tests.cli import logs
from tests.cli.command import COLO, LIMIT_S, ROOT, Done, colo, inside
from vmm.record import Mark, Record

COUNTER = ("run", "counter", "--append", "mib=1 ms=20")
Capture = pytest.CaptureFixture[str]
HASH_DIGITS = 32


def test_the_debug_exit_gives_the_status_that_qemu_gives() -> None:
    """hello writes 0 to port 0xF4: QEMU ends with 0 << 1 | 1."""
    done = colo("run", "hello", "--json")
    assert done.status == 1
    assert done.out.startswith(b"hello, world\r\n{")
    assert done.err == ""
    assert done.facts["reason"] == "debug-exit"
    assert done.facts["exit_code"] == 1


def test_the_last_line_is_one_object() -> None:
    done = colo("run", "bootsector", "--json", "--hash-every", "0.00003")
    assert done.status == 0
    facts = done.facts
    assert facts["reason"] == "poweroff"  # it halts with interrupts off
    assert facts["error"] is None
    assert facts["virtual_ns"] > 0
    assert facts["wall_s"] > 0
    assert facts["blocks"] > 0
    for key in ("state_hash", "engine_digest", "layout_digest"):
        assert len(facts[key]) == HASH_DIGITS
        int(facts[key], 16)
    hashes = facts["hashes"]
    assert [ns // 30_000 for ns, _ in hashes] == list(range(1, len(hashes) + 1))
    assert done.err == "".join(f"colo: state at {ns} ns: {digest}\n" for ns, digest in hashes)


def test_a_boot_sector_is_its_own_first_disk(capfd: Capture, tmp_path: Path) -> None:
    """The file is opened for reading only: what the guest writes stays in memory."""
    image = tmp_path / "boot.bin"
    image.write_bytes((ROOT / "guests/bare/bootsector.bin").read_bytes() + bytes(1024))
    image.chmod(0o444)
    done = inside(capfd, "run", "--boot-sector", image, "--ram", "2")
    assert done.status == 0
    assert done.out == b"hello from the boot sector\r\n"


def test_an_image_by_name_and_its_command_line(capfd: Capture) -> None:
    image = ROOT / "guests/bare/counter.elf"
    done = inside(
        capfd,
        "run",
        "--multiboot",
        image,
        "--append",
        "mib=1 ms=50",
        "--exit-on",
        "GUEST-READY",
        "--ram",
        "8",
    )
    assert done.status == 0
    assert b"GUEST-READY" in done.out


def test_a_text_that_never_comes_fails_at_the_limit(capfd: Capture) -> None:
    done = inside(capfd, *COUNTER, "--exit-on", "no such text", "--until-virtual", "0.5", "--json")
    assert done.status == 1
    assert done.facts["reason"] == "script"
    assert "expected 'no such text' on the console" in done.err
    assert done.err.count("\n") == 1


def test_a_text_that_the_guest_did_not_live_to_say(capfd: Capture) -> None:
    done = inside(capfd, "run", "bootsector", "--exit-on", "goodbye")
    assert done.status == 1
    assert "the machine ended (poweroff)" in done.err


def test_a_script_in_place_of_the_input(capfd: Capture, tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text("expect GUEST-READY counter\nexpect second 1\n")
    assert inside(capfd, *COUNTER, "--script", script).status == 0
    script.write_text("# never\nexpect second 9 [within 100ms]\n")
    done = inside(capfd, *COUNTER, "--script", script)
    assert done.status == 1
    assert f"{script}:2: expected 'second 9'" in done.err


@pytest.mark.parametrize(
    ("words", "because"),
    [
        (("run", "nobody"), "no guest 'nobody'"),
        (("run", "--kernel", "/nonexistent"), "/nonexistent: No such file"),
        (("run", "--multiboot", "/bin/sh"), "/bin/sh"),
        (("run", "--boot-sector", "/bin/sh"), "not a boot sector"),
        (("run", "--load", "/bin/sh"), "not a snapshot"),
        (("run", "--replay", "/bin/sh"), "not an input log"),
        (("run", "hello", "--script", "/nonexistent"), "/nonexistent"),
        (("run", "hello", "--disk", "/nonexistent"), "does not exist"),
    ],
)
def test_what_is_found_wrong_takes_one_line(capfd: Capture, words: tuple[str, ...], because: str) -> None:
    done = inside(capfd, *words, "--json")
    assert done.status == cli.EXIT_FAILED
    assert done.err.startswith("colo: ")
    assert done.err.count("\n") == 1
    assert because in done.err
    assert done.facts["exit_code"] == cli.EXIT_FAILED
    assert done.facts["error"] in done.err


def hashes_of(done: Done) -> list[list[object]]:
    found: list[list[object]] = done.facts["hashes"]
    return found


def test_a_run_in_pieces_is_the_run(tmp_path: Path) -> None:
    """Saved and loaded twice, in other processes, the machine passes through the same states."""
    ending = ("--json", "--hash-every", "0.1", "--until-virtual")
    whole = colo(*COUNTER, *ending, "0.4")
    first, second = tmp_path / "1", tmp_path / "2"
    pieces = [
        colo(*COUNTER, *ending, "0.15", "--save", first),
        colo("run", "--load", first, *ending, "0.3", "--save", second),
        colo("run", "--load", second, *ending, "0.4"),
    ]
    assert [piece.status for piece in (whole, *pieces)] == [0, 0, 0, 0]
    assert [each for piece in pieces for each in hashes_of(piece)] == hashes_of(whole)
    assert pieces[-1].facts["state_hash"] == whole.facts["state_hash"]
    assert b"".join(piece.said for piece in pieces) == whole.said
    late = colo("run", "--load", second, "--until-virtual", "0.2")
    assert late.status == 2
    assert "the snapshot is at 0.3 s" in late.err


def test_nothing_is_saved_of_a_run_that_failed(capfd: Capture, tmp_path: Path) -> None:
    inside(capfd, *COUNTER, "--exit-on", "never", "--until-virtual", "0.1", "--save", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_replayed_and_a_planted_departure_found(tmp_path: Path) -> None:
    log, planted = tmp_path / "run.log", tmp_path / "planted.log"
    recorded = colo(*COUNTER, "--record", log, "--mark-every", "0.2", "--until-virtual", "0.9", "--json")
    assert recorded.status == 0
    replayed = colo("run", "--replay", log, "--json")
    assert replayed.status == 0
    assert replayed.facts["state_hash"] == recorded.facts["state_hash"]
    assert replayed.facts["reason"] == "log-end"
    assert "the same run, bit for bit" in replayed.err

    def other_state(record: Record) -> Record:
        if isinstance(record, Mark) and record.ns >= 600_000_000:
            return Mark(record.ns, bytes(16))
        return record

    logs.rewrite(log, planted, other_state)
    departed = colo("run", "--replay", planted, "--json")
    assert departed.status == 1
    assert departed.facts["reason"] == "replay"
    assert "replay departs at 600000" in departed.err
    assert f"expected state hash {bytes(16).hex()}" in departed.err


def test_a_log_wants_the_images_that_it_was_recorded_with(capfd: Capture, tmp_path: Path) -> None:
    image, log = tmp_path / "guest.elf", tmp_path / "run.log"
    image.write_bytes((ROOT / "guests/bare/hello.elf").read_bytes())
    assert inside(capfd, "run", "--multiboot", image, "--record", log).status == 1  # as the guest says
    assert inside(capfd, "run", "--multiboot", image, "--append", "x", "--replay", log).err.startswith(
        f"colo: log {log}: recorded with nothing more, this run has append 'x'"
    )
    again = inside(capfd, "run", "hello", "--replay", log)
    assert "recorded with multiboot" not in again.err or "append" in again.err
    image.write_bytes(image.read_bytes() + b"\0")
    changed = inside(capfd, "run", "--replay", log)
    assert changed.status == 1
    assert f"recorded with multiboot {image}" in changed.err
    image.unlink()
    assert f"{image}: No such file" in inside(capfd, "run", "--replay", log).err
    kept = inside(capfd, "run", "hello", "--record", log)
    assert kept.status == 1
    assert "cannot be made: File exists" in kept.err


def test_interrupted_without_a_terminal(tmp_path: Path) -> None:
    """Even a guest that computes without a pause is stopped, nothing is saved, and the log is whole."""
    log, snapshot = tmp_path / "run.log", tmp_path / "x"
    words = [*COLO, "run", "counter", "--record", str(log), "--save", str(snapshot)]
    child = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert b"GUEST-READY" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 130
    assert err == b"colo: interrupted\n"
    assert not snapshot.exists()
    assert colo("run", "--replay", log).status == 0


def test_a_reader_that_leaves_early_does_no_harm() -> None:
    words = [*COLO, *COUNTER, "--until-virtual", "0.5"]
    child = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.wait(timeout=LIMIT_S) == 0
    assert child.stderr.read() == b""
    child.stderr.close()


def test_paced_time_follows_the_walls() -> None:
    started = time.monotonic()
    assert colo("run", "counter", "--append", "mib=1 ms=50", "--paced", "--until-virtual", "1.5").status == 0
    assert time.monotonic() - started > 1.5


def test_guests_are_listed_and_described(capfd: Capture) -> None:
    names = [each["name"] for each in json.loads(inside(capfd, "guest", "list", "--json").out)]
    assert {"linux", "redis", "hello", "counter", "bootsector"} <= set(names)
    assert b"built in" in inside(capfd, "guest", "list").out
    described = inside(capfd, "guest", "info", "hello")
    assert described.status == 0
    assert b"'hello, world'" in described.out
    built = inside(capfd, "guest", "build", "hello", "bootsector")
    assert built.out == b"hello: ready, 1 KiB\nbootsector: ready, 1 KiB\n"
    assert inside(capfd, "guest", "info", "nobody").status == 1


def test_the_layout_is_that_of_the_snapshot(capfd: Capture, tmp_path: Path) -> None:
    snapshot = tmp_path / "x"
    ran = inside(capfd, "run", "bootsector", "--save", snapshot, "--json")
    shown = inside(capfd, "layout", snapshot)
    assert shown.status == 0
    assert f"layout digest {ran.facts['layout_digest']}".encode() in shown.out
    assert b"\npit {" in shown.out
    assert inside(capfd, "layout", "--json").facts["engine_digest"] == ran.facts["engine_digest"]
