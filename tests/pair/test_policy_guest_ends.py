"""Under every policy: the guest switches itself off, is reset, crashes, is held and let go.

Both guests see all of it, or are made the same by the next checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.network.support import needs_root
from tests.pair.guests import lines, phoenix
from tests.pair.history import last, repeated, text
from tests.pair.nodes import Bench, Node, until
from tests.pair.service import POLICIES, Service, by_policy
from tests.pair.test_guest_ends import HELLO, both_ended


@by_policy
def test_a_guest_that_switches_itself_off(bench: Bench, policy: str) -> None:
    primary, secondary = bench.joined("--paused", *POLICIES[policy], guest=HELLO)
    primary.execute("cont")
    both_ended(primary, secondary, "guest-shutdown")
    assert primary.said == b"hello, world\r\n"
    assert secondary.said == b"", "its last words were the primary's to say"


@by_policy
def test_a_guest_that_crashes_where_a_reset_ends_the_run(bench: Bench, policy: str) -> None:
    guest = phoenix(bench.place, rounds=1)
    primary, secondary = bench.joined("--paused", "--no-reboot", *POLICIES[policy], guest=guest)
    primary.execute("cont")
    both_ended(primary, secondary, "guest-reset")
    assert lines(primary.said) == [1]
    assert secondary.said == b""


@by_policy
def test_a_guest_that_crashes_again_and_again(bench: Bench, policy: str) -> None:
    primary, secondary = bench.joined(*POLICIES[policy], guest=phoenix(bench.place))
    before = len(lines(primary.said))
    until(lambda: len(lines(primary.said)) >= before + 3)
    assert primary.migration == "colo"
    primary.kill()
    until(lambda: len(lines(secondary.said)) >= 2)
    assert set(lines(primary.said)) == set(lines(secondary.said)) == {1}
    assert secondary.status == "running"


@by_policy
def test_the_reset_button(bench: Bench, policy: str) -> None:
    primary, secondary = bench.joined(*POLICIES[policy])
    until(lambda: last(primary.said) >= 2)
    primary.execute("system_reset")
    until(lambda: primary.said.count(b"GUEST-READY") == 2)
    start = primary.said.rindex(b"GUEST-READY")
    until(lambda: last(primary.said[start:]) >= 2)
    assert primary.migration == "colo"
    primary.kill()
    until(lambda: last(secondary.said) > last(primary.said[start:]) + 2)
    repeated(primary.said[start:], secondary.said)


@by_policy
def test_a_guest_that_is_held_and_let_go(bench: Bench, policy: str) -> None:
    primary, secondary = bench.joined(*POLICIES[policy])
    for _ in range(2):
        until(lambda: last(primary.said) >= 2)
        primary.execute("stop")
        assert primary.status == "paused"
        stands_still(primary)
        primary.execute("cont")
        before = last(primary.said)
        until(lambda before=before: last(primary.said) > before + 2)  # type: ignore[misc]
    assert primary.migration == "colo"
    primary.kill()
    before = last(primary.said)
    until(lambda: last(secondary.said) > before + 2)
    repeated(primary.said, secondary.said)
    assert primary.said == text(last(primary.said) + 1)[: len(primary.said)]


def stands_still(primary: Node) -> None:
    """Through two checkpoints, which let go what it had said before."""
    for _ in range(2):
        primary.execute("x-colo-checkpoint")
    said = primary.said
    primary.execute("x-colo-checkpoint")
    assert primary.said == said, "a guest that is held speaks"


@needs_root
@by_policy
def test_linux_is_held_and_let_go(serve: Callable[[str], Service], policy: str) -> None:
    service = serve("redis")
    primary, _ = service.pair(*POLICIES[policy])
    service.clients(4)
    primary.execute("stop")
    stands_still(primary)
    replies = service.crowd.replies
    primary.execute("x-colo-checkpoint")
    assert service.crowd.replies == replies
    primary.execute("cont")
    service.crowd.go_on()
    primary.kill()
    service.is_whole()


@pytest.mark.long
@needs_root
@by_policy
def test_linux_is_reset(serve: Callable[[str], Service], policy: str) -> None:
    """It boots again under protection, and is served by the survivor."""
    service = serve("redis")
    primary, _ = service.pair(*POLICIES[policy])
    service.clients(1)
    primary.execute("system_reset")
    service.forget_clients()
    until(service.answers, "it does not come back")
    service.clients(4)
    primary.kill()
    service.is_whole()


@pytest.mark.long
@by_policy
def test_linux_switches_itself_off(bench: Bench, guest: object, tmp_path: Path, policy: str) -> None:
    import vmm

    guest("linux")  # type: ignore[operator]
    snapshot = tmp_path / "linux.snapshot"
    with vmm.start("linux") as pc:
        pc.expect("~ # ", within_s=10)
        pc.send("(sleep 2; poweroff) &\n")
        pc.expect("~ # ", within_s=10)
        pc.save(snapshot)
    words = ("linux", "--load", str(snapshot), "--net", "none")
    primary, secondary = bench.joined("--paused", *POLICIES[policy], guest=words)
    primary.execute("cont")
    both_ended(primary, secondary, "guest-shutdown")
    assert b"Power down" in primary.said or b"power off" in primary.said.lower()
    assert secondary.said == b""
