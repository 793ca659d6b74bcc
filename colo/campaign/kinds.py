"""The two kinds of campaigns, of a machine alone and of a world: what differs between them, in one place."""

from __future__ import annotations

from pathlib import Path

import msgspec

from colo.campaign import golden, world
from colo.campaign.fork_server import ForkServer
from colo.campaign.golden import GoldenRun
from colo.campaign.injection import not_before_ns
from colo.campaign.scenario import Scenario
from colo.campaign.scenery import Scenery, WorldRun
from colo.campaign.subject import Say, Subject
from colo.campaign.walker import Walker
from colo.campaign.world import WorldServer
from colo.errors import ColoError
from colo.faults.model import Trial

Run = GoldenRun | WorldRun


def record(scenario: Scenario | Scenery, seed: int, say: Say) -> Run:
    """The golden run; a machine's needs no seed."""
    if isinstance(scenario, Scenery):
        return world.record(scenario, seed, say)
    with Subject(scenario, say) as subject:
        return golden.record(subject)


def policies(run: Run) -> tuple[str, ...]:
    """Of the worlds in which every trial is run, in the plan's order; of a machine alone, just ""."""
    return tuple(each.policy for each in run.worlds) if isinstance(run, WorldRun) else ("",)


def leaves_ns(trial: Trial, run: Run) -> int:
    """When ``trial`` leaves the golden run; a world's leaves it when faults are armed."""
    return not_before_ns(trial, run) if isinstance(run, GoldenRun) else 0


def server(run: Run, wall_limit_s: float, say: Say) -> ForkServer:
    """Who forks its trials."""
    kind = Walker if isinstance(run, GoldenRun) else WorldServer
    return kind(run, wall_limit_s=wall_limit_s, say=say)  # type: ignore[arg-type]


def save(run: Run, path: Path) -> None:
    """Whole or not at all: a campaign may be killed at any moment."""
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.msgpack.encode(run))
    part.rename(path)


def load(path: Path) -> Run:
    """ColoError when that is not a golden run of this build."""
    try:
        found: Run = msgspec.msgpack.decode(path.read_bytes(), type=Run)
    except OSError as exc:
        raise ColoError(f"golden run {path}: {exc.strerror}") from None
    except msgspec.MsgspecError as exc:
        raise ColoError(
            f"golden run {path}: not one of this build: {exc}; make it again, in another directory"
        ) from None
    return found
