"""The engine is recognised, checked, and refused with a sentence that helps; callbacks are kept on disk."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmm.cpu.compile
from vmm.cpu import layout, library, msr_table, registers, selfcheck
from vmm.cpu.engine import DEFAULT_COSTS, Engine
from vmm.errors import EngineError
from vmm.ram import Ram


@pytest.fixture
def spare() -> Iterator[Engine]:
    """An engine to be spent."""
    ram = Ram(1)
    engine = Engine(ram, DEFAULT_COSTS, patching=True)
    yield engine
    engine.close()
    del ram


def test_the_engine_passes(spare: Engine) -> None:
    verdict = selfcheck.verify(spare)
    assert verdict.patching
    assert verdict.reason == ""
    assert verdict.build_id in layout.BUILD_IDS
    assert verdict.engine == layout.BUILD_IDS[verdict.build_id]


def test_register_numbers_are_the_packages() -> None:
    names = pytest.importorskip("unicorn.x86_const")
    assert {name: getattr(names, name) for name in selfcheck.REGISTER_IDS} == selfcheck.REGISTER_IDS


@pytest.mark.parametrize("name", ["CR0", "XMM", "DR", "SEGMENTS", "EIP"])
def test_a_wrong_offset_is_refused(spare: Engine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A table that is off by eight bytes somewhere is noticed by the layout check."""
    if name == "EIP":
        moved = tuple((n, at + 8 if n == "rip" else at, code) for n, at, code in registers._SCALARS)
        monkeypatch.setattr(registers, "_SCALARS", moved)
    else:
        monkeypatch.setattr(layout, name, getattr(layout, name) + 8)
    with pytest.raises(EngineError, match=r"reads .* expected .*pip install unicorn=="):
        selfcheck.verify(spare)


