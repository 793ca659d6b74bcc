"""The command line: what may be said, what it means, and how it ends.

Words become :class:`vmm.launch.LaunchOptions`; the commands are in ``cli_run``, ``cli_guest`` and
``cli_layout``.  Only argparse is imported here, so that ``colo --help`` is immediate and a command
loads what it uses.  argparse and no other: it is part of Python, and these are ordinary options.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from colo.cli import campaign as cli_campaign
from colo.cli import compare_policies as cli_compare_policies
from colo.cli import control as cli_control
from colo.cli import explore as cli_explore
from colo.cli import init as cli_init
from colo.cli import machine as cli_machine
from colo.cli import node as cli_node
from colo.cli import replay as cli_replay
from colo.cli import sim as cli_sim
from colo.cli import up as cli_up

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

STATUSES = """\
exit status:
  0    the guest ended, or what the run was to wait for came about
  1    a script or --exit-on was not satisfied, a replay departed, or something failed
  2    the command line asks for something that cannot be
  130  interrupted (Ctrl-C)
  A guest that writes V to the debug exit port 0xF4 ends the run with V << 1 | 1, as under QEMU.
"""

OVERVIEW = f"""\
examples:
  colo run hello                       the smallest guest: one line, and out
  colo run linux                       a Linux to type into; Ctrl-] then q leaves
  colo run linux --exit-on 'GUEST-READY linux' --save booted.snapshot
  colo run --load booted.snapshot      go on there, in any process, in half a second
  colo up redis --publish 6379         a Redis that survives kill -9; colo status, colo kill primary
  colo sim redis --kill 0.5            the same in a simulated world: one seed, one digest
  colo explore udpecho                 faults where its protocol has not met them yet
  colo guest list                      what there is to run

{STATUSES}"""

RUN_EPILOG = f"""\
what to boot: the name of a guest (colo guest list), or images of your own with --kernel, --multiboot
or --boot-sector, or --load.  With --load, a guest or images say what a reset loads.

standard input and output are the serial port COM1.  A terminal is used raw: every key goes to the
guest, Ctrl-C too; Ctrl-] is the way out.  Pipes and files pass unchanged.

when the run ends: with the guest; at --until-virtual; at --exit-on; after the last line of --script,
unless one of these two says when; at the end of the log of --replay; at Ctrl-] q.  --save happens then.

virtual time is what the guest sees.  --free-running lets it pass as fast as the guest computes, and an
idle guest jumps to its next alarm: right for scripts and tests.  --paced holds it to the wall's pace:
right for a guest that somebody talks to, and so the default for a terminal and with --net.

examples:
  colo run linux --script session.txt --json
  colo run --kernel bzImage --initrd rd.img --append 'console=ttyS0' --ram 512 --disk root.img,overlay
  colo run --multiboot kernel.elf --module initrd.img --until-virtual 10 --exit-on 'all tests passed'
  colo run --boot-sector disk.img
  colo run redis --net tap=tap0 --pcap redis.pcap
  colo run linux --record run.log      and then: colo run --replay run.log

{STATUSES}"""


class Parser(argparse.ArgumentParser):
    """One line says what is wrong; the usage is in --help."""

    def error(self, message: str) -> NoReturn:
        print(f"colo: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


class Version(argparse.Action):
    """Looks the versions up when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        def version(package: str) -> str:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                return "(not installed)"

        print(
            f"colo-vmm {version('colo-vmm')}, unicorn {version('unicorn')}, Python {sys.version.split()[0]}"
        )
        sys.exit(0)


