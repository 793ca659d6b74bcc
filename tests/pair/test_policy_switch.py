"""The policy is changed while clients work: every one to every other one, and then the primary dies."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from colo.life import Life
from colo.policy import POLICIES as RULES
from tests.network.support import needs_root
from tests.pair.history import last, repeated
from tests.pair.nodes import Bench, Node, until
from tests.pair.service import POLICIES, Service, by_policy, campaign

SEED = 7
CAMPAIGN_KILLS = 40
WALK = ("lockstep", "periodic", "colo", "lockstep", "colo", "periodic")
"""After "periodic": each ordered pair once."""
EVIDENCE = {Life.FOLLOW: "log-words", Life.RUN: "inputs-mirrored"}
"""What a status counts under a policy and under no other one."""


def become(primary: Node, policy: str) -> None:
    """Told so, and until the checkpoint with which it begins is committed."""
    primary.execute("migrate-set-parameters", **{"x-policy": policy})
    assert primary.facts["policy"] == policy
    wanted = {EVIDENCE[life] for life in EVIDENCE if life is RULES[policy](None).life}
    until(lambda: evidence(primary) == wanted, f"{policy} does not begin")
    epoch = primary.epoch
    until(lambda: primary.epoch > epoch or not primary.facts["held-frames"], f"{policy} is not committed")


def evidence(primary: Node) -> set[str]:
    return set(EVIDENCE.values()) & set(primary.facts["statistics"])


def test_the_walk_is_complete() -> None:
    steps = set(zip(("periodic", *WALK), WALK, strict=False))
    assert steps == {(one, other) for one in RULES for other in RULES if one != other}


@needs_root
def test_clients_work_through_every_change(serve: Callable[[str], Service]) -> None:
    choice = random.Random(SEED)
    service = serve("kv")
    primary, _ = service.pair(*POLICIES["periodic"])
    service.clients(4)
    for policy in WALK:
        become(primary, policy)
        service.a_while(choice)
    primary.kill()
    service.is_whole()


@pytest.mark.long
@needs_root
def test_a_primary_dies_after_every_change(serve: Callable[[str], Service]) -> None:
    choice = random.Random(SEED)
    service = serve("kv")
    primary, secondary = service.pair(*POLICIES["periodic"])
    service.clients(4)
    for policy in WALK:
        become(primary, policy)
        service.a_while(choice)
        primary.kill()
        service.crowd.go_on()
        primary, secondary = secondary, service.protect_again(secondary, "--policy", policy)
    service.is_whole()
    assert secondary.status == "colo"


@needs_root
def test_changes_that_nobody_waits_for(serve: Callable[[str], Service]) -> None:
    """One after another, faster than checkpoints are made: the last one counts."""
    choice = random.Random(SEED)
    service = serve("redis")
    primary, _ = service.pair(*POLICIES["colo"])
    service.clients(2)
    for policy in WALK * 2:
        primary.execute("migrate-set-parameters", **{"x-policy": policy})
        service.crowd.count_to(service.crowd.replies + choice.randrange(3))
    become(primary, "lockstep")
    service.a_while(choice)
    primary.kill()
    service.is_whole()


@by_policy
def test_a_console_is_one_history_whatever_the_policy(bench: Bench, policy: str) -> None:
    """A bare guest that says what is known in advance, through all policies before it."""
    primary, secondary = bench.start("a"), bench.incoming("b")
    primary.ready()
    secondary.ready()
    primary.migrate(secondary.link)
    until(lambda: primary.migration == "colo")
    for other in (*WALK, policy) if WALK[-1] != policy else WALK:
        become(primary, other)
        before = last(primary.said)
        until(lambda before=before: last(primary.said) > before)  # type: ignore[misc]
    primary.kill()
    before = last(primary.said)
    until(lambda: last(secondary.said) > before + 2)
    repeated(primary.said, secondary.said)


@pytest.mark.long
@campaign
@needs_root
def test_a_campaign_of_changes(serve: Callable[[str], Service]) -> None:
    """Whatever is under way when the policy changes or a node dies."""
    choice = random.Random(SEED)
    service = serve("kv")
    primary, secondary = service.pair()
    service.clients(8)
    for _ in range(CAMPAIGN_KILLS):
        for _ in range(choice.randrange(4)):
            primary.execute("migrate-set-parameters", **{"x-policy": choice.choice(list(RULES))})
            service.crowd.count_to(service.crowd.replies + choice.randrange(40))
        victim = choice.choice([primary, primary, secondary])
        victim.kill()
        service.crowd.go_on()
        primary = secondary if victim is primary else primary
        secondary = service.protect_again(primary, "--policy", choice.choice(list(RULES)))
    service.is_whole()
