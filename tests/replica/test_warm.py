"""Guests that are booted already: once for each kind, resumed as often as wanted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colo.errors import ColoError
from colo.pair import warm
from tests.machine.support import SECOND
from vmm.errors import GuestBuildError
from vmm.launch import LaunchOptions, launch
from vmm.machine import Ended

NET = "none,offloads"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Booted guests only: what else is in the user's cache takes long to make."""
    monkeypatch.setattr(warm, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache" / warm.DIRECTORY


def test_a_guest_is_booted_once_and_goes_on_from_there(cache: Path) -> None:
    said: list[str] = []
    path = warm.snapshot("udpecho", net=NET, say=said.append)
    assert path.parent == cache
    assert "booting udpecho" in said[-1]
    taken = path.stat().st_mtime_ns
    assert warm.snapshot("udpecho", net=NET, say=said.append) == path
    assert path.stat().st_mtime_ns == taken
    assert len([line for line in said if "booting" in line]) == 1
    assert [each.name for each in cache.iterdir()] == [path.name], "nothing half done is left"
    with launch(LaunchOptions(load=str(path), paced=False)) as launched:
        machine = launched.machine
        (card,) = machine.config.nets
        assert card.offloads, "it can be plugged into a TAP"
        began = machine.clock.now_ns
        assert began > 0
        assert machine.run(began + SECOND) is Ended.TIME


def test_another_size_command_line_or_network_is_another_snapshot(cache: Path) -> None:
    paths = {
        warm.snapshot("counter", net=NET, say=lambda text: None),
        warm.snapshot("counter", net=NET, ram_mib=24, say=lambda text: None),
        warm.snapshot("counter", net=NET, append="mib=1", say=lambda text: None),
        warm.snapshot("counter", net="none", say=lambda text: None),
    }
    assert len(paths) == 4
    assert set(cache.iterdir()) == paths
    sizes = []
    for path in paths:
        with launch(LaunchOptions(load=str(path), paced=False)) as launched:
            sizes.append(launched.machine.config.ram_mib)
    assert sizes.count(24) == 1


def test_a_guest_that_does_not_come_up_is_told_with_its_last_words(cache: Path) -> None:
    with pytest.raises(ColoError, match=r"booting counter until it says .*try it: colo run counter"):
        warm.snapshot("counter", net=NET, append="mib=4000", say=lambda text: None)
    assert list(cache.iterdir()) == []


def test_an_unknown_guest_is_refused_before_anything_is_made(cache: Path) -> None:
    with pytest.raises(GuestBuildError, match="no guest 'nobody'"):
        warm.snapshot("nobody", net=NET, say=lambda text: None)
    assert not cache.exists()


def test_snapshots_of_older_builds_are_forgotten_but_for_a_few(cache: Path) -> None:
    cache.mkdir(parents=True)
    for number in range(7):
        old = cache / f"counter-{number:024x}.snapshot"
        old.write_bytes(b"of an older build")
        os.utime(old, (1000 + number, 1000 + number))
    other = cache / f"udpecho-{0:024x}.snapshot"
    other.write_bytes(b"of another guest")
    os.utime(other, (1, 1))
    made = warm.snapshot("counter", net=NET, say=lambda text: None)
    left = sorted(each.name for each in cache.iterdir())
    assert made.name in left
    assert other.name in left
    assert [name for name in left if name.startswith("counter-0000")] == [
        f"counter-{number:024x}.snapshot" for number in (4, 5, 6)
    ]
