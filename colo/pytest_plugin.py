"""pytest: tests of guests, pairs and worlds under faults that replay.

The plugin is there when colo-vmm is installed (entry point ``pytest11``).  A test asks for a fixture, and
says with the marker what it is to be::

    @pytest.mark.colo(guest="redis", policy="colo", faults="plan.toml", seeds=20)
    def test_survives(pair):
        ...

Fixtures, each new for every run:

``machine``    a :class:`vmm.api.Pc`: the guest, booted, alone; a Linux is at its shell's prompt
``world``      a :class:`colo.sim.world.World` with the run's seed: put machines, pairs and clients into it
``pair``       a :class:`colo.sim.pair.SimPair`, protected; ``pair.world`` is the world that it is in
``wire``       a :class:`colo.checkers.wire.Wire` that judges all that passes the world's switch
``history``    a :class:`colo.checkers.history.History` for the clients of the test
``colo_seed``  the seed of this run, for what the test draws itself

Keywords of the marker:

``guest``      a name (``colo guest list``), or a directory beside the test with a ``guest.toml``
``policy``     of a pair: ``colo`` (unless said otherwise), ``lockstep`` or ``periodic``
``faults``     a plan file beside the test, or a fault, table or list of them (:mod:`colo.faults.plan`)
               times and counts of triggers are counted from where the test's body begins
``seeds``      how many runs, or a list of seeds; each run is a test of its own, ``test_x[seed7]``
``ram_mib``, ``append``   other than the guest's own

Options:

``--colo-seed S``       the first seed; ``random`` draws one and prints it
``--colo-runs N``       how many runs each test has, whatever its marker says
``--colo-artifacts D``  where the files of failed tests go (unless said otherwise: pytest's cache)
``--colo-shrink N``     how often a test that failed under faults may be run again (60; 0: not)

**Boots.**  A guest is built and booted once, and resumed from its snapshot in a tenth of a second; the
snapshot is kept for later sessions.  Workers of pytest-xdist agree on who boots; the others wait.  A guest
that cannot be built here (no network, no apt) skips the test with the reason.

**Failures.**  A section ``colo`` of the report has seed, faults, last events, the directory with the files
(consoles, events, captures, histories, the trial) and the command that runs it again.  A test with faults is
then run again with fewer and smaller ones, and the smallest trial that fails in the same way is shown, too;
that is possible when its outcome depends on seed and faults alone.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from colo.checkers.history import History
    from colo.checkers.wire import Wire
    from colo.sim.pair import SimPair
    from colo.sim.world import World
    from colo.testing.failure import Run
    from vmm.api import Pc

MARKER_LINE = (
    "colo(guest, policy, faults, seeds, ram_mib, append): what the fixtures machine, pair and world are"
)
SEED_BITS = 32
SHRINK_RUNS = 60
"""A run of a pair with a real guest takes seconds; whoever wants the very smallest has campaigns."""
_RUN: pytest.StashKey[Run] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("colo", "guests, pairs and worlds under faults (colo-vmm)")
    group.addoption("--colo-seed", metavar="S", type=_seed, help="first seed of every test, or `random`")
    group.addoption("--colo-runs", metavar="N", type=_runs, help="runs of every test, with seeds S, S+1, ...")
    group.addoption("--colo-artifacts", metavar="DIR", help="where files of failed tests are written")
    group.addoption(
        "--colo-shrink",
        metavar="N",
        type=_reruns,
        default=SHRINK_RUNS,
        help="how often a test that failed under faults is run again, for smaller faults; 0: not",
    )


def _seed(text: str) -> int:
    # Drawn when the options are read: workers of a parallel run are given the number.
    return random.SystemRandom().getrandbits(SEED_BITS) if text == "random" else _number(text, 0)


def _runs(text: str) -> int:
    return _number(text, 1)


def _reruns(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    import argparse

    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER_LINE)


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("colo_seed")
    return None if seed is None else f"colo: first seed {seed}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "colo_seed" not in metafunc.fixturenames:
        return
    from colo.testing.asked import asked, seeds_of

    option = metafunc.config.getoption
    found = asked(metafunc.definition, metafunc.definition.path.parent)
    seeds = seeds_of(found, option("colo_seed"), option("colo_runs"))
    metafunc.parametrize("colo_seed", seeds, ids=[f"seed{seed}" for seed in seeds])


@pytest.fixture
def colo_seed() -> int:
    """The seed of this run."""
    raise AssertionError("every test that asks for it is parametrized with it")


@pytest.fixture
def _colo_run(request: pytest.FixtureRequest, colo_seed: int) -> Run:
    from colo.testing.again import TRIAL
    from colo.testing.asked import asked, trial_of
    from colo.testing.failure import Run, directory_name

    item = request.node
    found = asked(item, item.path.parent)
    trial = item.stash.get(TRIAL, None) or trial_of(found, colo_seed, item.path.parent)
    run = Run(item.nodeid, found, trial, _artifacts(item.config) / directory_name(item.nodeid))
    item.stash[_RUN] = run
    return run


def _artifacts(config: pytest.Config) -> Path:
    chosen = config.getoption("colo_artifacts")
    if chosen is None and config.pluginmanager.has_plugin("cacheprovider"):
        return config.rootpath / str(config.getini("cache_dir")) / "colo"
    return config.invocation_params.dir / str(chosen or "colo-artifacts")


@pytest.fixture
def machine(_colo_run: Run, tmp_path: Path) -> Iterator[Pc]:
    """The booted guest of the marker, alone."""
    from colo.testing.subjects import NoGuest, machine

    try:
        with machine(_colo_run.asked, _colo_run.trial, tmp_path, _colo_run.witnesses) as pc:
            yield pc
    except NoGuest as exc:
        pytest.skip(str(exc))


@pytest.fixture
def world(request: pytest.FixtureRequest, _colo_run: Run) -> Iterator[World]:
    """A world with the run's seed and faults."""
    from colo.testing import subjects

    with subjects.world(_colo_run.trial, _colo_run.witnesses) as made:
        if "pair" not in request.fixturenames:
            made.inject(*_colo_run.trial.faults)
        yield made


