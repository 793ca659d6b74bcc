"""``colo run``: a machine from what was asked for, run until its end, and what is to be said of it.

In order: everything is opened or refused; the terminal is taken; the guest runs; the log is closed;
the terminal is given back; the snapshot is written; the last line is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from colo.cli.conduct import Conditions, Conductor, Every
from colo.cli.console import Interrupt, LiveConsole
from colo.cli.machine import launch_options
from colo.cli.progress import Progress
from vmm import recording
from vmm.backends.script import Script
from vmm.errors import ConfigError, ReplayError, ScriptError, VmmError
from vmm.launch import Launched, launch

INTERRUPT, QUIT = "interrupt", "quit"
DEBUG_EXIT = "debug-exit"
BYTE = 0xFF
"""What the host keeps of an exit status."""


@dataclass
class Outcome:
    """How a run ended."""

    reason: str = "error"
    error: VmmError | None = None
    wall_s: float = 0.0
    guest_status: int | None = None
    hashes: list[tuple[int, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Of the process."""
        if self.error is not None:
            return EXIT_USAGE if isinstance(self.error, ConfigError) else EXIT_FAILED
        if self.reason == INTERRUPT:
            return EXIT_INTERRUPTED
        if self.reason == DEBUG_EXIT and self.guest_status is not None:
            return self.guest_status & BYTE
        return 0

    @property
    def succeeded(self) -> bool:
        """The run came to an end that somebody wanted; the guest's own status is its own business."""
        return self.error is None and self.reason != INTERRUPT


def main(arguments: argparse.Namespace) -> int:
    outcome = Outcome()
    facts: dict[str, Any] = {}
    try:
        _refuse_contradictions(arguments)
        with ExitStack() as opened:
            run = _Run(arguments, outcome, opened)
            run.conduct()
            run.close_console()
            facts = run.facts()
            if outcome.succeeded and arguments.save:
                with Progress(f"writing {arguments.save}") as progress:
                    run.machine.save(arguments.save, progress.part)
                facts["saved"] = arguments.save
    except VmmError as exc:
        outcome.error = exc
    except KeyboardInterrupt:
        outcome.reason, outcome.error = INTERRUPT, None
    _report(arguments, outcome, facts)
    return outcome.status


def _report(arguments: argparse.Namespace, outcome: Outcome, facts: dict[str, Any]) -> None:
    if outcome.error is not None:
        print(f"colo: {outcome.error}", file=sys.stderr)
    elif outcome.reason == INTERRUPT:
        print("colo: interrupted", file=sys.stderr)
    elif sys.stderr.isatty():
        print(f"colo: ended: {outcome.reason}", file=sys.stderr)
    if arguments.json:
        end = {
            "reason": outcome.reason,
            "exit_code": outcome.status,
            "error": None if outcome.error is None else str(outcome.error),
        }
        print(json.dumps(end | facts), flush=True)


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Of the run; those of the machine are vmm.launch's."""
    given = arguments
    if given.replay and (given.script or given.record):
        raise ConfigError("--replay: a replay hears nothing but its log: leave out --script and --record")
    if given.exit_on == "":
        raise ConfigError("--exit-on: an empty text is said at once; give the text to wait for")


def _script(path: str | None) -> Script | None:
    if path is None:
        return None
    try:
        return Script.parse(Path(path).read_text(encoding="utf-8"), path)
    except OSError as exc:
        raise ScriptError(f"{path}: {exc.strerror}: expected a script") from None
    except UnicodeDecodeError as exc:
        raise ScriptError(f"{path}: not UTF-8 at byte {exc.start}: expected a script") from None


