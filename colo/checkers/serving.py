"""Eventually serves again: after a fault, a client is answered within so much virtual time.

"Eventually" alone cannot be refuted by a finite run (L. Lamport, "Proving the correctness of multiprocess
programs", IEEE TSE 3(2), 1977: a liveness property); with a limit in virtual time it can, and the limit is
as reproducible as the run.  Only operations that were *asked after* the fault count: an answer that was on
its way already says nothing about who is there now.

Two more things a run must show, or the answer is not RIGHT: that somebody asked after the fault, and, for
WRONG, that the record goes on until the limit.  Otherwise the verdict is UNKNOWN.
"""

from __future__ import annotations

from colo.checkers.history import History, Invoked, Returned, seconds
from colo.checkers.verdict import Verdict, right, unknown, wrong

JUDGE = "serves again"


def serves_again(
    history: History,
    *,
    after_ns: int,
    within_ns: int,
    every_client: bool = False,
    until_ns: int | None = None,
) -> Verdict:
    """Was an operation that was asked at or after ``after_ns`` answered until ``within_ns`` later?

    ``every_client``: one of each client that was seen before the fault or asks within the limit.
    ``until_ns`` is when the record ends, if that is later than its last event.
    """
    deadline_ns = after_ns + within_ns
    waiting = _clients(history, deadline_ns)
    last_ns = max(
        [event.at_ns for event in history.events] + ([] if until_ns is None else [until_ns]), default=0
    )
    first: dict[str, int] = {}
    for event in history.events:
        if isinstance(event, Returned) and event.at_ns <= deadline_ns:
            asked = history.operation(event.operation)
            if asked.at_ns >= after_ns:
                first.setdefault(asked.client, event.at_ns)
    missing = [client for client in waiting if client not in first]
    if first and not (every_client and missing):
        took_ns = max(first.values()) if every_client else min(first.values())
        return right(JUDGE, f"{(took_ns - after_ns) / 1e6:.3f} ms after the fault")
    if not any(isinstance(event, Invoked) and event.at_ns >= after_ns for event in history.events):
        return unknown(
            JUDGE, f"nobody asked after {after_ns / 1e9:.6f} s: let a client ask until it is answered"
        )
    if last_ns < deadline_ns:
        return unknown(JUDGE, f"the record ends at{seconds(last_ns)}, the limit is at{seconds(deadline_ns)}")
    who = f"clients {', '.join(missing)}" if every_client else "no client"
    verb = "were not answered" if every_client else "was answered"
    lines = tuple(history.line(event) for event in history.events if event.at_ns >= after_ns)
    return wrong(JUDGE, f"{who} {verb} within {within_ns / 1e9:g} s of the fault", lines)


def _clients(history: History, until_ns: int) -> list[str]:
    asking = (e.client for e in history.events if isinstance(e, Invoked) and e.at_ns <= until_ns)
    return list(dict.fromkeys(asking))
