"""tools/bench --only faults: its parts, the injector on a real QEMU, and the whole of it once."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmm.guest
from colo.campaign import golden
from colo.campaign.scenario import Scenario
from colo.campaign.subject import Subject
from colo.faults.model import AtTime, RegisterFault, Trial
from tools.benchmarks import faults_plans, faults_results
from tools.benchmarks.faults_alone import Booted, perform
from tools.benchmarks.qemu_injector import Heard
from tools.benchmarks.qemu_injector_gdb import SIGINT, SIGTRAP
from tools.benchmarks.qemu_injector_machine import started
from vmm.guest import BuiltGuest

ROOT = Path(__file__).resolve().parents[2]
TABLE_AT, FIRST_WORD = 0x400000, 4
"""Where the counter (guests/bare/counter.c) has its table."""


def test_a_rate_leaves_out_what_comes_before_the_first_trial_is_done() -> None:
    assert faults_results.rate([100.0, 101.0, 102.0]) == 60.0
    assert faults_results.rate([100.0]) is None


def test_equal_counts_pairs() -> None:
    assert faults_results.equal("abc", "abd") == "2 of 3"


def test_the_tables_have_what_was_found() -> None:
    row = faults_results.trials_row(
        "bits", "ours", ["masked", "sdc"], [1.0, 2.0], 0.5, equal_outcomes="2 of 2", equal_all="1 of 2"
    )
    speed = {"kind": "speed", "what": "redis", "how": "pair", "virtual_s": 1.0, "wall_s": 4.0, "answers": 8}
    head, line, blank, other_head, other = faults_results.table([row, speed])
    assert line.split() == ["bits", "ours", "2", "60.0", "0.50", "1", "1", "2", "of", "2", "1", "of", "2"]
    assert head.index("sdc") + len("sdc") == line.index("1  2 of 2") + 1
    assert blank == ""
    assert "virtual s/wall s" in other_head
    assert other.split()[-4:] == ["4.00", "0.25", "8", "2.00"]


def test_a_console_becomes_lines_in_their_order() -> None:
    heard = Heard.of(b"100\r\n200\r\nDO")
    assert [each.data for each in heard.said] == [b"100\r\n", b"200\r\n"]
    assert heard.tail == b"DO"


def test_the_plans_are_plans() -> None:
    scenario = faults_plans.redis(3).scenario
    assert isinstance(scenario, Scenario)
    assert faults_plans.BEGIN_NS < faults_plans.END_NS < scenario.span_ns
    assert scenario.inputs[0].data.decode() == faults_plans.TYPED
    assert faults_plans.counter(3).plan.head.count == 3
    assert faults_plans.kills("redis", "redis-counter", "colo", 3).plan.head.guest == "redis"


def test_a_booted_guest_comes_to_what_a_resumed_one_does() -> None:
    scenario = Scenario(guest="counter", append="mib=1 ms=1", span_ns=1_000_000, limit_ns=100_000, marks=2)
    with Subject(scenario) as subject:
        run = golden.record(subject)
    assert any(b"mib=1" in each.data for each in run.said)
    fault = RegisterFault(register="rip", mask=1 << 30, when=AtTime(ns=500_000))
    masked = RegisterFault(register="rax", mask=1 << 30, when=AtTime(ns=500_000))
    for one in (fault, masked):
        trial = Trial(seed=1, faults=(one,))
        reports = [perform(run, trial, kind) for kind in (Subject, Booted)]
        assert reports[0] == reports[1]
        assert "GUEST-READY" not in reports[0].difference


def test_a_bit_in_qemu_is_flipped_and_a_snapshot_has_the_old_one(
    tool: Callable[[str], str], tmp_path: Path
) -> None:
    tool("qemu-system-x86_64")

    async def look() -> None:
        async with started(vmm.guest.open("counter").build()) as qemu:
            gdb = qemu.gdb
            await qemu.make_store(tmp_path / "store.qcow2")
            await qemu.go_on()
            await qemu.expect("GUEST-READY counter")
            assert await qemu.stop() == SIGINT
            await qemu.save()
            address, old = await gdb.register("rip"), await gdb.register("rbx")
            word = await gdb.memory(TABLE_AT, FIRST_WORD)
            await gdb.set_register("rbx", old ^ 1 << 4)
            await gdb.physical(True)
            await gdb.set_memory(TABLE_AT, bytes((word[0] ^ 4, *word[1:])))
            await gdb.physical(False)
            assert await gdb.register("rbx") == old ^ 1 << 4
            assert (await gdb.memory(TABLE_AT, FIRST_WORD))[0] == word[0] ^ 4
            await qemu.load()
            assert await gdb.register("rbx") == old
            assert await gdb.memory(TABLE_AT, FIRST_WORD) == word
            assert await gdb.register("rip") == address
            # It is at work in a loop: it comes by here again.
            await gdb.set_breakpoint(address)
            await qemu.go_on()
            assert not await qemu.run_until(lambda: False, 10.0)
            assert await qemu.stop() == SIGTRAP
            assert await gdb.register("rip") == address

    asyncio.run(look())


RESET = bytes.fromhex("b0fee664f4")
"""mov al, 0xfe; out 0x64, al; hlt: the keyboard controller pulses the processor's reset line."""


def test_a_guest_that_has_ended_goes_on_from_its_snapshot(tool: Callable[[str], str], tmp_path: Path) -> None:
    tool("qemu-system-x86_64")

    async def look() -> None:
        async with started(vmm.guest.open("counter").build()) as qemu:
            await qemu.make_store(tmp_path / "store.qcow2")
            await qemu.go_on()
            await qemu.expect("GUEST-READY counter")
            assert await qemu.stop() == SIGINT
            await qemu.save()
            for _ in range(2):
                await qemu.gdb.set_memory(await qemu.gdb.register("rip"), RESET)
                await qemu.go_on()
                assert not await qemu.run_until(lambda: False, 10.0)
                assert await qemu.stop() != SIGINT, "it ended by itself"
                await qemu.reset()
                await qemu.load()
                await qemu.go_on()
                await qemu.expect("second 1")
                assert await qemu.stop() == SIGINT
                await qemu.load()

    asyncio.run(look())


@pytest.mark.long
def test_the_section_runs(
    tool: Callable[[str], str], guest: Callable[[str], BuiltGuest], tmp_path: Path
) -> None:
    tool("qemu-system-x86_64")
    guest("redis")
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tools.benchmarks", "--only", "faults", "--quick"]
    command += ["--json", str(out), "--csv", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "QUICK: not a measurement" in done.stdout
    document = json.loads(out.read_text())
    assert document["missing"] == {}
    assert {"cpu", "kernel", "load", "ours", "qemu"} <= set(document["host"])
    records = document["records"]["faults"]
    trials = [record for record in records if record["kind"] == "trials"]
    speeds = [record for record in records if record["kind"] == "speed"]
    assert {"ours, resume", "ours, boot", "QEMU, loadvm, clock", "QEMU, boot, clock"} <= {
        record["how"] for record in trials
    }
    ours = [record for record in trials if not record["how"].startswith("QEMU")]
    twice = [record for record in ours if "equal_all" in record]
    assert {record["what"] for record in ours} - {record["what"] for record in twice} == {"a kill, redis"}
    for record in twice:
        same, of, count = record["equal_all"].split()
        assert (same, of) == (count, "of"), "ours does the same thing twice, however it is started"
    assert len(speeds) == 2
    assert all(record["virtual_s"] > 0 for record in speeds)
    with (tmp_path / "faults.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(records)
