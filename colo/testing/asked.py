"""What a test asks for with ``@pytest.mark.colo(...)``, checked, and the seeds of its runs.

A marker of a class or a module holds for the tests in it; what is nearer to the test wins, word by word.
Mistakes are usage errors: pytest names the test and ends before anything has run.

Seeds.  ``seeds=5`` makes five runs with seeds ``S`` to ``S + 4``, where ``S`` is 0 or ``--colo-seed``;
``seeds=[3, 17]`` makes those two.  ``--colo-runs N`` makes N runs counted from the first seed, whatever the
marker says.  So ``--colo-seed X --colo-runs 1`` is run X alone, which is what a failure prints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from colo.faults.model import Trial

MARKER = "colo"
RUNS_MAX = 100_000
SEED_MAX = (1 << 63) - 1
POLICIES = ("colo", "lockstep", "periodic")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The keywords of the marker."""

    guest: str = ""
    """A name (``colo guest list``), or a directory with a guest.toml, seen from the test's own."""
    policy: str = "colo"
    faults: Any = ()
    """Faults (:mod:`colo.faults.model`), tables as in a plan, or the name of a plan file beside the test."""
    seeds: int | Sequence[int] = 1
    ram_mib: int | None = None
    append: str | None = None
    """More words for the guest's kernel."""


def asked(node: pytest.Item, directory: Path) -> Asked:
    """What the markers of ``node`` say; names of files are seen from ``directory``."""
    words: dict[str, Any] = {}
    for mark in node.iter_markers(MARKER):
        if mark.args:
            raise _usage(node, f"{mark.args[0]!r} has no name: expected keywords, guest=... and so on")
        for name in mark.kwargs:
            if name not in Asked.__struct_fields__:
                raise _usage(node, f"unknown keyword {name}: {_advice(name, Asked.__struct_fields__)}")
        words = {**mark.kwargs, **words}
    found = Asked(**words)
    _check(node, found)
    if found.guest:
        found = msgspec.structs.replace(found, guest=guest_name(found.guest, directory))
    return found


def _check(node: pytest.Item, found: Asked) -> None:
    if not _makes_sense(found.seeds):
        raise _usage(
            node, f"seeds = {found.seeds!r}: expected how many (1 to {RUNS_MAX}), or a list of seeds"
        )
    if found.policy not in POLICIES:
        raise _usage(node, f"policy = {found.policy!r}: {_advice(str(found.policy), POLICIES)}")
    if not isinstance(found.guest, str):
        raise _usage(node, f"guest = {found.guest!r}: expected a name (colo guest list) or a directory")


def _makes_sense(seeds: Any) -> bool:
    if isinstance(seeds, int):
        return 1 <= seeds <= RUNS_MAX
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        return False
    listed = [*seeds]
    return bool(listed) and all(type(each) is int and 0 <= each <= SEED_MAX for each in listed)


def guest_name(name: str, directory: Path) -> str:
    """The guest's name for the machine: a path when ``name`` is a directory with a guest.toml."""
    own = directory / name
    return str(own.resolve()) if (own / "guest.toml").is_file() else name


def seeds_of(found: Asked, first: int | None, runs: int | None) -> list[int]:
    """The seeds of a test's runs, given what the command line says."""
    if isinstance(found.seeds, int):
        start, count = 0, found.seeds
    elif first is None and runs is None:
        return [*found.seeds]
    else:
        start, count = next(iter(found.seeds)), len(found.seeds)
    start = start if first is None else first
    return [*range(start, start + (runs or count))]


def trial_of(found: Asked, seed: int, directory: Path) -> Trial:
    """The run with this seed and its faults; PlanError or FaultError for what makes no sense.

    Faults with ranges and distributions are drawn as in the first trial of a plan with this seed.  A wildcard
    needs a golden run, which only a campaign makes, and is refused.
    """
    from colo.faults import expand, plan
    from colo.faults.golden import Golden
    from colo.faults.model import Trial

    if not found.faults:
        return Trial(seed=seed)
    if isinstance(found.faults, str | Path):
        wanted = plan.load(directory / found.faults)
    else:
        listed = [*found.faults] if isinstance(found.faults, list | tuple) else [found.faults]
        wanted = plan.plan(fault=listed)
    wanted = replace(wanted, head=msgspec.structs.replace(wanted.head, seed=seed))
    return Trial(seed=seed, faults=expand.trial(wanted, Golden(end_ns=0), 0).faults)


def _usage(node: pytest.Item, what: str) -> pytest.UsageError:
    return pytest.UsageError(f"{node.nodeid}: @pytest.mark.colo: {what}")


def _advice(found: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(found, known, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"expected one of {', '.join(known)}"
