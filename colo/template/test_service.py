"""Does the service count right, alone, and when the machine that it runs on dies?

``pytest`` runs this.  More runs: ``pytest --colo-runs 50``; other ones: ``pytest --colo-seed random``.
"""

import pytest
from client import counting

from colo.checkers import Counter, History, Wire, linearizable, serves_again
from colo.sim.pair import SimPair
from vmm.api import Pc


@pytest.mark.colo(guest="guest")
def test_it_counts(machine: Pc) -> None:
    """One machine, and its own shell as the client."""
    ask = "printf 'incr visits\\nincr visits\\nincr others\\n' | nc 127.0.0.1 7000"
    assert machine.command(ask).split() == ["1", "2", "1"]


@pytest.mark.colo(guest="guest", policy="colo", faults="plan.toml", seeds=2)
def test_it_survives(pair: SimPair, history: History, wire: Wire) -> None:
    """Two machines that COLO makes one, two clients, and the faults of the plan."""
    world = pair.world
    began_ns = world.now_ns
    for _ in range(2):
        world.client(counting(history))
    world.run_for(1.5)
    assert not pair.nodes[0].alive, "the plan kills it"
    plan_over_ns = began_ns + 250_000_000
    serves_again(history, after_ns=plan_over_ns, within_ns=1_000_000_000, every_client=True).require()
    linearizable(history, Counter()).require()
    wire.verdict().require()
