"""A plan without a file: every fault that a pair is to survive, alone and two at a time, at any moment.

Nodes are killed, stopped, slowed and restarted; frames on cables and bytes between the nodes are lost,
doubled, overtaken, damaged, late or cut off; the arbiter is slow or out of reach.  Half of the triggers are
times, half are steps of the protocol.  What no pair survives (an arbiter that tells both that they won) and
what replication does not protect from (wrong bits in the primary's machine) is left out.
"""

from __future__ import annotations

from typing import Any

TRIALS = 1_000_000
"""More than anybody runs: whoever explores says when it is enough."""
NODES, BOTH = ("pair-0", "pair-1"), ("both", "to", "from")
SHORT, LONG = "1_000_000..100_000_000", "1_000_000..700_000_000"
"""Less than a heartbeat's silence, and up to twice of it."""
PROBABILITIES = [0.1, 0.5, 1.0]
Table = dict[str, Any]


def plan(guest: str, policy: str, seed: int) -> Table:
    """Parts for :func:`colo.faults.plan.plan`."""
    return {
        "name": f"broad {guest} {policy}",
        "guest": guest,
        "seed": seed,
        "count": TRIALS,
        "faults_per_trial": [1, 2, 2],
        "world": {"policy": policy, "operations": 30, "pause_ns": 2_000_000, "again_ns": 50_000_000},
        "fault": [
            {**fault, "when": when, "weight": weight} for weight, fault in _faults() for when in _triggers()
        ],
    }


def _triggers() -> list[Table]:
    steps = [{"at": "step", "step": "*", "count": "*", "node": node} for node in NODES]
    return [{"at": "time", "ns": "*"}, {"at": "time", "ns": "*"}, *steps]


def _faults() -> list[tuple[int, Table]]:
    nodes: Table = {"kind": "node", "target": list(NODES)}
    cables: Table = {"kind": "link", "target": [*NODES, "client0"], "direction": list(BOTH)}
    wire: Table = {"kind": "link", "target": "pair-wire", "direction": list(BOTH)}
    some: Table = {"for_ns": SHORT, "probability": PROBABILITIES}
    late: Table = {"delay": {"ns": 3_000_000, "spread_ns": 2_000_000, "distribution": "uniform"}}
    return [
        (6, {**nodes, "effect": "kill"}),
        (4, {**nodes, "effect": "pause", "for_ns": LONG}),
        (1, {**nodes, "effect": "slow", "factor": [2.0, 5.0, 20.0], "for_ns": LONG}),
        (2, {**nodes, "effect": "restart", "for_ns": SHORT}),
        (3, {**cables, **some, "effect": ["drop", "duplicate", "reorder", "corrupt"]}),
        (1, {**cables, **some, **late, "effect": "delay"}),
        (1, {**cables, "effect": ["partition", "half-open"], "for_ns": LONG}),
        (1, {**wire, **some, "effect": ["drop", "corrupt"]}),
        (1, {**wire, **some, **late, "effect": "delay"}),
        (3, {**wire, "effect": ["partition", "half-open"], "for_ns": LONG}),
        (1, {"kind": "arbiter", "effect": "slow", "delay": {"ns": 50_000_000}, "for_ns": LONG}),
        (1, {"kind": "arbiter", "effect": "unreachable", "for_ns": LONG}),
    ]
