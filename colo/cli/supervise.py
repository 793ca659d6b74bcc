"""``colo up``: a pair from its words, and what is said of it until it ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from colo.network.host import Publish
from colo.pair.pair import Pair, PairOptions

PASSED_ON = ("policy", "checkpoint_delay", "heartbeat", "silence", "dirty_source", "compare")


def pair_options(given: argparse.Namespace) -> PairOptions:
    """The pair that the command line asks for."""
    words: list[str] = []
    for name in PASSED_ON:
        if getattr(given, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    trace = Path(given.trace) if given.trace else None
    if trace is not None:
        trace.mkdir(parents=True, exist_ok=True)
    return PairOptions(
        guest=given.guest,
        name=given.name or Path(given.guest).name,
        publish=tuple(Publish.parse(each) for each in given.publish),
        network=given.network,
        ram_mib=given.ram,
        append=given.append,
        reprotect=not given.no_reprotect,
        node_words=(*words, "--verify") if given.verify else tuple(words),
        trace=trace,
    )


class Telling:
    """What happens, for people or as JSON."""

    LIVE = ("synchronising",)
    """Of interest only while it lasts."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._live = sys.stdout.isatty() and not as_json

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        if self._json:
            print(json.dumps({"event": event, **facts}), flush=True)
        elif event in self.LIVE:
            if self._live:
                print(f"\r\x1b[K   {sentence(event, facts)}", end="", flush=True)
        else:
            print(("\r\x1b[K" if self._live else "") + sentence(event, facts), flush=True)


def sentence(event: str, facts: dict[str, Any]) -> str:
    """One line for a person."""
    match event:
        case "guest":
            return f"guest: {facts['doing']}"
        case "guest-ready":
            return f"guest ready after {facts['seconds']:.1f} s"
        case "network":
            ports = ", ".join(facts["publish"]) or "nothing"
            return f"network {facts['name']}; published: {ports}"
        case "node":
            return f"{facts['role']} {facts['node']}: pid {facts['pid']}, started in {facts['seconds']:.1f} s"
        case "synchronising":
            left, total = facts.get("remaining", 0) >> 20, facts.get("total", 0) >> 20
            return f"synchronising: {left} of {total} MiB left, round {facts.get('dirty-sync-count', 0)}"
        case "protected":
            sent = facts.get("transferred", 0) / (1 << 20)
            return f"protected: {sent:.1f} MiB sent in {facts['seconds']:.1f} s"
        case "died":
            return f"node {facts['node']} ({facts['role']}) died"
        case "colo-exit":
            goes_on = "goes on alone" if facts["running"] else "is halted"
            return f"node {facts['node']} left COLO ({facts['mode']}, {facts['reason']}): it {goes_on}"
    return event + "".join(f" {key}={value}" for key, value in facts.items())


def main(given: argparse.Namespace) -> int:
    return asyncio.run(_main(given))


async def _main(given: argparse.Namespace) -> int:
    from colo.pair.pair import Pair

    options = pair_options(given)
    pair = Pair(options, Telling(given.json))
    try:
        if given.explain:
            print("\n".join(pair.explain()))
            return 0
        return await _serve(pair)
    finally:
        await pair.stop()


async def _serve(pair: Pair) -> int:
    """Until the guest ends, or somebody says so."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, pair.ended.set)
    starting = asyncio.create_task(pair.start())
    ending = asyncio.create_task(pair.ended.wait())
    await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0 if pair.failure is None else 1
    await starting
    await ending
    if pair.failure is not None:
        print(f"colo: {pair.failure}", file=sys.stderr)
        return 1
    return 0
