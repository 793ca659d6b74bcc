"""What the nodes of a pair wrote down: the files of ``colo node --trace``, one JSON object a line.

Times in them are CLOCK_MONOTONIC, as are ours, so that a step in another process can be counted from
our own ``kill``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tools.demo_lines import counted, milliseconds, size

TRIM_BYTES = 4 << 20
"""A pair that is left running writes a few MiB an hour; what is older than this is of no interest."""
NOTICED = ("require", "active")
"""Of ``failover`` events: the node has found that its peer is gone."""

Facts = dict[str, Any]


class Traces:
    """The directory that the nodes write to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def of(self, node: str, since_s: float) -> list[Facts]:
        path = self.directory / f"{node}.jsonl"
        text = path.read_bytes() if path.exists() else b""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
        events = [json.loads(line) for line in whole]
        return [each for each in events if each["monotonic_s"] >= since_s]

    def epochs(self, node: str, since_s: float) -> Facts:
        """What the checkpoints of a node cost, as medians."""
        found = [each for each in self.of(node, since_s) if each["event"] == "epoch"]
        if not found:
            return {"count": 0}
        values = {name: [each[name] for each in found] for name in ("pause_ms", "pages_sent", "bytes_sent")}
        return {
            "count": len(found),
            "first": found[0]["epoch"],
            "last": found[-1]["epoch"],
            "longest_pause_ms": max(values["pause_ms"]),
            **{name: median(each) for name, each in values.items()},
            "held_packets": median(each["held_packets"] for each in found),
        }

    def failover(self, node: str, since_s: float) -> Facts:
        """How a survivor came through, in ms since ``since_s``, as far as it says so."""
        facts: Facts = {}
        for each in self.of(node, since_s):
            after_ms = round((each["monotonic_s"] - since_s) * 1e3, 2)
            match each["event"]:
                case "failover" if each["status"] in NOTICED:
                    facts.setdefault("noticed_ms", after_ms)
                case "took-over":
                    facts |= {"serving_ms": after_ms, "epoch": each["epoch"]}
                    facts["inputs_repeated"] = each.get("inputs_repeated")
                case "pairing-ended":
                    facts |= {"alone_ms": after_ms, "reason": each["reason"], "ending": each["ending"]}
        return facts

    def trim(self) -> None:
        """Forget what is old; the nodes append, so they do not mind (open(2), O_APPEND)."""
        for path in self.directory.glob("*.jsonl"):
            if path.stat().st_size > TRIM_BYTES:
                os.truncate(path, 0)


def checkpoints(facts: Facts) -> str:
    """A phase's checkpoints, for a person."""
    if not facts["count"]:
        return "no checkpoint"
    pages = f"{counted(round(facts['pages_sent']), 'page')} → {size(facts['bytes_sent'])}"
    return (
        f"{counted(facts['count'], 'epoch')}: pause {milliseconds(facts['pause_ms'])}, {pages},"
        f" {counted(round(facts['held_packets']), 'frame')} held (medians);"
        f" longest pause {milliseconds(facts['longest_pause_ms'])}"
    )


def checkpoint(facts: Facts, rate: str) -> str:
    """The last checkpoint, as ``x-node`` has it, for a line that is replaced."""
    if facts.get("pause-ms") is None:
        return rate
    pages = f"{counted(facts['pages'], 'page')} → {size(facts['bytes'])}"
    held = f"{counted(facts['held-frames'], 'frame')} held"
    what = [f"epoch {facts['epoch']}", f"pause {milliseconds(facts['pause-ms'])}", pages, held, rate]
    return "   ".join(filter(None, what))


def survived(role: str, facts: Facts) -> Sequence[str]:
    """How the survivor came through, for a person; ``role`` is what it was."""
    noticed = f"noticed after {milliseconds(facts['noticed_ms'])}" if "noticed_ms" in facts else "noticed"
    reason = f" ({facts['reason']})" if facts.get("reason") else ""
    won = f", won generation {facts['generation']} at the arbiter" if facts.get("won") else ""
    if "serving_ms" in facts:
        end = f"announced the guest's address; serving {milliseconds(facts['serving_ms'])} after the kill"
    else:
        end = f"goes on alone {milliseconds(facts.get('alone_ms', 0.0))} after the kill"
    return [f"{role}: {noticed}{reason}{won},", f"{' ' * len(role)}  {end}"]
