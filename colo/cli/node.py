"""``colo node``: the words for one node of a pair, and the process that comes of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from colo.cli.machine import add_board, add_boot, launch_options
from colo.policy import POLICIES

if TYPE_CHECKING:
    from colo.cli import Parser
    from colo.node.process import NodeOptions

EPILOG = """\
what 'colo up redis' does, by hand and on two hosts:

  on the host that will follow:
    colo node redis --load booted.snapshot --net tap=tap0 --pair p --name b --qmp b.qmp \\
        --arbiter file:/mnt/arbiter --certs certs --incoming tcp:192.0.2.2:7000
  on the host that serves:
    colo node redis --load booted.snapshot --net tap=tap0 --pair p --name a --qmp a.qmp \\
        --arbiter file:/mnt/arbiter --certs certs
  and then, on the socket a.qmp (socat, qmp-shell, any QMP client):
    {"execute": "qmp_capabilities"}
    {"execute": "migrate-set-capabilities",
     "arguments": {"capabilities": [{"capability": "x-colo", "state": true}]}}
    {"execute": "migrate", "arguments": {"uri": "tcp:192.0.2.2:7000"}}

  MIGRATION with status "colo" says that the pair is formed.  When a node dies the other one goes on by
  itself after it won at the arbiter; with --arbiter manual it waits for x-colo-lost-heartbeat.

both nodes are given the same machine: guest or images, RAM, disks, cards.  The handshake refuses
another build, engine, device layout, RAM size or configuration, and says which.

exit status: 0 the guest ended or the node was told to quit; 1 something failed; 2 usage.
"""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    node = commands.add_parser(
        "node",
        help="run one node of a pair",
        description="Run one machine with a control socket: alone, as a primary, or as a secondary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_boot(node.add_argument_group("what to boot"))
    add_board(node.add_argument_group("the machine"))
    _add_pair(node.add_argument_group("the pair"))
    _add_checkpoints(node.add_argument_group("checkpoints (and at run time: migrate-set-parameters)"))
    _add_process(node.add_argument_group("the process"))


def _add_pair(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--pair", metavar="NAME", default="pair", help="what both nodes and the arbiter call the pair")
    add("--name", metavar="NAME", default="node", help="of this node; no other one of the pair has it")
    add(
        "--incoming",
        metavar="ADDRESS",
        help="be a secondary: listen at unix:PATH or tcp:HOST:PORT; 'defer' waits for migrate-incoming",
    )
    add(
        "--arbiter",
        metavar="WHICH",
        default="manual",
        help="who decides between two nodes that lost each other: file:DIRECTORY that both see, or manual",
    )
    add("--certs", metavar="DIR", help="certificates for tcp: addresses (colo certs)")
    add("--generation", metavar="N", type=int, default=0, help="of the pair; the survivor of N is N + 1")


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--policy",
        metavar="NAME",
        choices=tuple(POLICIES),
        default="periodic",
        help=f"when to make one, and what is said before: {', '.join(POLICIES)}; default periodic",
    )
    add(
        "--checkpoint-delay",
        metavar="MS",
        type=positive,
        help="between two; default the policy's own",
    )
    add("--heartbeat", metavar="MS", type=positive, default=50, help="between two beats; default 50")
    add("--silence", metavar="MS", type=positive, default=300, help="after which the peer is lost")
    add("--pause-budget", metavar="MS", type=positive, default=5, help="for the end of a synchronisation")
    add(
        "--dirty-source",
        choices=("auto", "kernel", "scan"),
        default="auto",
        help="how changed pages are found; auto: by the kernel where it can",
    )
    add(
        "--compare",
        choices=("strict", "qemu"),
        default="strict",
        help="whose rules policy colo compares by; qemu: those of QEMU's colo-compare, safe or not",
    )
    add("--verify", action="store_true", help="compare both whole machines after every checkpoint (slow)")


def _add_process(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--qmp", metavar="PATH", required=True, help="the control socket")
    add(
        "--filter",
        metavar="KIND,id=ID,netdev=net0[,queue=rx|tx|all]...",
        action="append",
        default=[],
        help="between a card and its back end: buffer,interval=US; mirror,outdev=ADDRESS; dump,file=FILE",
    )
    add("--paused", action="store_true", help="do not start the guest; 'cont' does")
    add("--console", metavar="FILE", help="append what the guest says on COM1 (held like all output)")
    add("--trace", metavar="FILE", help="append every event and epoch, one JSON object a line")
    add("--netns", metavar="PATH", help="enter this network namespace first (/run/netns/NAME)")
    add("--userns", metavar="PATH", help="and the user namespace that it belongs to")
    add("--json", action="store_true", help="events as JSON objects, one a line")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def options(given: argparse.Namespace) -> NodeOptions:
    """The node that the command line asks for."""
    from colo.node.leading import Settings
    from colo.node.process import NodeOptions
    from colo.node.tunables import Tunables

    settings = Settings(float(given.pause_budget), given.verify, given.dirty_source, given.compare)
    return NodeOptions(
        launch=launch_options(given),
        qmp=Path(given.qmp),
        name=given.name,
        pair=given.pair,
        guest_name=given.guest or "images",
        incoming=given.incoming,
        arbiter=given.arbiter,
        credentials=(given.certs, given.name) if given.certs else None,
        namespace=given.netns,
        user_namespace=given.userns,
        paused=given.paused,
        generation=given.generation,
        filters=tuple(given.filter),
        console=Path(given.console) if given.console else None,
        trace=Path(given.trace) if given.trace else None,
        json=given.json,
        tunables=Tunables(given.checkpoint_delay, given.heartbeat, given.silence, given.policy, settings),
    )


def main(given: argparse.Namespace) -> int:
    from colo.node.process import run

    return run(options(given))
