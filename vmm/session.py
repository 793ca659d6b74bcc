"""Talking to a machine's console: expect and send, in virtual time.

    session = Session(machine)
    session.expect("login: ", within_s=30)
    session.send("root\\n")

``expect`` runs the guest until the text appears.  It stops at the block boundary after the byte that
completed the text, so two runs of one script stop at the same virtual time.
"""

from __future__ import annotations

from vmm.backends.script import PlainText
from vmm.errors import ScriptError
from vmm.machine import Ended, Machine

WITHIN_S = 600.0
"""Virtual seconds that an expectation may take unless it says otherwise."""
SHOWN = 400
"""Characters of the console that an error shows."""


class Session:
    """Expectations on one machine's serial console."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._plain = PlainText()
        self._seen = b""
        self._taken = machine.console.total
        self._awaited = -1
        machine.serial.watch = self._watch

    def _watch(self, byte: int) -> None:
        if byte == self._awaited:
            self._machine.pause()

    def _fresh(self) -> bytes:
        """What the guest said since the last call."""
        console = self._machine.console
        self._machine.serial.show()
        fresh = console.total - self._taken
        self._taken = console.total
        return console.data[-fresh:] if fresh else b""

    def expect(self, text: str, within_s: float = WITHIN_S) -> str:
        """Run until ``text`` was said; what was said up to and including it.

        Raises ScriptError when virtual time runs out or the machine ends first.
        """
        wanted = text.encode()
        deadline = self._machine.clock.now_ns + round(within_s * 1e9)
        self._awaited = wanted[-1]
        try:
            while wanted not in (seen := self._hear()):
                ended = self._machine.run(deadline)
                if ended is not Ended.PAUSED and wanted not in self._hear():
                    raise ScriptError(self._missed(text, within_s, ended))
        finally:
            self._awaited = -1
        before, _, self._seen = seen.partition(wanted)
        return (before + wanted).decode("utf-8", "replace")

    def _hear(self) -> bytes:
        self._seen += self._plain.feed(self._fresh())
        return self._seen

    def _missed(self, text: str, within_s: float, ended: Ended) -> str:
        timed_out = ended is Ended.TIME
        why = f"{within_s:g} virtual seconds passed" if timed_out else f"the machine ended ({ended.value})"
        shown = self._seen[-SHOWN:].decode("utf-8", "replace")
        return f"expected {text!r} on the console, but {why}. Last seen: {shown!r}"

    def send(self, text: str) -> None:
        """Type ``text``; add a newline yourself."""
        self._machine.serial.send(text.encode())

    def command(self, line: str, prompt: str = "~ # ", within_s: float = WITHIN_S) -> str:
        """Type a shell command and run until the next prompt; its output."""
        self.send(line + "\n")
        output = self.expect(prompt, within_s).removesuffix(prompt).replace("\r", "")
        return output.partition("\n")[2]
