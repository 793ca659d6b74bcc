"""``colo up``: a protected guest, from one command: the words (what is done is in ``colo.cli.supervise``)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from colo.cli.machine import mebibytes
from colo.policy import POLICIES

if TYPE_CHECKING:
    from colo.cli import Parser

EPILOG = """\
what happens: the guest is taken from a snapshot of its boot (made the first time), a network namespace is
made for it, a primary and a secondary are started there, and the secondary is brought up to date.  From
then on whatever the guest says waits until the secondary could have said it.  When a node dies the other
one goes on by itself, and a new secondary is started.

clients reach the guest at --publish ports of this host; their connections live in the network's holder
process, which outlives both nodes.

examples:
  colo up redis --publish 6379         and then: redis-cli -p 6379
  colo up nginx --publish 8080:80      port 8080 here, 80 in the guest
  colo status; colo kill primary; colo stop
  colo up redis --explain              the same by hand: nothing is started
  colo up counter --network hub        without root and without user namespaces

exit status: 0 the guest ended, or Ctrl-C; 1 something failed; 2 usage.
"""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    up = commands.add_parser(
        "up",
        help="protect a guest with a pair of nodes",
        description="Start a guest on a primary, a secondary that follows it, and what they need.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = up.add_argument
    add("guest", metavar="GUEST", help="colo guest list")
    add("--name", metavar="NAME", help="of the pair; default: the guest's")
    add(
        "--publish",
        metavar="[HOST:]PORT[:GUEST-PORT]",
        action="append",
        default=[],
        help="let clients on this host reach the guest's TCP port; repeatable",
    )
    add("--network", choices=("namespace", "hub"), default="namespace", help="default namespace")
    add("--ram", metavar="MIB", type=mebibytes, help="default: what the guest wants")
    add("--append", metavar="STR", help="more words for the guest's kernel")
    add("--no-reprotect", action="store_true", help="after a failover, do not start a new secondary")
    _add_checkpoints(up.add_argument_group("checkpoints"))
    add("--trace", metavar="DIR", help="write every epoch and event there, a file a node")
    add("--explain", action="store_true", help="print the commands that do it by hand, and stop")
    add("--json", action="store_true", help="what happens as JSON objects, one a line")


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--policy",
        choices=tuple(POLICIES),
        help="when to make one; default periodic",
    )
    add("--checkpoint-delay", metavar="MS", help="between two")
    add("--heartbeat", metavar="MS", help="between two beats")
    add("--silence", metavar="MS", help="after which a node is lost")
    add("--dirty-source", choices=("auto", "kernel", "scan"), help="how changed pages are found")
    add("--compare", choices=("strict", "qemu"), help="whose rules policy colo compares by")
    add("--verify", action="store_true", help="compare whole machines after every checkpoint (slow)")
