"""The guest switches itself off, is reset, or crashes: both nodes do what a machine does.

A guest that ended is nobody's to take over; one that was reset goes on, on whichever node.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pair.guests import lines, phoenix
from tests.pair.history import last, repeated
from tests.pair.nodes import Bench, Node, until

HELLO = ("hello", "--ram", "8")
"""Says one line and leaves by the debug exit port."""


def both_ended(primary: Node, secondary: Node, reason: str) -> None:
    for node in (primary, secondary):
        assert node.event("SHUTDOWN") == {"guest": True, "reason": reason}
        assert node.ended() == 0
        assert [each["ending"] for each in node.events("pairing-ended")] == ["shutdown"]
    assert not secondary.events("took-over")


def test_a_guest_that_switches_itself_off(bench: Bench) -> None:
    primary, secondary, _ = bench.pair("--paused", guest=HELLO)
    primary.execute("cont")
    both_ended(primary, secondary, "guest-shutdown")
    assert primary.said == b"hello, world\r\n"
    assert secondary.said == b"", "its last words were the primary's to say"


def test_a_guest_that_crashes_where_a_reset_ends_the_run(bench: Bench) -> None:
    guest = phoenix(bench.place, rounds=1)
    primary, secondary, _ = bench.pair("--paused", "--no-reboot", guest=guest)
    primary.execute("cont")
    both_ended(primary, secondary, "guest-reset")
    assert lines(primary.said) == [1]
    assert secondary.said == b""


def test_the_reset_button(bench: Bench) -> None:
    """The pair stays protected, and both stay alike."""
    primary, secondary, _ = bench.pair("--verify")
    until(lambda: last(primary.said) >= 2)
    primary.execute("system_reset")
    until(lambda: primary.said.count(b"GUEST-READY") == 2)
    start = primary.said.rindex(b"GUEST-READY")
    until(lambda: last(primary.said[start:]) >= 2)
    epoch = primary.epoch
    until(lambda: primary.epoch > epoch + 3)
    assert primary.migration == "colo"
    assert primary.facts["statistics"]["verified"] > epoch
    primary.kill()
    until(lambda: last(secondary.said) > last(primary.said[start:]) + 2)
    repeated(primary.said[start:], secondary.said)


def test_a_guest_that_crashes_is_reset_on_both_sides(bench: Bench) -> None:
    primary, secondary, _ = bench.pair("--verify", guest=phoenix(bench.place))
    before = len(lines(primary.said))
    until(lambda: len(lines(primary.said)) >= before + 3)
    assert primary.migration == "colo"
    assert primary.facts["statistics"]["verified"] >= 1
    primary.kill()
    until(lambda: len(lines(secondary.said)) >= 2)
    assert set(lines(primary.said)) == set(lines(secondary.said)) == {1}
    assert secondary.status == "running"


@pytest.mark.long
def test_linux_switches_itself_off(bench: Bench, guest: object, tmp_path: Path) -> None:
    import vmm

    guest("linux")  # type: ignore[operator]
    snapshot = tmp_path / "linux.snapshot"
    with vmm.start("linux") as pc:
        pc.expect("~ # ", within_s=10)
        pc.send("(sleep 2; poweroff) &\n")
        pc.expect("~ # ", within_s=10)
        pc.save(snapshot)
    words = ("linux", "--load", str(snapshot), "--net", "none")
    primary, secondary, _ = bench.pair("--paused", guest=words)
    primary.execute("cont")
    both_ended(primary, secondary, "guest-shutdown")
    assert b"Power down" in primary.said or b"power off" in primary.said.lower()
    assert secondary.said == b""
