"""One guest in one machine: prepare it, boot it, talk to it, say what happened (``tools/demo --guest``).

It drives the same command that a user types, ``colo run``, and prints it, so that what is seen here
can be repeated by hand.  While the guest boots, one line shows its last words (a terminal only); from
the text that the session waits for first, everything that the guest says is shown as it comes.

What is said to a guest stands in ``guests/NAME/demo.script`` (``vmm.backends.script``); a guest
without one runs until it ends by itself, or the limit in virtual time comes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vmm.guest
from tools.demo_lines import Steps, printable
from vmm.backends.script import Script
from vmm.errors import VmmError

ROOT = Path(__file__).resolve().parents[1]
VIRTUAL_LIMIT_S = 120
"""Virtual seconds after which a session that does not end is given up."""
ENOUGH_S = 10
"""Virtual seconds that a guest without a session is shown for, if it does not end before."""


class DemoFailed(Exception):
    """Says what was being done, what was found, and what to do."""


@dataclass(frozen=True)
class Session:
    """A guest, what is said to it, and the text from which on its words are shown."""

    guest: str
    script: Path | None
    starts_at: str

    @classmethod
    def of(cls, guest: str) -> Session:
        path = ROOT / "guests" / guest / "demo.script"
        if not path.exists():
            return cls(guest, None, "")
        steps = Script.parse(path.read_text(), str(path.relative_to(ROOT))).steps
        first = next((step.data for step in steps if step.expects), b"")
        return cls(guest, path.relative_to(ROOT), first.decode(errors="replace").strip())

    def words(self) -> list[str]:
        """What stands after ``colo``."""
        words = ["run", self.guest, "--free-running", "--until-virtual"]
        if self.script is None:
            return [*words, str(ENOUGH_S)]
        return [*words, str(VIRTUAL_LIMIT_S), "--script", str(self.script)]


@dataclass(frozen=True)
class Outcome:
    """How ``colo run`` ended: its exit status, the object on its last line, and what it complained of."""

    status: int
    facts: dict[str, Any]
    complaint: str


def show(lines: Iterable[str], starts_at: str, steps: Steps) -> str:
    """Show each line but the last, which is returned."""
    shown = not starts_at
    held: str | None = None
    for line in lines:
        if held is not None:
            shown = shown or starts_at in held
            if shown:
                steps.say(f"   | {printable(held)}")
            else:
                steps.live(held)
        held = line
    return held or ""


def run(session: Session, steps: Steps) -> Outcome:
    """Run ``colo``; with ``--json`` its last line is one object, all others are the guest's."""
    command = [sys.executable, "-m", "colo.cli", *session.words(), "--json"]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            cwd=ROOT,
        )
        assert child.stdout is not None
        last = show(child.stdout, session.starts_at, steps)
        status = child.wait()
        errors.seek(0)
        complaint = errors.read().strip()
    try:
        return Outcome(status, json.loads(last), complaint)
    except json.JSONDecodeError:
        return Outcome(status or 1, {}, complaint or printable(last))


def report(outcome: Outcome, steps: Steps) -> None:
    """What happened, in the words of ``colo run --json``."""
    facts = outcome.facts
    steps.end(f"ended: {facts.get('reason', 'unknown')}")
    virtual_s = facts.get("virtual_ns", 0) / 1e9
    steps.say(f"   {virtual_s:.2f} s passed in the guest, {facts.get('wall_s', 0):.2f} s here")
    if "state_hash" in facts:
        steps.say(f"   state {facts['state_hash']}")
        steps.say("   run it again: the state is the same, bit for bit, on any host")


def hold(name: str, steps: Steps) -> None:
    """The session.  DemoFailed: what went wrong."""
    steps.begin(f"guest {name}")
    try:
        vmm.guest.open(name).build(steps.live)
        session = Session.of(name)
    except VmmError as exc:
        raise DemoFailed(f"guest {name}: {exc}") from exc
    steps.end("ready")
    steps.begin(f"colo {' '.join(session.words())}")
    outcome = run(session, steps)
    ended_itself = outcome.facts.get("reason") == "debug-exit"  # the status is then what the guest chose
    if outcome.status != 0 and not ended_itself:
        raise DemoFailed(f"the session in {name} failed (exit status {outcome.status}): {outcome.complaint}")
    report(outcome, steps)
