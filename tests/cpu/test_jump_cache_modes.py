"""The jump cache in every mode, under a real kernel, and what becomes of an engine that it does not know."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

import vmm
from tests.cpu.machine import Machine, long, protected, real, to_user
from vmm.cpu import selfcheck
from vmm.cpu.engine import DEFAULT_COSTS, Engine
from vmm.errors import EngineError
from vmm.guest import BuiltGuest
from vmm.ram import Ram

FUNCTION = 0x20000
RET = b"\xc3"


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("reload", ["", "mov cr3, rsi"], ids=["at once", "after a flush"])
def test_modes_have_rows_of_their_own(machine: Machine, reload: str) -> None:
    """The function may do in ring 0 what faults in ring 3."""
    long(
        machine,
        f"""
        mov eax, {FUNCTION:#x}
        mov rsi, cr3
        call rax
        call rax
        {reload}
        {to_user("user")}
    user:
        mov eax, {FUNCTION:#x}
        call rax
        """,
    )
    machine.ram.write(FUNCTION, b"\x0f\x20\xc2" + RET)  # mov rdx, cr0
    machine.finish()
    assert machine.vectors_seen == [13]


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("between", ["", "mov cr3, eax"], ids=["at once", "after a flush"])
def test_segments_that_begin_elsewhere(machine: Machine, between: str) -> None:
    """The same linear address in two code segments: what the code knows of its own address differs."""
    at, base = 0x7E00, 0x7000
    real(
        machine,
        f"""
        mov cx, 50
    again:
        lcall 0, {at:#x}
        {between}
        lcall {base >> 4:#x}, {at - base:#x}
        dec cx
        jnz again
        hlt
        """,
    )
    machine.load("call here\n here: pop ax\n add bx, ax\n retf", 16, at)
    machine.finish()
    assert machine.register("rbx") & 0xFFFF == 50 * (2 * (at + 3) - base) & 0xFFFF


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("paging", ["off", "32", "pae"])
def test_code_of_32_bits_that_changes(machine: Machine, paging: str) -> None:
    protected(
        machine,
        f"""
        mov ecx, 40
        mov eax, {FUNCTION:#x}
    again:
        mov [eax + 2], ecx
        call eax
        call eax
        dec ecx
        jnz again
        hlt
        """,
        paging,
    )
    machine.ram.write(FUNCTION, b"\x81\xc3\0\0\0\0\xc3")
    machine.finish()
    assert machine.register("rbx") == 2 * sum(range(41))


def test_a_guest_that_does_all_of_it(guest: Callable[[str], BuiltGuest], checked: Any) -> None:
    """Debian's kernel boots; processes fork, execute, are waited for and talk through pipes; modules go."""
    guest("linux")
    with vmm.start("linux") as pc:
        pc.expect("~ # ", within_s=10)
        assert pc.command("for i in $(seq 1 60); do /bin/true; done; echo $i").strip() == "60"
        pc.command("gzip -c /bin/busybox | md5sum")
        pc.command("for m in $(lsmod | cut -d' ' -f1); do rmmod $m && modprobe $m; done")
    asked, wrong, *_ = checked.tolist()
    assert (asked > 1_000_000, wrong) == (True, 0)


def test_an_engine_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ram = Ram(1)
    engine = Engine(ram, DEFAULT_COSTS, patching=True)
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    wrong = kind(lambda _env: 0)
    monkeypatch.setitem(engine.callbacks, "lookup_block", ctypes.cast(wrong, ctypes.c_void_p).value)
    with pytest.raises(EngineError, match=r"does not find a block .*pip install unicorn=="):
        selfcheck.verify(engine)
    engine.close()
