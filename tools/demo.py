"""``tools/demo``, once the environment is there: which demonstration, and how it ends.

    python -m tools.demo [--keep] [--network hub] [--guest NAME] ...

Without ``--guest`` a pair is shown (:mod:`tools.demo_tell`), with it one machine
(:mod:`tools.demo_guest`).  What those need is imported once the words are understood, so that a help is
immediate and Ctrl-C has somewhere to go.

Exit status: 0 all was right; 1 something failed, or a witness saw something wrong; 2 usage; 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.demo_lines import Steps
    from tools.demo_pair import Plan

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
SILENCE_MS = 1000
"""More than `colo up` takes: whoever tries this on a busy host wants to see the kills, and no others."""
INSTEAD = (
    "What works without it: tools/demo --network hub (a pair of built-in guests, no clients);"
    " tools/demo --guest counter (one machine)"
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tools/demo",
        description="A Redis that survives kill -9: two nodes, real clients, and what they saw.",
    )
    add = made.add_argument
    add("--keep", action="store_true", help="leave the pair running until Ctrl-C, and say what to type")
    add(
        "--network",
        choices=("namespace", "hub"),
        default="namespace",
        help="hub: a pair of built-in counters, without any privilege and without clients",
    )
    add("--seconds", type=positive, metavar="S", default=8.0, help="to count before a kill (default 8)")
    add("--connections", type=whole, metavar="N", default=8, help="of the counting client (default 8)")
    add("--heartbeat", metavar="MS", type=whole, help="between two beats of a node (colo node --help)")
    add(
        "--silence",
        metavar="MS",
        type=whole,
        default=SILENCE_MS,
        help=f"after which a node is taken for dead (default {SILENCE_MS}; what is killed is noticed before)",
    )
    add("--json", metavar="FILE", help="write everything that was found there, as one object")
    add("--guest", metavar="NAME", help="one machine instead of a pair: hold a session in that guest")
    return made


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return value


def whole(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def plan(options: argparse.Namespace) -> Plan:
    words: list[str] = []
    for name in ("heartbeat", "silence"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    from tools.demo_pair import COUNTER, REDIS, Plan

    cast = COUNTER if options.network == "hub" else REDIS
    return Plan(cast, options.seconds, options.connections, tuple(words))


def show_pair(options: argparse.Namespace, steps: Steps) -> bool:
    """Whether all was right.  DemoFailed: what went wrong."""
    import asyncio

    from colo.errors import NetworkError
    from tools import demo_tell
    from tools.demo_guest import DemoFailed
    from vmm.errors import GuestBuildError

    found: dict[str, Any] = {}
    try:
        good = asyncio.run(demo_tell.act(plan(options), options.keep, steps, found))
    except (NetworkError, GuestBuildError) as exc:
        raise DemoFailed(f"making a pair: {exc}. {INSTEAD}") from exc
    finally:
        if options.json is not None:
            write(options.json, found.get("facts", {}))
    if good:
        steps.say(demo_tell.following(options.network, found["port"]))
    return good


def write(path: str, facts: dict[str, Any]) -> None:
    # The tool has moved to the project's folder; the name was given where it was started.
    target = Path(os.environ.get("COLO_DEMO_FROM", "."), path)
    target.write_text(json.dumps(facts, indent=1) + "\n")


def show_guest(name: str, steps: Steps) -> bool:
    from tools import demo_guest, demo_tell

    demo_guest.hold(name, steps)
    steps.say(demo_tell.following_guest(name))
    return True


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return show(options)
    except KeyboardInterrupt:
        return interrupted()


def show(options: argparse.Namespace) -> int:
    import asyncio

    from colo.errors import ColoError
    from tools.demo_guest import DemoFailed
    from tools.demo_lines import Steps
    from vmm.errors import VmmError

    steps = Steps(int(os.environ.get("COLO_STEP", "0")))
    try:
        if options.guest is not None:
            good = show_guest(options.guest, steps)
        else:
            good = show_pair(options, steps)
        return 0 if good else EXIT_FAILED
    except (DemoFailed, ColoError, VmmError) as exc:
        steps.clear()
        print(f"\ndemo: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except asyncio.CancelledError:
        steps.clear()
        return interrupted()


def interrupted() -> int:
    print("\ndemo: interrupted; nothing is left running", file=sys.stderr)
    return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
