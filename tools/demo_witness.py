"""Who sees from outside what becomes of a guest while its nodes are killed: clients, or a console's reader.

A witness is told when a phase begins, and says of each phase that ended what it saw: facts for a
program, a sentence for a person, and what was wrong, if anything.  It knows nothing of nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Protocol

from tools.demo_guest import ROOT, DemoFailed
from tools.demo_lines import counted, milliseconds

ANSWER_S = 45.0
"""For a phase's facts, or the last ones: a client that waits for a stuck reply gives up before."""

Facts = dict[str, Any]


class Witness(Protocol):
    """See above."""

    def live(self) -> str:
        """The last moment, in a few words; empty when there is nothing to say."""

    async def phase(self, name: str) -> Facts:
        """Begin a phase; what was seen in the one before."""

    def sentence(self, facts: Facts) -> str:
        """A phase's facts for a person."""

    async def finish(self) -> Facts:
        """The facts of everything; ``complaints`` of them are what was wrong, in words."""

    async def close(self) -> None:
        """Nothing is left of it; any number of times."""


class CountingClients:
    """A process of :mod:`tools.counting_client`."""

    def __init__(self, port: int, connections: int) -> None:
        self._port, self._connections = port, connections
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._said: asyncio.Queue[Facts] = asyncio.Queue()
        self._live: Facts = {}
        self._phases: list[Facts] = []

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "tools.counting_client", str(self._port), str(self._connections)]
        # A session of its own: Ctrl-C is for us, and the end of its input for it.
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, cwd=ROOT, start_new_session=True
        )
        self._reader = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            facts = json.loads(line)
            if facts["event"] == "live":
                self._live = facts
            else:
                self._said.put_nowait(facts)
        self._said.put_nowait({"event": "gone"})

    def live(self) -> str:
        return f"client {self._live['per_s']:,} INCR/s" if self._live else ""

    async def phase(self, name: str) -> Facts:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n".encode())
        facts = await self._heard("phase")
        self._phases.append(facts)
        return facts

    async def _heard(self, event: str) -> Facts:
        try:
            async with asyncio.timeout(ANSWER_S):
                facts = await self._said.get()
        except TimeoutError:
            facts = {"event": "nothing"}
        if facts["event"] != event:
            raise DemoFailed(
                f"waiting for the counting client's {event!r}: found {facts['event']!r}; what it printed is"
                " above; try it alone: python -m tools.counting_client PORT CONNECTIONS"
            )
        return facts

    def sentence(self, facts: Facts) -> str:
        right = "every one right" if not facts["wrong"] else f"{facts['wrong']:,} WRONG"
        rate = facts["replies"] / max(facts["seconds"], 1e-3)
        return (
            f"client: {counted(self._connections, 'connection')}, {counted(facts['resets'], 'reset')},"
            f" longest wait {milliseconds(facts['longest_ms'])},"
            f" {counted(facts['replies'], 'reply')} ({rate:,.0f}/s), {right}"
        )

    async def finish(self) -> Facts:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._phases.append(await self._heard("phase"))
        end = await self._heard("end")
        every = [*self._phases, end]
        total = {name: sum(each[name] for each in every) for name in ("wrong", "lost", "resets")}
        replies = sum(each["replies"] for each in self._phases)
        longest = max(each["longest_ms"] for each in self._phases)
        complaints = [f"{counted(total[name], word)}" for name, word in WORDS.items() if total[name]]
        if not replies:
            complaints.append("no reply at all")
        facts = {"connections": self._connections, "replies": replies, "longest_ms": longest, **total}
        facts |= {"keys": end["keys"], "samples": end["samples"], "phases": self._phases}
        return {**facts, "complaints": [*complaints, *end["samples"]], "verdict": self._verdict(facts)}

    def _verdict(self, facts: Facts) -> list[str]:
        clients = counted(self._connections, "connection")
        resets, longest = counted(facts["resets"], "reset"), milliseconds(facts["longest_ms"])
        return [
            f"{facts['replies']:,} increments acknowledged on {clients}, {resets}, longest wait {longest}",
            f"{counted(facts['keys'], 'key')} asked anew: each holds its last number, nothing is lost",
        ]

    async def close(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                process.kill()
        await process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)


WORDS = {"wrong": "wrong reply", "lost": "lost acknowledged write", "resets": "reset"}


class ConsoleReader:
    """Whoever reads the console of the guest ``counter``: it must count its seconds without a gap.

    Every node that served wrote a file; laid end to end, in the order of the nodes, they are what the
    world read.  A survivor that cannot know whether its predecessor's last words were read says them
    again, so a line may come twice; none may be missing.
    """

    LINE = re.compile(rb"second (\d+) ")

    def __init__(self, home: Path) -> None:
        self._home = home
        self._read = 0

    def live(self) -> str:
        seen = self._seconds()
        return f"the guest says: second {seen[-1]}" if seen else ""

    def _seconds(self) -> list[int]:
        files = sorted(self._home.glob("n*.console"), key=lambda path: int(path.stem[1:]))
        text = b"".join(path.read_bytes() for path in files)
        return [int(number) for number in self.LINE.findall(text)]

    async def phase(self, name: str) -> Facts:
        seen = self._seconds()
        facts = {"phase": name, **self._judge(seen[self._read :])}
        self._read = max(0, len(seen) - 1)  # the next phase begins where this one ended
        return facts

    def _judge(self, seen: list[int]) -> Facts:
        wanted = set(range(seen[0], seen[-1] + 1)) if seen else set()
        return {
            "first": seen[0] if seen else None,
            "last": seen[-1] if seen else None,
            "missing": sorted(wanted - set(seen)),
            "repeated": len(seen) - len(set(seen)),
        }

    def sentence(self, facts: Facts) -> str:
        if facts["first"] is None:
            return "console: nothing yet"
        missing = f"MISSING {facts['missing']}" if facts["missing"] else "none missing"
        twice = f", {facts['repeated']} said twice" if facts["repeated"] else ""
        return f"console: seconds {facts['first']} to {facts['last']}, {missing}{twice}"

    async def finish(self) -> Facts:
        facts = self._judge(self._seconds())
        complaints = [f"the guest's seconds {facts['missing']} were never read"] if facts["missing"] else []
        if facts["first"] is None:
            complaints.append("the guest said nothing")
        return {**facts, "complaints": complaints, "verdict": [f"{self.sentence(facts)}: nothing is lost"]}

    async def close(self) -> None:
        """There is nothing to close."""
