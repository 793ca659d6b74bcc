"""The fixture ``pair``: protected when the test begins, from then on under its faults; judged on the wire."""

from __future__ import annotations

import pytest

import colo.sim.clients
import colo.testing.again
import colo.testing.subjects  # noqa: F401

pytest_plugins = ["pytester"]

BODY = """
import pytest
from colo.faults.model import AtTime, NodeFault
from colo.sim.clients import udp_echo

KILL = NodeFault(effect="kill", target="pair", when=AtTime(ns=20_000_000))

@pytest.mark.colo(guest="udpecho", policy="periodic", faults=[KILL], seeds=2)
def test_it(pair, wire, colo_seed):
    world = pair.world
    assert pair.is_protected and pair.options.policy == "periodic" and world.seed == colo_seed
    heard = []
    client = world.client(udp_echo(heard.append, operations=20))
    world.run_until(lambda: client.is_done, 10)
    assert heard == [*range(1, 21)]
    assert [node.alive for node in pair.nodes] == [False, True]
    wire.verdict().require()
"""


def test_a_pair_is_protected_and_meets_its_faults(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(BODY)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_its_world_is_the_same_for_the_same_seed(pytester: pytest.Pytester) -> None:
    """Without faults: a failure under faults would be made smaller, which takes its time."""
    body = BODY.replace("faults=[KILL], ", "").replace("[False, True]", "[True, True]")
    pytester.makepyfile(body + "    assert world.digest_line == ''\n")
    said = [pytester.runpytest_inprocess("--colo-runs", "1", "--colo-seed", "5").outlines for _ in range(2)]
    digests = [{line for line in lines if line.strip().startswith("seed 5: ")} for lines in said]
    assert len(digests[0]) == 1
    assert digests[0] == digests[1]