def seconds(text: str) -> int:
    """Seconds in decimal, as nanoseconds."""
    from decimal import Decimal, InvalidOperation

    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not (value.is_finite() and 0 < value < 10**9 and value * 10**9 >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(value * 10**9)


def parser() -> Parser:
    top = Parser(
        prog="colo",
        description="A deterministic x86-64 PC that boots unmodified Linux, and pairs of them.",
        epilog=OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", nargs=0, action=Version, help="versions of this, the engine and Python")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_run(commands)
    _add_guest(commands)
    cli_up.add_parser(commands)
    cli_control.add_parsers(commands)
    cli_node.add_parser(commands)
    cli_compare_policies.add_parser(commands)
    cli_campaign.add_parser(commands)
    cli_replay.add_parser(commands)
    cli_explore.add_parser(commands)
    cli_init.add_parser(commands)
    cli_sim.add_parser(commands)
    _add_certs(commands)
    layout = commands.add_parser("layout", help="what a machine's state consists of, and its digest")
    layout.add_argument("snapshot", nargs="?", metavar="SNAPSHOT", help="of the machine in this snapshot")
    layout.add_argument("--json", action="store_true", help="as one JSON object")
    return top


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a machine",
        description="Run a machine: a guest, images of your own, a snapshot or a recording.",
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli_machine.add_boot(run.add_argument_group("what to boot"))
    cli_machine.add_board(run.add_argument_group("the machine"))
    _add_ending(run.add_argument_group("how the run goes"))


def _add_ending(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    pace = group.add_mutually_exclusive_group()
    pace.add_argument("--paced", action="store_true", default=None, help="virtual time follows the wall's")
    pace.add_argument(
        "--free-running", action="store_false", dest="paced", help="virtual time waits for nothing"
    )
    add(
        "--script",
        metavar="FILE",
        help="lines of 'expect TEXT [within 5s]' and 'send TEXT', in place of standard input",
    )
    add("--until-virtual", metavar="SECONDS", type=seconds, help="end at this virtual time since power-on")
    add("--exit-on", metavar="TEXT", help="end when the console says TEXT; fail if it never does")
    add("--save", metavar="FILE", help="write a snapshot at the end, unless the run failed")
    add("--record", metavar="FILE", help="log every input with its virtual time, in a new file")
    add(
        "--mark-every",
        metavar="SECONDS",
        type=seconds,
        default=10**9,
        help="with --record: hash the state this often",
    )
    add("--replay", metavar="FILE", help="run a log again; says where the machine departs from it")
    add(
        "--hash-every",
        metavar="SECONDS",
        type=seconds,
        help="print the hash of the whole state this often, to standard error",
    )
    add("--json", action="store_true", help="print one JSON object as the last line of standard output")


def _add_guest(commands: argparse._SubParsersAction[Parser]) -> None:
    guest = commands.add_parser("guest", help="guests: what there is, building, describing")
    actions = guest.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser("list", help="every guest, and whether it can be run at once")
    build = actions.add_parser("build", help="prepare guests from this distribution's packages")
    build.add_argument("names", nargs="*", metavar="NAME")
    build.add_argument("--all", action="store_true", help="every guest")
    build.add_argument("--force", action="store_true", help="again, from current packages")
    info = actions.add_parser("info", help="what a guest is, and what went into it")
    info.add_argument("names", nargs=1, metavar="NAME")
    for each in (listing, build, info):
        each.add_argument("--json", action="store_true", help="as JSON")


def _add_certs(commands: argparse._SubParsersAction[Parser]) -> None:
    certs = commands.add_parser("certs", help="certificates for links between hosts")
    certs.add_argument("directory", metavar="DIR", help="where they are, and the authority's key")
    certs.add_argument(
        "--host",
        metavar="NAME",
        action="append",
        default=[],
        help="make one for a node that is reached under this DNS name or IP address",
    )
    certs.add_argument("--json", action="store_true", help="the files, as one JSON object")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    options = parser().parse_args(arguments)
    # numpy would start a thread for each CPU, for linear algebra that nobody does here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from colo.errors import ColoError
    from vmm.errors import ConfigError, VmmError

    try:
        return _command(options)
    except ConfigError as exc:
        print(f"colo: {exc}", file=sys.stderr)
        return EXIT_USAGE
    except (ColoError, VmmError) as exc:
        print(f"colo: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("colo: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone.  Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _command(options: argparse.Namespace) -> int:
    match options.command:
        case "run":
            from colo.cli import run as cli_run

            return cli_run.main(options)
        case "up":
            from colo.cli import supervise as cli_supervise

            return cli_supervise.main(options)
        case "node":
            return cli_node.main(options)
        case "compare-policies":
            return cli_compare_policies.main(options)
        case "campaign":
            return cli_campaign.main(options)
        case "replay":
            return cli_replay.main(options)
        case "explore":
            return cli_explore.main(options)
        case command if command in cli_control.COMMANDS:
            from colo.cli import pair as cli_pair

            return cli_pair.main(options)
        case "init":
            return cli_init.main(options)
        case "sim":
            return cli_sim.main(options)
        case "certs":
            from colo.cli import certs as cli_certs

            return cli_certs.main(options)
        case "guest":
            from colo.cli import guest as cli_guest

            return cli_guest.main(options)
        case _:
            from colo.cli import layout as cli_layout

            return cli_layout.main(options)
