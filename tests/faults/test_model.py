"""The fault model: what cannot be, what bits become, how delays are drawn, and trials as text."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given

from colo.faults import text
from colo.faults.bases import Effect
from colo.faults.delay import EXPONENTIAL_MAX, PARETO_MAX, Distribution
from colo.faults.fields import hints, words
from colo.faults.model import (
    KINDS,
    TRIGGERS,
    ArbiterFault,
    AtAddress,
    AtInstruction,
    AtStep,
    AtText,
    AtTime,
    ClockDrift,
    ClockJump,
    DataFault,
    Delay,
    DiskFault,
    FaultError,
    InstructionFault,
    Intermittent,
    LinkFault,
    LostInterrupt,
    NodeFault,
    RegisterFault,
    Trial,
)
from colo.faults.strategies import trials

SOON = AtTime(ns=5)
TWICE = Intermittent(period_ns=10, times=2)

WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: AtTime(ns=-1), "ns: found -1, expected a whole number from 0 to 2^62-1 (virtual nanoseconds)"),
    (
        lambda: AtTime(ns=True),
        "ns: found True, expected a whole number from 0 to 2^62-1 (virtual nanoseconds)",
    ),
    (
        lambda: AtInstruction(count=1, node="a b"),
        "node: found 'a b', expected a name of letters, digits and _.:/-, of at most 64 characters",
    ),
    (lambda: AtText(text=""), "text: found '', expected some text, of at most 256 characters"),
    (
        lambda: RegisterFault(when=SOON, register="eax", mask=1),
        (
            "register: found 'eax', expected a 64-bit register: rax ... r15, rip, rflags, cr0 ..., "
            "of at most 8 characters"
        ),
    ),
    (
        lambda: RegisterFault(when=SOON, register="rax", mask=1 << 64),
        "mask: found 18446744073709551616, expected a whole number from 1 to 2^64-1 (the bits that change)",
    ),
    (
        lambda: RegisterFault(when=SOON, register="rax", mask=1, value=1),
        "value: found 0x1, expected no value with 'toggle'; only overwrite has one",
    ),
    (
        lambda: RegisterFault(when=SOON, register="rax", mask=1, value=2, operation="overwrite"),
        "value: found 0x2, expected bits within the mask 0x1; bits outside the mask do not change",
    ),
    (
        lambda: RegisterFault(when=SOON, register="rax", mask=1, persistence="permanent"),
        (
            "persistence: found 'permanent', expected something else with 'toggle'; "
            "a stuck bit is set0, set1 or overwrite"
        ),
    ),
    (
        lambda: DataFault(when=SOON, address=0, width=2, mask=0x10000),
        "mask: found 0x10000, expected bits of 2 bytes; widen width or narrow the mask",
    ),
    (
        lambda: ClockJump(when=SOON, by_ns=5, persistence="permanent"),
        (
            "persistence: found 'permanent', expected transient or intermittent for this kind; "
            "it cannot last so long"
        ),
    ),
    (
        lambda: ClockJump(when=SOON, by_ns=0),
        "by_ns: found 0, expected a jump; give nanoseconds, negative for back",
    ),
    (
        lambda: ClockDrift(when=SOON, ppm=5),
        'for_ns: found none, expected how long it lasts; or persistence = "permanent"',
    ),
    (
        lambda: ClockDrift(when=SOON, ppm=5, for_ns=11, persistence=TWICE),
        "for_ns: found 11, expected at most the period, 10; it would begin again before it ends",
    ),
    (
        lambda: LostInterrupt(when=SOON),
        "line: found neither of line and vector, expected one of them; say which interrupt",
    ),
    (
        lambda: LostInterrupt(when=SOON, line=1, vector=32),
        "line: found both of line and vector, expected one of them; say which interrupt",
    ),
    (
        lambda: LostInterrupt(when=SOON, line=1, times=2, persistence="permanent"),
        "times: found 2, expected none with 'permanent'; leave one of them out",
    ),
    (
        lambda: LinkFault(when=SOON, effect="drop", bits=2),
        "bits: found 2, expected no bits with the effect 'drop'; it belongs to corrupt",
    ),
    (
        lambda: LinkFault(when=SOON, effect="bandwidth", for_ns=5),
        "bytes_per_s: found none, expected bytes_per_s with the effect 'bandwidth'; say how much",
    ),
    (
        lambda: LinkFault(when=SOON, effect="drop", times=2, for_ns=5),
        "times: found 2, expected either a count or a duration; leave one of them out",
    ),
    (
        lambda: LinkFault(when=SOON, effect="partition"),
        'for_ns: found none, expected how long it lasts; or persistence = "permanent"',
    ),
    (
        lambda: LinkFault(when=SOON, effect="drop", probability=float("nan")),
        "probability: found nan, expected a number from 0 to 1",
    ),
    (
        lambda: NodeFault(when=SOON, effect="pause", for_ns=3, persistence="permanent"),
        "for_ns: found 3, expected none with 'permanent'; leave one of them out",
    ),
    (
        lambda: NodeFault(when=SOON, effect="kill", persistence=TWICE),
        "persistence: found 'intermittent', expected transient for this kind; it cannot last so long",
    ),
    (
        lambda: NodeFault(when=SOON, effect="slow", for_ns=3),
        "factor: found 1.0, expected more than 1; how many times slower",
    ),
    (
        lambda: ArbiterFault(when=SOON, effect="slow", for_ns=3),
        "delay: found none, expected delay with the effect 'slow'; say how much",
    ),
    (
        lambda: Delay(ns=5, spread_ns=1),
        (
            "spread_ns: found 1, expected no spread_ns with the distribution 'fixed'; "
            'leave it out, or use "uniform" or "normal"'
        ),
    ),
    (lambda: Trial(seed=-1), "seed: found -1, expected a whole number from 0 to 2^64-1"),
    (
        lambda: Trial(seed=1, faults=(ClockJump(when=SOON, by_ns=1),) * 65),
        "faults: found 65, expected at most 64; make more trials",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_makes_no_sense_cannot_be_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(FaultError) as caught:
        make()
    assert str(caught.value) == message


def test_one_of_each_kind_and_trigger() -> None:
    """One of every kind and trigger that a plan may have."""
    made = [
        RegisterFault(when=AtInstruction(count=0), register="rflags", mask=1, operation="set1"),
        DataFault(
            when=AtAddress(address=0x1000, hits=3), address=0x2000, space="physical", width=1, mask=0x80
        ),
        InstructionFault(when=SOON, mask=0xFF, value=0x90, operation="overwrite"),
        ClockJump(when=AtText(text="login:"), by_ns=-1),
        ClockDrift(when=SOON, ppm=-100, persistence="permanent"),
        LostInterrupt(when=SOON, line=0, times=3),
        LinkFault(when=AtStep(step="VmstateReceived", node="primary"), effect="half-open", for_ns=1),
        DiskFault(when=SOON, effect="misdirected", by_sectors=8),
        NodeFault(when=SOON, effect="restart", for_ns=5),
        ArbiterFault(when=SOON, effect="wrong", persistence="permanent"),
    ]
    assert [type(fault) for fault in made] == list(KINDS.values())
    assert {type(fault.when) for fault in made} == set(TRIGGERS.values())


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if issubclass(kind, Effect)])
def test_each_effect_says_which_parameters_it_has(kind: type[Effect]) -> None:
    assert set(kind.uses) == set(words(hints(kind)["effect"]))
    assert set().union(*kind.uses.values()) <= set(kind.__struct_fields__)
    assert kind.conditions <= set(kind.uses)
    assert all(parameter in kind.uses[effect] for effect, parameter in kind.needs.items())
    assert all("for_ns" in kind.uses[effect] for effect in kind.conditions)


@pytest.mark.parametrize(
    ("operation", "value", "after"),
    [("set0", 0, 0b1000), ("set1", 0, 0b1110), ("toggle", 0, 0b1100), ("overwrite", 0b0100, 0b1100)],
)
def test_what_becomes_of_bits(operation: Any, value: int, after: int) -> None:
    fault = RegisterFault(when=SOON, register="rax", mask=0b0110, operation=operation, value=value)
    assert fault.apply(0b1010) == after


DRAWN: list[tuple[Distribution, int, list[int]]] = [
    ("fixed", 0, [1000, 1000, 1000, 1000]),
    ("uniform", 100, [1001, 1028, 909, 1081]),
    ("normal", 100, [1087, 916, 1058, 1004]),
    ("exponential", 0, [397, 37, 1847, 559]),
    ("pareto", 0, [1585, 1409, 5181, 1188]),
]


@pytest.mark.parametrize(("distribution", "spread_ns", "first"), DRAWN)
def test_delays_are_the_same_everywhere(distribution: Distribution, spread_ns: int, first: list[int]) -> None:
    delay = Delay(ns=1000, spread_ns=spread_ns, distribution=distribution)
    source = random.Random("a seed")
    assert [delay.draw(source) for _ in range(4)] == first


def sample(delay: Delay) -> list[int]:
    source = random.Random("many")
    return sorted(delay.draw(source) for _ in range(20_000))


def test_distributions_are_what_their_names_say() -> None:
    """Against the quantiles of the distributions; 20,000 draws are within 3 % of them."""
    normal = sample(Delay(ns=100_000, spread_ns=10_000, distribution="normal"))
    assert normal[10_000] == pytest.approx(100_000, rel=0.03)
    assert normal[16_827] == pytest.approx(110_000, rel=0.03)  # one deviation: 84.13 %
    assert normal[19_545] == pytest.approx(120_000, rel=0.03)
    exponential = sample(Delay(ns=100_000, distribution="exponential"))
    assert exponential[10_000] == pytest.approx(69_315, rel=0.03)  # ln 2
    assert exponential[18_000] == pytest.approx(230_259, rel=0.03)  # ln 10
    assert exponential[-1] <= 100_000 * EXPONENTIAL_MAX
    pareto = sample(Delay(ns=100_000, distribution="pareto"))
    assert pareto[0] >= 100_000
    assert pareto[10_000] == pytest.approx(141_421, rel=0.03)  # the root of 2
    assert pareto[15_000] == pytest.approx(200_000, rel=0.03)
    assert pareto[-1] <= 100_000 * PARETO_MAX
    uniform = sample(Delay(ns=100, spread_ns=200, distribution="uniform"))
    assert (uniform[0], uniform[-1]) == (0, 300)


@given(trials())
def test_a_trial_is_the_same_after_being_written_and_read(trial: Trial) -> None:
    assert text.from_json(text.to_json(trial)) == trial
    assert text.from_toml(text.to_toml(trial)) == trial
    assert msgspec.json.decode(msgspec.json.encode(trial), type=Trial) == trial
    assert "\n" not in text.to_json(trial)
    assert tomllib.loads(text.to_toml(trial))["seed"] == trial.seed


def test_a_trial_is_written_without_what_is_as_by_default() -> None:
    fault = RegisterFault(when=AtInstruction(count=81_234), register="rbx", mask=0x8000)
    trial = Trial(seed=7, faults=(fault, NodeFault(when=SOON, effect="kill", target="primary")))
    assert text.to_toml(trial) == (
        'seed = 7\n\n[[fault]]\nkind = "register"\nwhen = { at = "instruction", count = 81234 }\n'
        'mask = 0x8000\nregister = "rbx"\n\n'
        '[[fault]]\nkind = "node"\nwhen = { at = "time", ns = 5 }\ntarget = "primary"\neffect = "kill"\n'
    )


@pytest.mark.parametrize(
    ("given_text", "message"),
    [
        ("{", "trial: found no JSON (Input data was truncated), expected a trial as to_json writes it"),
        ("[]", "trial: found [], expected a table"),
        ('{"seed": 1, "faults": []}', ("trial: faults: found an unknown key, expected one of seed, fault; "
         "did you mean fault?")),
        ('{"fault": 1}', "trial: fault: found 1, expected a list of faults"),
        ('{"seed": "a"}', "trial: seed: found 'a', expected a whole number from 0 to 2^64-1"),
        ('{"fault": [{"kind": "clock-jump", "by_ns": 0, "when": {"at": "time", "ns": 1}}]}',
         "trial: fault[0].by_ns: found 0, expected a jump; give nanoseconds, negative for back"),
        ('{"fault": [{"kind": "clock-jump", "by_ns": "1..2", "when": {"at": "time", "ns": 1}}]}',
         "trial: fault[0].by_ns: found a choice, expected one value; a plan has choices, a trial has none"),
        ('{"fault": [{"kind": "clock-jump", "by_ns": 1, "when": {"at": "time", "ns": "*"}}]}',
         "trial: fault[0].when.ns: found a choice, expected one value; a plan has choices, a trial has none"),
        ("[" * 100_000, "trial: found no JSON (maximum recursion depth exceeded"),
        (" " * 300_000, "trial: found 300000 characters, expected at most 262144"),
        ('{"seed": 1e400}', "trial: found no JSON (Number out of range"),
    ],
)  # fmt: skip
def test_what_is_no_trial_is_refused(given_text: str, message: str) -> None:
    with pytest.raises(FaultError) as caught:
        text.from_json(given_text)
    assert str(caught.value).startswith(message)
