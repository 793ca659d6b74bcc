"""A guest that is not what it should be, in a real secondary: noticed, named, told, and made right again.

Something is changed in the secondary's machine behind everybody's back (:mod:`tests.pair.mischief`), as a
flipped bit or a chip that goes by the host's clock would.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial

import pytest

from tests.cli.command import colo
from tests.pair import mischief
from tests.pair.history import last, repeated
from tests.pair.mischief import PLANT
from tests.pair.nodes import Bench, Node, protect, until
from tests.pair.service import POLICIES
from vmm.machine import Machine


def prepared(bench: Bench, policy: str, act: Callable[[Machine], None]) -> tuple[Node, Node]:
    """In COLO state, and the guest has said something; ``act`` is what PLANT does to the secondary's."""
    primary = bench.start("a", *POLICIES[policy])
    secondary = bench.incoming("b", *POLICIES[policy], mischief=partial(mischief.on_signal, act))
    primary.ready()
    protect(primary, secondary.ready().link)
    before = last(primary.said)
    until(lambda: last(primary.said) > before)
    return primary, secondary


def statistics(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.facts["statistics"]
    return found


def survives(primary: Node, secondary: Node) -> None:
    """Either could still go on: what both say is one history."""
    before = last(primary.said)
    until(lambda: last(primary.said) > before + 2)
    primary.kill()
    before = last(primary.said)
    until(lambda: last(secondary.said) > before + 2)
    repeated(primary.said, secondary.said)


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (mischief.flip_ram, "page 0x5 of RAM"),
        (mischief.flip_chip, "rtc.cmos"),
        (mischief.leak_host_time, "rtc.offset_ns"),
    ],
    ids=["ram", "chip", "host time"],
)
def test_lockstep_finds_and_repairs_it(bench: Bench, act: Callable[[Machine], None], named: str) -> None:
    primary, secondary = prepared(bench, "lockstep", act)
    epoch = primary.epoch
    secondary.signal(PLANT)
    until(lambda: statistics(primary)["divergences"] == 1, "nobody notices")
    until(lambda: primary.epoch > epoch, "nothing repairs it")
    assert secondary.told("departed")["epoch"] == epoch
    told = primary.told("diverged")
    assert named in " ".join([told["what"], *told["first"]])
    shown = json.loads(colo("status", primary.qmp, "--json").out)["nodes"][0]["colo"]["x-node"]["statistics"]
    assert (shown["divergences"], shown["because-divergence"]) == (1, 1)
    survives(primary, secondary)
    assert secondary.told("took-over")["same"]


def test_a_primary_that_dies_before_it_repairs(bench: Bench) -> None:
    """What is left is another guest than the world has heard, and it says so."""
    primary, secondary = prepared(bench, "lockstep", mischief.flip_chip)
    secondary.signal(signal.SIGSTOP)
    stalls = statistics(primary)["stalls"]
    until(lambda: statistics(primary)["stalls"] > stalls, "the primary does not wait")
    secondary.signal(PLANT)
    primary.kill()
    secondary.signal(signal.SIGCONT)
    assert secondary.told("took-over")["same"] is False
    secondary.told("departed")
    until(lambda: last(secondary.said) > last(primary.said))


def test_colo_waits_for_what_differs(bench: Bench) -> None:
    """The secondary's guest says nothing any more: what the primary says goes out by checkpoints."""
    primary, secondary = prepared(bench, "colo", mischief.become_deaf)
    epoch = primary.epoch
    secondary.signal(PLANT)
    until(lambda: primary.epoch > epoch, "nothing repairs it")
    survives(primary, secondary)
