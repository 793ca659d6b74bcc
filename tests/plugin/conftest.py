"""Inner runs of pytest get a home of their own, in which no guest is built and nothing is compiled."""

from __future__ import annotations

import pytest

from vmm.guest.store import cache_directory

CACHE = cache_directory()


@pytest.fixture(autouse=True)
def _the_real_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLO_CACHE", str(CACHE))
