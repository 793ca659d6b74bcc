"""What is more than a pair is there for."""

from __future__ import annotations

from colo.campaign.double import is_double
from colo.campaign.injection import Happened
from colo.faults.model import ArbiterFault, AtTime, Fault, LinkFault, NodeFault, Trial

NOW = AtTime(ns=0)
KILLS = tuple(NodeFault(when=NOW, target=f"pair-{n}", effect="kill") for n in range(2))
KILLED = tuple(Happened(0, 0, f"pair-{n}: node kill") for n in range(2))


def trial(*faults: Fault) -> Trial:
    return Trial(seed=1, faults=faults)


def test_both_nodes() -> None:
    assert is_double(trial(*KILLS), KILLED)


def test_a_node_and_what_decides_between_the_two() -> None:
    wire = LinkFault(when=NOW, target="pair-wire", effect="partition", for_ns=1000)
    assert is_double(trial(KILLS[0], wire), (KILLED[0], Happened(0, 0, "pair-wire: link partition")))
    arbiter = ArbiterFault(when=NOW, effect="unreachable", for_ns=1000)
    told = Happened(0, 0, "world: arbiter unreachable")
    assert is_double(trial(KILLS[0], arbiter), (KILLED[0], told))
    assert not is_double(trial(wire, arbiter), (Happened(0, 0, "pair-wire: link partition"), told)), "no node"


def test_what_came_to_nothing_does_not_count() -> None:
    assert not is_double(trial(*KILLS), KILLED[:1])
    missed = Happened(0, 0, KILLED[1].text, "it was dead already")
    assert not is_double(trial(*KILLS), (KILLED[0], missed))


def test_one_node_twice_is_one_failure() -> None:
    assert not is_double(trial(KILLS[0], KILLS[0]), KILLED[:1] * 2)


def test_a_card_s_cable_and_slowness_end_nobody_s_protection() -> None:
    cable = LinkFault(when=NOW, target="client0", effect="drop", for_ns=1000)
    assert not is_double(trial(KILLS[0], cable), (KILLED[0], Happened(0, 0, "client0: link drop")))
    slow = NodeFault(when=NOW, target="pair-1", effect="slow", factor=2.0, for_ns=1000)
    assert not is_double(trial(KILLS[0], slow), (KILLED[0], Happened(0, 0, "pair-1: node slow")))
