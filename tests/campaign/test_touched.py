"""What a golden run touched: virtual addresses of a guest with page tables, against a walk for each."""

from __future__ import annotations

from collections.abc import Callable

import vmm.guest
from colo.campaign import golden
from colo.campaign.scenario import Input, Scenario
from colo.campaign.subject import Subject
from vmm.api import Pc

KERNEL_HALF = 1 << 63
SHELL = Scenario(
    guest="linux",
    inputs=(Input(at_ns=1_000_000, data=b"echo $((6 * 7))\n"),),
    span_ns=6_000_000,
    limit_ns=0,
    marks=3,
)


def test_virtual_pages_are_those_that_the_tables_map(guest: Callable[[str], vmm.guest.BuiltGuest]) -> None:
    guest("linux")
    with Subject(SHELL) as subject:
        run = golden.record(subject)
        translate = Pc(subject.machine).translate
        kernel = [page << 12 for page in run.virtual if page << 12 & KERNEL_HALF]
        # Its own half of the address space is the same in every process.
        found = {translate(address) for address in kernel}
    assert found == {page << 12 for page in run.pages}
    assert any(not page << 12 & KERNEL_HALF for page in run.virtual), "and the shell's"


def test_code_is_found_where_the_guest_computes(guest: Callable[[str], vmm.guest.BuiltGuest]) -> None:
    guest("linux")
    with Subject(SHELL) as subject:
        run = golden.record(subject)
    assert sum(count for _, count in run.executed) >= 1024
    halves = {bool(address & KERNEL_HALF) for address, _ in run.executed}
    assert halves == {False, True}
    assert [each.data for each in run.said if b"42" in each.data] == [b"42\r\n"]
