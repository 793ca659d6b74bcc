"""The promise-suite is itself tested: each cheat is a device that breaks one promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.devices import promises, test_promises
from tests.devices.promises import Rig
from vmm.clock import ManualClock
from vmm.device import Clock, Line
from vmm.state import State, u8


class HonestState(State):
    value: u8 = 0


class Honest:
    """One register; its lowest bit drives a line.  Each cheat changes one method of it."""

    __slots__ = ("_clock", "_hidden", "_line", "state")

    def __init__(self, line: Line, clock: Clock) -> None:
        self.state = HonestState()
        self._line = line
        self._clock = clock
        self._hidden: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return self.state.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.state.value = value & 0xFF
        self.restored()

    def reset(self) -> None:
        self.state = HonestState()
        self.restored()

    def restored(self) -> None:
        self._line.set(bool(self.state.value & 1))


class HiddenState(Honest):
    __slots__ = ()

    def write(self, offset: int, size: int, value: int) -> None:
        self._hidden.append(value)

    def read(self, offset: int, size: int) -> int:
        return len(self._hidden) & 0xFF


class ForgetsToReset(Honest):
    __slots__ = ()

    def reset(self) -> None:
        self.restored()


class ForgetsLineAfterRestore(Honest):
    __slots__ = ()

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        self._line.set(bool(value & 1))

    def restored(self) -> None: ...


class RestoresTwice(Honest):
    __slots__ = ()

    def restored(self) -> None:
        self.state.value = self.state.value + 2 & 0xFF
        super().restored()


class Stray(Honest):
    """No ``__slots__``: anything may be set."""


class TooWide(Honest):
    __slots__ = ()

    def read(self, offset: int, size: int) -> int:
        return 0x1FF


class Raises(Honest):
    __slots__ = ()

    def read(self, offset: int, size: int) -> int:
        assert offset >= 0
        return 0


class Rebinds(Honest):
    __slots__ = ()

    def write(self, offset: int, size: int, value: int) -> None:
        self._hidden = []


CHEATS: list[tuple[type[Honest], Callable[..., None], tuple[Any, ...]]] = [
    (ForgetsToReset, test_promises.test_reset_is_a_fresh_device, ()),
    (HiddenState, test_promises.test_restored_twin_is_indistinguishable, (3,)),
    (ForgetsLineAfterRestore, test_promises.test_reset_is_a_fresh_device, ()),
    (RestoresTwice, test_promises.test_restoring_twice_is_restoring_once, ()),
    (Stray, test_promises.test_no_stray_attribute_can_exist, ()),
    (TooWide, test_promises.test_any_offset_and_size_is_answered_in_range, ()),
    (Raises, test_promises.test_any_offset_and_size_is_answered_in_range, ()),
    (Rebinds, test_promises.test_wiring_stays_what_it_was, ()),
    (HiddenState, test_promises.test_wiring_stays_what_it_was, ()),
]


def _register(kind: type[Honest], monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(clock: ManualClock) -> Rig:
        rig = Rig(clock)
        rig.device = kind(rig.line("line"), clock)
        rig.views = {"port": (rig.device, 1)}
        return rig

    monkeypatch.setitem(promises.RIGS, "cheat", factory)


@pytest.mark.parametrize(("kind", "promise", "arguments"), CHEATS)
def test_cheat_is_caught(
    kind: type[Honest],
    promise: Callable[..., None],
    arguments: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _register(kind, monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        promise("cheat", *arguments)


@pytest.mark.parametrize(("promise", "arguments"), [(promise, arguments) for _, promise, arguments in CHEATS])
def test_honest_device_passes(
    promise: Callable[..., None], arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(Honest, monkeypatch)
    promise("cheat", *arguments)
