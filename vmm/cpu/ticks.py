"""The clock's arithmetic, natively (:mod:`vmm.cpu.control` says what the words mean)."""

from __future__ import annotations

from vmm.cpu import layout
from vmm.cpu.control import (
    BASE,
    BUDGET,
    CLOSE_LOOKS,
    DRIFT_FROM,
    DRIFT_PPM,
    EXACT,
    NOT_CODE,
    QUANTUM,
    STOP_AT,
    STOP_AT_NS,
    USUAL_QUANTUM,
)
from vmm.cpu.native import load64, native, store64

_MILLION = 1_000_000


@native
def count(control: int, counter: int) -> None:
    """One more of something."""
    store64(control + counter, load64(control + counter) + 1)


@native
def now(control: int) -> int:
    """Virtual time, charges of the running block included."""
    return load64(control + BASE) - load64(load64(control + BUDGET))


@native
def charge_ns(control: int, cost: int) -> None:
    """Let virtual time pass that no instruction takes."""
    budget = load64(control + BUDGET)
    store64(budget, load64(budget) - cost)
    store64(control + NOT_CODE, load64(control + NOT_CODE) + cost)


@native
def until_stop(control: int, at: int) -> int:
    """Nanoseconds from ``at`` to the nearer of the two places where somebody wants to stop exactly."""
    code = load64(control + STOP_AT) - (at - load64(control + NOT_CODE))
    return min(code, load64(control + STOP_AT_NS) - at)


@native
def count_close_look(control: int) -> None:
    """One of the looks that are closer than usual."""
    left = load64(control + CLOSE_LOOKS)
    if left > 0:
        store64(control + CLOSE_LOOKS, left - 1)
        if left == 1:
            store64(control + QUANTUM, load64(control + USUAL_QUANTUM))


@native
def look_at(control: int, time: int) -> None:
    """Look again at ``time`` or a quantum from now (ControlBlock.look_at, natively)."""
    at = now(control)
    base = min(time, at + load64(control + QUANTUM))
    if load64(control + EXACT) != 0:
        base = min(base, at + until_stop(control, at))
    store64(control + BASE, base)
    store64(load64(control + BUDGET), base - at)


@native
def time_stamp(control: int, env: int) -> int:
    """The time stamp counter: virtual time, what the guest added to it, and how far it has drifted."""
    at = now(control)
    value = at + load64(env + layout.TSC_OFFSET)
    ppm = load64(control + DRIFT_PPM)
    if ppm != 0:
        span = at - load64(control + DRIFT_FROM)
        value += span // _MILLION * ppm + span % _MILLION * ppm // _MILLION
    return value
