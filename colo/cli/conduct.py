"""A run with conditions: a script to hold, a text to wait for, a time to end at, things to do on the way.

The guest runs in stretches.  A stretch ends at a virtual time, or at the block boundary after a byte
that may complete what is waited for; both depend on the guest alone, so conditions do not change what
it does, and two runs with the same conditions end at the same virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vmm.backends.script import PlainText, Script, ScriptRunner
from vmm.clock import NEVER_NS
from vmm.errors import ReplayError, ScriptError
from vmm.machine import Ended, Machine
from vmm.replay import Replayer

STILL_RUNNING = (Ended.TIME, Ended.PAUSED, Ended.REQUEST)
"""The guest could go on."""


@dataclass
class Every:
    """Something to do at each multiple of ``step_ns`` of virtual time."""

    step_ns: int
    action: Callable[[], object]
    next_ns: int = 0

    def start(self, now_ns: int) -> None:
        self.next_ns = (now_ns // self.step_ns + 1) * self.step_ns

    def look(self, now_ns: int) -> None:
        if now_ns >= self.next_ns:
            self.action()
            self.start(now_ns)


@dataclass
class Conditions:
    """What ends a run, besides the guest."""

    script: Script | None = None
    exit_on: str | None = None
    until_ns: int | None = None
    log: Replayer | None = None
    left: Callable[[], str | None] = lambda: None
    """Why somebody outside wants it to end, if so."""
    every: Sequence[Every] = field(default_factory=list)


class Awaited:
    """A text that the console may say."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._plain = PlainText()
        self._tail = b""
        self.last = self._text[-1]
        self.seen = False

    def feed(self, heard: bytes) -> None:
        self._tail += self._plain.feed(heard)
        self.seen = self.seen or self._text in self._tail
        self._tail = self._tail[-len(self._text) :]


class Conductor:
    """Runs ``machine`` until one of ``conditions`` holds.

    ScriptError or ReplayError when one cannot hold any more.
    """

    def __init__(self, machine: Machine, conditions: Conditions) -> None:
        self._machine = machine
        self._when = conditions
        now = machine.clock.now_ns
        self._script = ScriptRunner(conditions.script, now) if conditions.script is not None else None
        self._awaited = Awaited(conditions.exit_on) if conditions.exit_on is not None else None
        self._heard_total = machine.console.total
        self._only_script = conditions.exit_on is None and conditions.until_ns is None
        for each in conditions.every:
            each.start(now)

    def run(self) -> str:
        """Why the run ended, in a word."""
        self._machine.serial.watch = self._watch
        try:
            while True:
                if (why := self._reached()) is not None:
                    return why
                ended = self._machine.run(self._limit_ns())
                if ended not in STILL_RUNNING:
                    return self._guest_ended(ended)
        finally:
            self._machine.serial.watch = None

    def _watch(self, byte: int) -> None:
        script, awaited = self._script, self._awaited
        if (script is not None and byte == script.awaited) or (awaited is not None and byte == awaited.last):
            self._machine.pause()

    def _limit_ns(self) -> int:
        limits = [each.next_ns for each in self._when.every]
        if self._when.until_ns is not None:
            limits.append(self._when.until_ns)
        if self._script is not None:
            limits.append(self._script.next_deadline_ns)
        if self._when.log is not None:
            limits.append(self._when.log.end_ns)
        return min(limits, default=NEVER_NS)

    def _reached(self) -> str | None:
        """Between two stretches: do what is due, hear the guest, and say why the run ends if it does."""
        now = self._machine.clock.now_ns
        for each in self._when.every:
            each.look(now)
        self._hear()
        if self._awaited is not None and self._awaited.seen:
            return "exit-on"
        if self._script is not None:
            self._script.check(now)
            if self._script.finished and self._only_script:
                return "script"
        if (why := self._when.left()) is not None:
            return why
        if self._when.log is not None and now >= self._when.log.end_ns:
            self._when.log.finish(now)
            self._require_satisfied("the log ended")
            return "log-end"
        if self._when.until_ns is not None and now >= self._when.until_ns:
            self._require_satisfied(f"{now / 1e9:.3f} s of virtual time have passed")
            return Ended.TIME.value
        return None

    def _guest_ended(self, ended: Ended) -> str:
        self._hear()
        if self._awaited is not None and self._awaited.seen:
            return "exit-on"
        log = self._when.log
        if log is not None:
            now = self._machine.clock.now_ns
            if now < log.end_ns:
                raise ReplayError(
                    f"log {log.path}: replay departs at {now} ns: the machine ended ({ended.value}),"
                    f" expected it to run until {log.end_ns} ns as recorded"
                )
            log.finish(now)
        self._require_satisfied(f"the machine ended ({ended.value})")
        return ended.value

    def _hear(self) -> None:
        console = self._machine.console
        fresh = console.total - self._heard_total
        self._heard_total = console.total
        heard = console.data[-fresh:] if fresh else b""
        if self._awaited is not None:
            self._awaited.feed(heard)
        if self._script is not None:
            for typed in self._script.feed(heard, self._machine.clock.now_ns):
                self._machine.serial.send(typed)

    def _require_satisfied(self, why: str) -> None:
        if self._awaited is not None:
            raise ScriptError(f"expected {self._when.exit_on!r} on the console, but {why}")
        if self._script is not None and not self._script.finished:
            script = self._script.script
            line = script.steps[self._script.at].line
            raise ScriptError(f"{script.name}:{line}: not reached: {why}")
