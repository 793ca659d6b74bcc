"""Was it right?  Judges of what clients, wires and machines show after faults.

Each judge is a function that reads a record and answers with a :class:`~colo.checkers.verdict.Verdict`:
right, wrong with the reason, or unknown when its limit ended it first.  In a test::

    linearizable(history, Register()).require()

============================  =================================  =========================================
judge                         reads                              asks
============================  =================================  =========================================
:func:`linearizable`          a :class:`History` of clients      could one correct object, used by one client
                                                                 at a time, have answered so?
:func:`output_commit`         streams heard, and the survivor's  was anything heard that it never said?
:class:`Wire`                 captured TCP frames                does a guest, or the one that took its place,
                                                                 contradict itself on a connection?
:func:`equal`                 two machines, or snapshots         could a guest tell them apart?
:func:`serves_again`          a :class:`History`                 after the fault, is a request answered within
                                                                 so much virtual time?
============================  =================================  =========================================

They look at nothing that a client or an engineer outside could not see, and at no variable of the code
under test: a judge that knew the protocol would repeat its mistakes.

Linearizability is the correctness condition of Herlihy and Wing ("Linearizability: a correctness condition
for concurrent objects", TOPLAS 1990).  The well-kept checkers of it (Porcupine, Knossos) are not in Python,
hence a small one of ours; the tests compare it with an exhaustive one that is too slow for use.
"""

from __future__ import annotations

from colo.checkers.commit import output_commit
from colo.checkers.equality import equal
from colo.checkers.history import History
from colo.checkers.linearizability import linearizable
from colo.checkers.models import Counter, Model, RedisList, Register, Set
from colo.checkers.serving import serves_again
from colo.checkers.verdict import CheckFailed, Outcome, Verdict
from colo.checkers.wire import Wire

__all__ = [
    "CheckFailed",
    "Counter",
    "History",
    "Model",
    "Outcome",
    "RedisList",
    "Register",
    "Set",
    "Verdict",
    "Wire",
    "equal",
    "linearizable",
    "output_commit",
    "serves_again",
]