@pytest.fixture
def wire(world: World) -> Wire:
    """The judge of the world's TCP, from the beginning; its verdict is for the end of the test."""
    from colo.checkers.wire import Wire
    from colo.testing.subjects import at_switch

    judge = Wire()
    at_switch(world, judge.frame)
    return judge


@pytest.fixture
def history(_colo_run: Run) -> History:
    """For clients to write down what they ask and are told."""
    from colo.checkers.history import History
    from colo.testing.subjects import HistoryWitness

    made = History()
    _colo_run.witnesses.append(HistoryWitness(made))
    return made


@pytest.fixture
def pair(_colo_run: Run, world: World) -> SimPair:
    """A protected pair of the marker's guest, in ``world``."""
    from colo.testing.subjects import NoGuest, pair

    try:
        return pair(_colo_run.asked, _colo_run.trial, world)
    except NoGuest as exc:
        pytest.skip(str(exc))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    run = item.stash.get(_RUN, None)
    if run is None or report.passed or report.skipped or report.when == "teardown":
        return report
    from colo.testing.again import TRIAL
    from colo.testing.failure import TITLE, explain

    if TRIAL not in item.stash:
        report.sections.append((TITLE, explain(run)))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """The usual one; and after a failure under faults the search for the smallest ones."""
    if "_colo_run" not in getattr(item, "fixturenames", ()):
        return None
    from _pytest.runner import runtestprotocol

    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    _shrink(item, reports)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _shrink(item: pytest.Item, reports: list[pytest.TestReport]) -> None:
    from colo.testing.again import shrink
    from colo.testing.failure import TITLE

    runs = item.config.getoption("colo_shrink")
    if not runs or item.config.getoption("usepdb"):
        return  # who looks into a failure does not want to be asked about others
    run = item.stash.get(_RUN, None)
    failed = [report for report in reports if report.when == "call" and report.failed]
    if run is not None and run.trial.faults and failed:
        failed[0].sections.append((f"{TITLE}: smallest", shrink(item, run, failed[0], runs)))