class _Run:
    """One machine with its console, from the first block to the last; ``opened`` closes it all."""

    def __init__(self, arguments: argparse.Namespace, outcome: Outcome, opened: ExitStack) -> None:
        self._given = arguments
        self._outcome = outcome
        self._script = _script(arguments.script)
        listen = self._script is None and not arguments.replay
        interactive = listen and os.isatty(0)
        self._console = LiveConsole(listen=listen, save=arguments.save)
        opened.callback(self._console.close)
        self._launched: Launched = opened.enter_context(self._launch(interactive))
        self.machine = self._launched.machine
        self._newline = "\r\n" if interactive and sys.stderr.isatty() else "\n"

    def _launch(self, interactive: bool) -> Launched:
        given = self._given
        paced = given.paced if given.paced is not None else interactive or None
        options = launch_options(given, replay=given.replay, paced=paced)
        named = f"guest {options.guest}" if options.guest else "images"
        with Progress(named) as building, Progress("reading images") as reading:
            launched = launch(options, [self._console], building.step, reading.more)
            try:
                if self._given.record:
                    launched.record(self._given.record, reading.more)
            except BaseException:
                launched.close()
                raise
        return launched

    def conduct(self) -> None:
        """Run; the outcome says how it went."""
        conditions = Conditions(
            script=self._script,
            exit_on=self._given.exit_on,
            until_ns=self._until_ns(),
            log=self._launched.log,
            left=self._left,
            every=self._every(),
        )
        outcome = self._outcome
        self._console.attach(self.machine)
        with Interrupt(self.machine.stop) as self._interrupt, self._timed():
            try:
                outcome.reason = Conductor(self.machine, conditions).run()
            except (ScriptError, ReplayError) as exc:
                outcome.reason = "script" if isinstance(exc, ScriptError) else "replay"
                outcome.error = exc
            if self._given.record:
                recording.finish(self.machine, outcome.reason)
        outcome.guest_status = self.machine.exit_code
        if outcome.reason == "log-end" or (self._launched.log and outcome.succeeded):
            self._say(self._verdict())

    def close_console(self) -> None:
        """The terminal is as it was; what is printed next stands on a line of its own where it must."""
        if self._given.json or (os.isatty(1) and sys.stderr.isatty()):
            self._console.end_line()
        self._console.close()

    def facts(self) -> dict[str, Any]:
        """What --json says of the machine; nothing without it, because hashing takes a moment."""
        if not self._given.json:
            return {}
        machine, outcome = self.machine, self._outcome
        counters = machine.counters()
        facts: dict[str, Any] = {
            "virtual_ns": machine.clock.now_ns,
            "wall_s": round(outcome.wall_s, 6),
            "blocks": counters.pop("blocks_seen"),
            "counters": counters,
            "state_hash": machine.digest,
            "engine_digest": machine.engine_digest,
            "layout_digest": machine.layout_digest,
            "console_dropped": self._console.dropped,
        }
        if self._given.hash_every:
            facts["hashes"] = outcome.hashes
        if self._launched.log is not None:
            log = self._launched.log
            facts["replay"] = {"records": log.records, "end_ns": log.end_ns, "whole": log.reason is not None}
        return facts

    def _until_ns(self) -> int | None:
        until: int | None = self._given.until_virtual
        now = self.machine.clock.now_ns
        if until is not None and until < now:
            raise ConfigError(
                f"--until-virtual {until / 1e9:g}: the snapshot is at {now / 1e9:.9g} s; virtual time counts"
                " from power-on"
            )
        return until

    def _left(self) -> str | None:
        if self._interrupt.came:
            return INTERRUPT
        return QUIT if self._console.quit_requested else None

    def _every(self) -> list[Every]:
        every = []
        if self._given.record:
            every.append(Every(self._given.mark_every, lambda: recording.mark(self.machine)))
        if self._given.hash_every:
            every.append(Every(self._given.hash_every, self._hash))
        return every

    def _hash(self) -> None:
        now, digest = self.machine.clock.now_ns, self.machine.digest
        self._outcome.hashes.append((now, digest))
        self._say(f"state at {now} ns: {digest}")

    def _verdict(self) -> str:
        log = self._launched.log
        assert log is not None
        now = self.machine.clock.now_ns
        if now < log.end_ns:
            return f"{log.path}: followed up to {now} ns; the log goes on to {log.end_ns} ns"
        if log.reason is None:
            return f"{log.path}: followed to its end at {now} ns, where the recording was cut short"
        return f"{log.path}: followed to its end at {now} ns ({log.reason}): the same run, bit for bit"

    def _say(self, text: str) -> None:
        print(f"colo: {text}", end=self._newline, file=sys.stderr, flush=True)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._outcome.wall_s = time.monotonic() - started
