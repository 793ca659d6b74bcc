"""``colo status|checkpoint|failover|kill|stop``: a pair that runs, from any other terminal.

What may be said, and what it means; what is done about it is in :mod:`colo.cli.pair`.  Only argparse is
imported here, so that a help is immediate.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colo.cli import Parser

COMMANDS = ("status", "checkpoint", "failover", "kill", "stop")

WHERE = """\
which pair: its name, or nothing if only one runs, or the path of one node's QMP socket.  Pairs are found
under /run/colo (root) or $XDG_RUNTIME_DIR/colo, or where $COLO_RUNTIME says, in a directory each.

exit status: 0 done; 1 not done, and one line says why; 2 the command line asks for what cannot be.
"""

STATUS_EPILOG = f"""\
columns: role is what the node is in the pair; "alone" is a node that runs unprotected.  epoch counts
checkpoints.  pause, pages and bytes are those of the last one: how long the guest stood still, what had
changed, what was sent.  held is output of the guest that waits until the secondary has the state it came
from.  peer is how long ago the other node was last heard.

{WHERE}
examples:
  colo status                          both nodes of the only pair
  colo status redis --json | jq '.nodes[].colo'
  colo status /run/colo/redis/a.qmp    one node
"""

CHECKPOINT_EPILOG = f"""\
A pair makes checkpoints by itself, as its policy says.  This asks for one more, and returns when the
secondary holds it: everything that the guest said before is then with its clients.

{WHERE}"""

FAILOVER_EPILOG = f"""\
The side that is told believes that its peer is dead and goes on alone: the secondary takes over (the
default), the primary leaves the pair.  A pair does this by itself when a node dies; by hand it is for an
arbiter that is set to manual, for exercise, and for taking a host out of service.

{WHERE}
examples:
  colo failover                        the secondary becomes the one that serves
  colo failover redis --side primary   the primary goes on without its secondary
"""

KILL_EPILOG = f"""\
SIGKILL, at once, with no chance to tidy up: the node dies as it would with its host.  This is what a pair
is for.  After "kill primary" the secondary goes on from the last checkpoint, open connections included,
and nothing that a client has been told is lost; after "kill secondary" clients notice nothing.  colo up
then starts a new secondary, unless it was told not to.

A node that runs alone has no peer to go on for it, and is not killed by this: colo stop.

{WHERE}
examples:
  colo kill primary
  colo kill secondary redis
"""

STOP_EPILOG = f"""\
The guest ends, on both nodes.  The supervisor is told, and waited for; where it has died before, its nodes
are told one by one and what is left of the pair is cleared away.

{WHERE}"""


def add_parsers(commands: argparse._SubParsersAction[Parser]) -> None:
    """The five commands, as part of ``colo``."""
    _add(commands, "status", "what the nodes of a pair are doing", STATUS_EPILOG)
    _add(commands, "checkpoint", "make a checkpoint now", CHECKPOINT_EPILOG)
    failover = _add(commands, "failover", "have one node go on without the other", FAILOVER_EPILOG)
    failover.add_argument(
        "--side",
        choices=("primary", "secondary"),
        default="secondary",
        help="who is told that its peer is dead; default: the secondary",
    )
    kill = _add(commands, "kill", "kill one node: the pair survives it", KILL_EPILOG, "side")
    kill.description = (
        "Kill one node of a pair with SIGKILL.  The guest survives: that is what a pair is for."
    )
    _add(commands, "stop", "end a pair and its guest", STOP_EPILOG)


def _add(
    commands: argparse._SubParsersAction[Parser], name: str, what: str, epilog: str, first: str | None = None
) -> Parser:
    parser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if first is not None:
        parser.add_argument(first, choices=("primary", "secondary"), help="which node dies")
    parser.add_argument("target", nargs="?", metavar="PAIR|NODE-SOCKET", help="default: the only pair")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