def test_an_engine_that_counts_wrongly_is_refused(spare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = selfcheck._run
    monkeypatch.setattr(
        selfcheck,
        "_run",
        lambda engine, *, patching: run(engine, patching=patching)._replace(stops=(1, 2, 3, 4)),
    )
    with pytest.raises(EngineError, match="self-check program"):
        selfcheck.verify(spare)


def test_patching_that_misbehaves_is_switched_off(spare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = selfcheck._run

    def wrong_when_patched(engine: Engine, *, patching: bool) -> Any:
        found = run(engine, patching=patching)
        return found._replace(exceptions=2) if patching else found

    monkeypatch.setattr(selfcheck, "_run", wrong_when_patched)
    verdict = selfcheck.verify(spare)
    assert not verdict.patching
    assert "with patched prologues" in verdict.reason


def test_prologues_that_are_not_understood_switch_patching_off(spare: Engine) -> None:
    spare.block["HOOK_ADDRESS"] += 1  # no call goes there
    verdict = selfcheck.verify(spare)
    assert not verdict.patching
    assert verdict.reason.startswith("only 0 of ")


@pytest.mark.parametrize("name", ["TB_EXIT_UNLINKED", "TB_EXIT_JUMP", "TB_INCOMING", "TB_NEXT_INCOMING"])
def test_links_that_are_elsewhere_switch_patching_off(
    spare: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(layout, name, getattr(layout, name) + 8)
    verdict = selfcheck.verify(spare)
    assert not verdict.patching
    assert "of blocks are not where they were" in verdict.reason
    assert spare.block["N_PATCHED"] == 0


def test_msr_fields_against_an_engine_without_detours() -> None:
    """The package's own library, which nothing of ours has touched, stores an MSR where we look."""
    unicorn = pytest.importorskip("unicorn")
    consts = pytest.importorskip("unicorn.x86_const")
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map(0, 4096)
    cpu = ctypes.c_uint64.from_address(engine._uch.value + layout.UC_CPU).value
    env = ctypes.c_uint64.from_address(cpu + layout.CPU_ENV_PTR).value
    fields = {row[0]: row[2] for row in msr_table.ROWS if row[1] in (msr_table.PLAIN, msr_table.CANONICAL)}
    aux = fields.pop(0xC0000103)
    for register, offset in fields.items():
        value = 0x0000_1234_0000_0000 + register % 4096 * 8 if register >= 0xC0000000 else 0x4560 + register
        engine.reg_write(consts.UC_X86_REG_MSR, (register, value))
        size = 4 if offset == layout.SYSENTER_CS else 8
        stored = int.from_bytes(ctypes.string_at(env + offset, size), "little")
        assert stored == value & (1 << 8 * size) - 1, f"MSR {register:#x}"
    engine.reg_write(consts.UC_X86_REG_MSR, (0xC0000103, 0x77))
    assert ctypes.c_uint64.from_address(env + aux).value == 0x77


# Refusals


def engine_file() -> Path:
    return library._find()


def test_an_unknown_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "libunicorn.so.2"
    shutil.copyfile(engine_file(), copy)
    build = bytes.fromhex(library.read_build_id(copy))
    with copy.open("r+b") as file:
        at = file.read(4096).index(build)
        file.seek(at)
        file.write(b"\xee" * 20)
    monkeypatch.setattr(library, "_find", lambda: copy)
    library.load.cache_clear()
    try:
        with pytest.raises(EngineError, match=rf"{'ee' * 20}.*pip install unicorn=={layout.ENGINE_VERSION}"):
            library.load()
    finally:
        library.load.cache_clear()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EngineError, match=r"unicorn is not installed.*pip install"):
        library._find()


def test_a_file_without_a_build_id_has_none(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.write_bytes(struct.pack("<4sB", b"\x7fELF", 2))
    assert library.read_build_id(file) == ""


# The cache of compiled callbacks

START = """
import sys
from vmm.cpu.cpu import Cpu
from vmm.ram import Ram
Cpu(Ram(1)).close()
print("numba" in sys.modules)
"""


def start(cache: Path) -> tuple[str, str]:
    """A fresh process that makes a processor: (was numba loaded, its stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, "COLO_CACHE": str(cache)},
        cwd=Path(vmm.cpu.compile.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def kept(folder: Path) -> Path:
    """A cache as a first start leaves it, copied from this process's own."""
    vmm.cpu.compile.callbacks()
    name = f"callbacks-{vmm.cpu.compile.digest()}.o"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(vmm.cpu.compile.cache_directory() / name, folder / name)
    return folder / name


def test_a_warm_start_imports_no_numba(tmp_path: Path) -> None:
    kept(tmp_path)
    assert start(tmp_path) == ("False", "")


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_not_loaded(tmp_path: Path, damage: str) -> None:
    file = kept(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": bytes(content), "cut": bytes(content[:1000]), "empty": b""}[damage])
    assert vmm.cpu.compile._read(file) is None
    assert vmm.cpu.compile._read(tmp_path / "absent") is None


def test_a_damaged_file_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow way is taken once; the compiler itself is stood in for by the intact file."""
    file = kept(tmp_path)
    intact = file.read_bytes()
    file.write_bytes(intact[:-1])
    monkeypatch.setenv("COLO_CACHE", str(tmp_path))
    monkeypatch.setattr(vmm.cpu.compile, "build", lambda: intact[16:])
    assert vmm.cpu.compile.callbacks.__wrapped__().keys() == vmm.cpu.compile.callbacks().keys()
    assert file.read_bytes() == intact


def test_a_cache_that_cannot_be_written_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    intact = kept(tmp_path / "good").read_bytes()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("COLO_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(vmm.cpu.compile, "build", lambda: intact[16:])
    assert vmm.cpu.compile.callbacks.__wrapped__()
    assert "not kept in" in capsys.readouterr().err


CROWDED = """
import mmap
from vmm.cpu import compile

def mapped(pages):
    return mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)

compile.callbacks()
code = (compile.cache_directory() / f"callbacks-{compile.digest()}.o").read_bytes()[16:]
sizes = (64, 32, 16, 8, 4, 2, 1)
filled = [mapped(pages) for pages in sizes for _ in range(200)]
holes, between = [], []
for pages in reversed(sizes):
    holes.append(mapped(pages))
    between.append(mapped(3 * 2**18 + 1))  # 3 GiB, and a page: a multiple of 2 MiB would be aligned
for hole in holes:
    hole.close()
print(len(compile._load(code)) == len(compile.callbacks()))
"""


def test_callbacks_load_where_address_space_is_crowded() -> None:
    """What room there is for each section is gigabytes from the next; LLVM aborts when it cannot reach."""
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
