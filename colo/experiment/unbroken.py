"""Beginnings and ends that are carried out whole, even if whoever wants them is told to stop meanwhile.

Ctrl-C may come while a pair starts: some of its processes are there, others not yet, and nobody has a list
of them.  So the start is awaited, and what it made is ended in order; that takes a second or two.  Who is
told a second time does not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from colo.experiment.subject import Subject

T = TypeVar("T")


async def whole(work: Awaitable[T]) -> T:
    """Do it to its end; cancelled meanwhile, be so afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class Unbroken:
    """A subject whose start and end are whole."""

    def __init__(self, inner: Subject) -> None:
        self._inner = inner

    async def __aenter__(self) -> Subject:
        starting = asyncio.ensure_future(self._inner.__aenter__())
        try:
            await whole(starting)
        except asyncio.CancelledError:
            if starting.done() and not starting.cancelled() and starting.exception() is None:
                await whole(self._inner.__aexit__())
            raise
        return self._inner

    async def __aexit__(self, *_: object) -> None:
        await whole(self._inner.__aexit__())
