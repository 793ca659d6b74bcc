"""One process boots, the others wait, and not for ever."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from colo.errors import ColoError
from colo.testing import booted
from tests.plugin.conftest import CACHE

pytest_plugins = ["pytester"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, but for the compiled callbacks, which take a while to make."""
    made = tmp_path / "cache"
    made.mkdir()
    for path in CACHE.glob("callbacks-*"):
        (made / path.name).symlink_to(path)
    monkeypatch.setenv("COLO_CACHE", str(made))
    return made


def test_a_turn_is_given_back(cache: Path) -> None:
    with booted.turn("counter"), booted.turn("another"):
        pass
    with booted.turn("counter", wait_max_s=0):
        pass


def test_who_waits_too_long_is_told_for_what(cache: Path) -> None:
    with (
        booted.turn("counter"),
        pytest.raises(
            ColoError, match=r"guest counter: another process has been booting it for 0 s and holds"
        ),
        booted.turn("counter", wait_max_s=0),
    ):
        pass


def _hold_and_die(ready: int) -> None:
    taken = booted.turn("counter")
    taken.__enter__()
    os.write(ready, b"x")
    os._exit(9)


def test_a_dead_process_holds_nothing(cache: Path) -> None:
    reading, writing = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(writing,))
    child.start()
    assert os.read(reading, 1) == b"x"
    child.join()
    with booted.turn("counter", wait_max_s=0):
        pass
    os.close(reading)
    os.close(writing)


def test_the_next_one_goes_on_when_the_turn_is_over(cache: Path) -> None:
    """The lock is the kernel's: somebody else may hold it without knowing of us."""
    with booted.turn("counter"):
        pass
    (path,) = (cache / "locks").iterdir()
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ColoError), booted.turn("counter", wait_max_s=0):
            pass
        fcntl.flock(file, fcntl.LOCK_UN)
        with booted.turn("counter", wait_max_s=0):
            pass


def test_workers_boot_a_guest_once(cache: Path, pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist", reason="pip install pytest-xdist")
    pytester.makeconftest(
        "from pathlib import Path\n"
        "from colo.pair import warm\n"
        "boot = warm._boot\n"
        "def counted(*arguments):\n"
        "    with Path(__file__).with_name('boots').open('a') as file: file.write('x')\n"
        "    boot(*arguments)\n"
        "warm._boot = counted\n"
    )
    pytester.makepyfile(
        "import pytest\n"
        '@pytest.mark.colo(guest="counter", seeds=4)\n'
        "def test_it(machine, colo_seed, worker_id):\n"
        "    assert worker_id.startswith('gw')\n"
        "    machine.expect('second 1 rounds 100', within_s=2)\n"
        "    assert colo_seed != 3\n"
    )
    result = pytester.runpytest_subprocess("-n", "2", "--colo-artifacts", "here")
    result.assert_outcomes(passed=3, failed=1)
    assert (pytester.path / "boots").read_text() == "x"
    result.stdout.fnmatch_lines(["*- colo -*", "seed 3, guest counter", "again: *seed3* --colo-seed 3 *"])
    assert [each.name for each in (pytester.path / "here").iterdir()] == [
        "test_workers_boot_a_guest_once.py-test_it-seed3"
    ]
