"""What a trial came to, judged by what somebody outside of the machine can see.

The classes are those of :class:`colo.faults.model.Outcome`.  The first rule that fits decides:

1. *crash*: the console has one of the scenario's ``crash`` texts (a kernel's panic).
2. *detected*: the console has one of the ``detected`` texts (a kernel's oops, an assertion, an application's
   own check), or the guest ended by itself with another exit code than in the golden run.
3. *crash*: the guest ended, without a word, and the golden run did not: reset, triple fault, power off, a
   halt with interrupts disabled.
4. *sdc*, silent data corruption: on one of the observed ports the guest said something else.
5. *hang*: what it said is right as far as it goes, and within the limit it does not go as far as the golden
   run's span, or does not end as that did.
6. *masked*: everything that was said in the span was said, and nothing else.

Texts count when they occur more often than in the golden run.  Outputs are compared in order, port by port,
without their times: a fault that costs the guest a microsecond has done no harm that anybody sees.  A
console is compared by lines; lines that match one of the scenario's ``ignore`` are left out on both sides.
What comes after the golden run's span is compared as far as the golden run went on.

A world judges its own trials, because there a survivor may have served (*failed-over*).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from colo.campaign.golden import GoldenRun
from colo.campaign.subject import Said, Subject
from colo.faults.model import Outcome
from vmm.machine import Ended

CONSOLE = "com1"
SHOWN_MAX = 60
"""Characters of an output that a row shows."""


class Verdict(msgspec.Struct, frozen=True):
    """An outcome, and in a few words why."""

    outcome: Outcome
    why: str
    difference: str = ""
    """The first output that is not the golden run's."""


class Judge:
    """Compares trials with one golden run."""

    def __init__(self, golden: GoldenRun) -> None:
        scenario = golden.scenario
        self._golden = golden
        self._ignore = [re.compile(each) for each in scenario.ignore]
        self._said = {port: self._counted(said) for port, said in golden.said_on(scenario.observe).items()}
        self._needed = {
            port: sum(each.ns <= golden.span_ns for each in said) for port, said in self._said.items()
        }
        golden_text = console_text(golden.said, golden.tail)
        self._texts = {text: golden_text.count(text) for text in (*scenario.crash, *scenario.detected)}

    def complete(self, subject: Subject) -> bool:
        """Has it said as much as the golden run's span, on every port?"""
        made = _on_ports(subject.said, self._needed)
        return all(len(self._counted(made[port])) >= count for port, count in self._needed.items())

    def verdict(self, subject: Subject) -> Verdict:
        """Of a guest that ended, said everything, or ran out of time."""
        difference = self.first_difference(subject.said)
        found = self._texts_found(subject) or self._ended(subject)
        if found is not None:
            return msgspec.structs.replace(found, difference=difference or "")
        if difference is not None:
            return Verdict(Outcome.SDC, "other output", difference)
        if not self.complete(subject):
            late = f"output is missing {self._golden.scenario.limit_ns} ns later"
            return Verdict(Outcome.HANG, late, self._missing(subject))
        if self._golden.ended is not None and subject.ended is None:
            return Verdict(Outcome.HANG, f"the guest did not end: {self._golden.ended}")
        return Verdict(Outcome.MASKED, "the same output")

    def first_difference(self, said: Sequence[Said]) -> str | None:
        """In the order of the golden run's times; None when everything said so far is right."""
        made = _on_ports(said, self._said)
        found = []
        for port, expected in self._said.items():
            for index, each in enumerate(self._counted(made[port])):
                wanted = expected[index].data if index < len(expected) else b""
                if each.data != wanted:
                    found.append(
                        (each.ns, f"{port} at {each.ns} ns: {shown(each.data)}, not {shown(wanted)}")
                    )
                    break
        return min(found)[1] if found else None

    def _missing(self, subject: Subject) -> str:
        made = _on_ports(subject.said, self._needed)
        for port, expected in self._said.items():
            count = len(self._counted(made[port]))
            if count < self._needed[port]:
                return f"{port}: nothing, not {shown(expected[count].data)}"
        return ""

    def _ended(self, subject: Subject) -> Verdict | None:
        golden, ended = self._golden, subject.ended
        if ended is None or (ended.value == golden.ended and subject.exit_code == golden.exit_code):
            return None
        if ended is Ended.DEBUG_EXIT:
            wanted = "none" if golden.exit_code is None else golden.exit_code
            return Verdict(Outcome.DETECTED, f"exit code {subject.exit_code}, not {wanted}")
        return Verdict(Outcome.CRASH, f"the guest ended: {ended.value}")

    def _texts_found(self, subject: Subject) -> Verdict | None:
        text = console_text(subject.said, subject.tail)
        scenario = self._golden.scenario
        for outcome, words in ((Outcome.CRASH, scenario.crash), (Outcome.DETECTED, scenario.detected)):
            for word in words:
                if text.count(word) > self._texts[word]:
                    return Verdict(outcome, f"the console says {word.strip()!r}")
        return None

    def _counted(self, said: Iterable[Said]) -> list[Said]:
        """Without what may differ."""
        return [each for each in said if each.port != CONSOLE or not self._is_ignored(each.data)]

    def _is_ignored(self, line: bytes) -> bool:
        text = line.decode("utf-8", "replace")
        return any(pattern.search(text) for pattern in self._ignore)


def console_text(said: Iterable[Said], tail: bytes) -> str:
    """Everything that was said on the console."""
    lines = b"".join(each.data for each in said if each.port == CONSOLE)
    return (lines + tail).decode("utf-8", "replace")


def shown(data: bytes) -> str:
    """An output in a few characters."""
    if not data:
        return "nothing more"
    text = data.decode("utf-8", "replace").rstrip("\r\n")
    if not text.isprintable():
        text = data.hex()
    return repr(text) if len(text) <= SHOWN_MAX else repr(text[: SHOWN_MAX - 3] + "...")


def _on_ports(said: Iterable[Said], ports: Iterable[str]) -> dict[str, list[Said]]:
    found: dict[str, list[Said]] = {port: [] for port in ports}
    for each in said:
        if each.port in found:
            found[each.port].append(each)
    return found
