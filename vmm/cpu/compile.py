"""Native callbacks, compiled once and kept: numba to machine code to a file.

Compiling takes seconds and importing numba itself takes longer than resuming a machine, so the
callbacks are compiled into one object file in the user's cache and later starts load that file with
llvmlite alone.  This works because the callbacks refer to nothing outside themselves: whatever they
call, they call through pointers in the control block.

The file's name is a digest of everything that its contents depend on: the sources, the compilers'
versions and the host CPU.  A file that does not load is rebuilt.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from vmm.errors import EngineError

_CODE = (
    "hooks",
    "instructions",
    "msr",
    "syscall",
    "code_pages",
    "tlb_fill",
    "tlb_flush",
    "block_table",
    "jump_cache",
    "regions",
    "dma_kernel",
    "ring_kernel",
    "frames_kernel",
    "apic_kernel",
)
_SOURCES = (
    *_CODE,
    "native",
    "control",
    "layout",
    "constants",
    "msr_table",
    "ticks",
    "inline_clock",
    "prologue",
    "block_entry",
    "unwind",
    "exact",
    "stuck",
    "icebp",
    "repeat",
    "tlb",
    "ring_block",
    "compile",
)
_PREFIX = "colo_"
_MAGIC = b"\x7fELF"


def cache_directory() -> Path:
    """Where compiled callbacks are kept (``COLO_CACHE``, else the user's cache directory)."""
    root = os.environ.get("COLO_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colo-vmm"


def digest() -> str:
    """What the compiled callbacks depend on, as hex."""
    made = hashlib.blake2b(digest_size=16)
    here = Path(__file__).parent
    for name in _SOURCES:
        made.update((here / f"{name}.py").read_bytes())
    for package in ("numba", "llvmlite"):
        made.update(f"{package} {metadata.version(package)}".encode())
    made.update(f"{sys.version_info[:2]} {llvm.get_host_cpu_name()}".encode())
    return made.hexdigest()


@lru_cache(maxsize=1)
def callbacks() -> dict[str, int]:
    """Address of every native callback in this process, by name."""
    _initialise()
    path = cache_directory() / f"callbacks-{digest()}.o"
    loaded = _read(path)
    if loaded is not None:
        return loaded
    code = build()
    _write(path, code)
    return _load(code)


def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _read(path: Path) -> dict[str, int] | None:
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    check, code = stored[:16], stored[16:]
    if hashlib.blake2b(code, digest_size=16).digest() != check or not code.startswith(_MAGIC):
        return None
    return _load(code)


def _write(path: Path, code: bytes) -> None:
    """Keep ``code``; a cache that cannot be written costs time at the next start, nothing else."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.blake2b(code, digest_size=16).digest() + code)
        partial.replace(path)
    except OSError as exc:
        print(f"colo: compiled callbacks not kept in {path.parent}: {exc}", file=sys.stderr)


_engines: list[llvm.ExecutionEngine] = []
"""Loaded code stays for the life of the process."""


def _load(code: bytes) -> dict[str, int]:
    target = llvm.Target.from_default_triple().create_target_machine()
    # Its sections refer to each other within 2 GiB.  LLVM's own manager maps each where there is room, which
    # in a process with large mappings may be further; llvmlite's reserves one span for all of them.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target, use_lmm=True)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    names = [symbol for symbol in _names(code) if symbol.startswith(_PREFIX)]
    found = {name[len(_PREFIX) :]: engine.get_function_address(name) for name in names}
    if not found or not all(found.values()):
        raise EngineError(f"the compiled callbacks did not load; remove {cache_directory()} and try again")
    return found


def _names(code: bytes) -> list[str]:
    """The exported names, from a list that :func:`build` put in front of the symbols' use."""
    start = code.index(b"colo-callbacks:") + len(b"colo-callbacks:")
    return [f"{_PREFIX}{name}" for name in code[start : code.index(b"\0", start)].decode().split(",")]


def build(progress: Callable[[str], None] | None = None) -> bytes:
    """Compile every callback with numba into one relocatable object."""
    from numba import njit

    from vmm.cpu import native

    if sys.stderr.isatty() and progress is None:
        print("colo: compiling the native callbacks (once, some seconds)", file=sys.stderr)
    for name in _CODE:
        importlib.import_module(f"vmm.cpu.{name}")
    compiler: Any = njit
    linked = llvm.parse_assembly(_name_list(sorted(native.CALLBACKS)))
    for name, (function, signature) in sorted(native.CALLBACKS.items()):
        compiled = compiler(signature, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
        (result,) = compiled.overloads.values()
        linked.link_in(llvm.parse_assembly(str(result.library._final_module)))
        linked.link_in(llvm.parse_assembly(_wrapper(name, result)))
        if progress is not None:
            progress(name)
    for defined in linked.functions:
        if not defined.is_declaration and not defined.name.startswith(_PREFIX):
            defined.linkage = llvm.Linkage.internal
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), opt=3, reloc="pic", codemodel="small"
    )
    _optimise(linked, target)
    return bytes(target.emit_object(linked))


def _name_list(names: list[str]) -> str:
    text = "colo-callbacks:" + ",".join(names)
    body = text.encode().hex(" ")
    escaped = "".join(f"\\{byte}" for byte in body.split())
    return (
        f'@colo_names = constant [{len(text) + 1} x i8] c"{escaped}\\00"\n'
        "@llvm.used = appending global [1 x ptr] [ptr @colo_names]\n"
    )


def _wrapper(name: str, result: Any) -> str:
    """The C entry of a compiled function: numba's own convention returns through a pointer."""
    native_name = result.fndesc.llvm_func_name
    kinds = [f"i{argument.bitwidth}" for argument in result.signature.args]
    arguments = ", ".join(f"{kind} %a{index}" for index, kind in enumerate(kinds))
    returns = getattr(result.signature.return_type, "bitwidth", None)
    declared = "".join(f", {kind}" for kind in kinds)
    passed = "".join(f", {kind} %a{index}" for index, kind in enumerate(kinds))
    give = "ret void" if returns is None else f"%value = load i{returns}, ptr %result\n ret i{returns} %value"
    return f"""
declare i32 @"{native_name}"(ptr, ptr{declared})
define {"void" if returns is None else f"i{returns}"} @"{_PREFIX}{name}"({arguments}) {{
 %result = alloca i64
 %error = alloca ptr
 %status = call i32 @"{native_name}"(ptr %result, ptr %error{passed})
 {give}
}}
"""


def _optimise(module: llvm.ModuleRef, target: llvm.TargetMachine) -> None:
    """Inline what the separate compilations could not see, and drop what nothing uses."""
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
