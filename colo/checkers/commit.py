"""Output commit: nothing was heard that the survivor does not know to have said.

The condition is that of Elnozahy, Alvisi, Wang and Johnson ("A survey of rollback-recovery protocols", ACM
Computing Surveys 34(3), 2002, section 2.4): before output leaves a system, the state from which it was sent
must be one that any failure leaves recoverable.  From outside it reads: what a client heard, from whichever
node, is a prefix of what the survivor's guest has said to that client.  Not all of it: the last words may
still be on their way.

``heard`` and ``said`` hold one byte stream each by name: a console, a connection.  A stream that nobody
heard is no violation; one that the survivor knows nothing of is one as soon as a byte of it was heard.

Who compares frames instead of streams, because machines were replaced behind a running connection, uses
:class:`colo.checkers.wire.Wire`.
"""

from __future__ import annotations

from collections.abc import Mapping

from colo.checkers.verdict import Verdict, right, wrong

JUDGE = "output commit"
AROUND = 32
"""Bytes shown in front of a difference and behind it."""


def output_commit(heard: Mapping[str, bytes], said: Mapping[str, bytes]) -> Verdict:
    """WRONG with the first byte of each stream that was heard and is not the survivor's."""
    found = []
    for name, ears in heard.items():
        mouth = said.get(name, b"")
        if not mouth.startswith(ears):
            found.append(_difference(name, ears, mouth))
    if found:
        reason = f"{len(found)} of {len(heard)} streams: something was heard that the survivor never said"
        return wrong(JUDGE, reason, tuple(found))
    count = sum(map(len, heard.values()))
    return right(JUDGE, f"{count} bytes heard on {len(heard)} streams, all of them the survivor's")


def _difference(name: str, ears: bytes, mouth: bytes) -> str:
    at = next(
        (index for index, (one, other) in enumerate(zip(ears, mouth, strict=False)) if one != other),
        min(len(ears), len(mouth)),
    )
    start = max(at - AROUND, 0)
    heard, said = ears[start : at + AROUND], mouth[start : at + AROUND]
    end = " and ends there" if at == len(mouth) else ""
    return f"{name}: byte {at}: heard {heard!r}, the survivor said {said!r}{end}"
