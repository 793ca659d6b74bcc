"""A run as a timeline: trace-event JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Follows the Trace Event Format (Google, 2016): an object with ``traceEvents``; ``ph`` says what an entry is:
``M`` names a process or a thread, ``i`` is an instant.  Times are microseconds with a fraction; here they are
virtual, from the start state.  The golden run and the trial are two processes, each port of the machine a
thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from colo.campaign.golden import GoldenRun
from colo.campaign.injection import Happened
from colo.campaign.outcome import shown
from colo.campaign.scenario import Input
from colo.campaign.subject import Said
from vmm.backends.net import Nowhere
from vmm.backends.pcap import PcapTap

GOLDEN, TRIAL = 1, 2
FAULTS, INPUTS, FIRST_PORT = 1, 2, 3
Event = dict[str, Any]


class Timeline:
    """Events of one trial beside its golden run."""

    def __init__(self, golden: GoldenRun) -> None:
        self._golden = golden
        self._ports = list(dict.fromkeys([*golden.scenario.observe, *(each.port for each in golden.said)]))
        self.events: list[Event] = []
        self._name(GOLDEN, "golden run")
        self._name(TRIAL, "trial")
        self._said(GOLDEN, golden.said)
        for number, mark in enumerate(golden.marks):
            arguments = {"state": mark.state.hex(), "instructions": mark.instructions}
            self._instant(GOLDEN, FAULTS, mark.ns, f"mark {number}", arguments)

    def add_trial(
        self, said: Sequence[Said], happened: Iterable[Happened], end_ns: int, outcome: str
    ) -> None:
        """What the trial did."""
        for each in happened:
            self._instant(TRIAL, FAULTS, each.ns, str(each), {"address": hex(each.address)})
        for port in dict.fromkeys(each.port for each in said):
            if port not in self._ports:
                self._ports.append(port)
                self._name_thread(TRIAL, port)
        self._said(TRIAL, said)
        for typed in self._golden.scenario.inputs:
            self._instant(TRIAL, INPUTS, typed.at_ns, f"{typed.port} {shown(typed.data)}", {})
        self._instant(TRIAL, FAULTS, end_ns, f"outcome: {outcome}", {})

    def add_parting(self, ns: int, what: str, differences: Sequence[str]) -> None:
        """Where it left the golden run."""
        self._instant(TRIAL, FAULTS, ns, what, {"differences": list(differences)})

    def write(self, path: Path) -> None:
        document = {"traceEvents": self.events, "displayTimeUnit": "ns"}
        path.write_text(json.dumps(document, indent=None), encoding="utf-8")

    def _said(self, process: int, said: Iterable[Said]) -> None:
        for each in said:
            arguments = {"bytes": len(each.data), "hex": each.data.hex()}
            self._instant(process, self._thread(each.port), each.ns, shown(each.data), arguments)

    def _thread(self, port: str) -> int:
        return FIRST_PORT + self._ports.index(port)

    def _name(self, process: int, name: str) -> None:
        self.events.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}})
        for thread, what in ((FAULTS, "faults and marks"), (INPUTS, "inputs")):
            self._name_row(process, thread, what)
        for port in self._ports:
            self._name_thread(process, port)

    def _name_thread(self, process: int, port: str) -> None:
        self._name_row(process, self._thread(port), f"output {port}")

    def _name_row(self, process: int, thread: int, what: str) -> None:
        entry = {"ph": "M", "pid": process, "tid": thread, "name": "thread_name", "args": {"name": what}}
        self.events.append(entry)

    def _instant(self, process: int, thread: int, ns: int, name: str, arguments: Event) -> None:
        entry = {"ph": "i", "s": "t", "pid": process, "tid": thread, "ts": ns / 1000, "name": name}
        self.events.append({**entry, "args": arguments} if arguments else entry)


def write_pcap(path: Path, inputs: Iterable[Input], said: Iterable[Said], epoch_s: int) -> int:
    """Every frame that passed a card, in the order of their times; how many there were.

    Time 0 is ``epoch_s``: the start state's, whose own time of day the guest may have another idea of.
    """
    frames = [(each.at_ns, each.data) for each in inputs if each.port.startswith("net")]
    frames += [(each.ns, each.data) for each in said if each.port.startswith("net")]
    now = 0
    tap = PcapTap(Nowhere(), str(path), lambda: now, epoch_s)
    try:
        for at_ns, frame in sorted(frames, key=lambda each: each[0]):
            now = at_ns
            tap.transmit(frame)
    finally:
        tap.close()
    return tap.frames
