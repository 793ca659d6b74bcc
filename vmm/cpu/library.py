"""The engine's shared library: a private copy, found, recognised and bound.

The wheel exports QEMU's internals, and this machine uses, and partly replaces, some of them
(:mod:`vmm.cpu.detour`).  To leave every other user of Unicorn in this process alone, the library is
loaded from an anonymous copy of its file, never from the file that ``import unicorn`` maps.

A library whose build id is not in :data:`vmm.cpu.layout.BUILD_IDS` is refused: offsets of an
unknown build would be guesses.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

from vmm.cpu import layout
from vmm.errors import EngineError

UC_ARCH_X86, UC_MODE_64 = 4, 8
UC_HOOK_INTR, UC_HOOK_BLOCK, UC_HOOK_INSN_INVALID = 1 << 0, 1 << 3, 1 << 14
UC_HOOK_MEM_FETCH_PROT = 1 << 9
UC_CTL_USE_EXITS, UC_CTL_CPU_MODEL, UC_CTL_TB_FLUSH, UC_CTL_TCG_BUFFER_SIZE = 4, 7, 10, 13
UC_CPU_X86_QEMU64 = 0
UC_PROT_ALL = 7

_U64, _INT, _SIZE, _VOID = ctypes.c_uint64, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_PROTOTYPES: dict[str, tuple[type | None, list[type]]] = {
    "uc_open": (_INT, [_INT, _INT, _VOID]),
    "uc_close": (_INT, [_VOID]),
    "uc_mem_map_ptr": (_INT, [_VOID, _U64, _SIZE, ctypes.c_uint32, _VOID]),
    "uc_mmio_map": (_INT, [_VOID, _U64, _SIZE, _VOID, _VOID, _VOID, _VOID]),
    "uc_emu_start": (_INT, [_VOID, _U64, _U64, _U64, _SIZE]),
    "uc_emu_stop": (_INT, [_VOID]),
    "uc_reg_read": (_INT, [_VOID, _INT, _VOID]),
    "uc_reg_write": (_INT, [_VOID, _INT, _VOID]),
    "uc_strerror": (ctypes.c_char_p, [_INT]),
    "tlb_flush_x86_64": (None, [_VOID]),
    "tb_invalidate_phys_range_x86_64": (None, [_VOID, _U64, _U64]),
    "x86_update_hflags_x86_64": (None, [_VOID]),
    "cpu_x86_update_cr0_x86_64": (None, [_VOID, ctypes.c_uint32]),
    "cpu_x86_update_cr4_x86_64": (None, [_VOID, ctypes.c_uint32]),
    "cpu_x86_update_dr7_x86_64": (None, [_VOID, ctypes.c_uint32]),
    "x86_cpu_set_a20_x86_64": (None, [_VOID, _INT]),
    "helper_read_eflags_x86_64": (_U64, [_VOID]),
}


class Library:
    """The loaded engine.  ``library.uc_open(...)`` and the others above are bound functions."""

    def __init__(self, handle: ctypes.CDLL, path: Path, build_id: str) -> None:
        self.handle = handle
        self.path = path
        self.build_id = build_id
        for name, (returns, arguments) in _PROTOTYPES.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = returns, arguments

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        function: ctypes._NamedFuncPointer = getattr(self.handle, name)
        return function

    def address(self, symbol: str) -> int:
        """Where ``symbol`` is in this process; EngineError if the library does not export it."""
        try:
            function = getattr(self.handle, symbol)
        except AttributeError:
            raise EngineError(f"{self.path}: symbol {symbol} is missing; {supported()}") from None
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        return address

    def ctl(self, uc: int, control: int, *arguments: int) -> None:
        """``uc_ctl`` in its writing form; the arguments are passed as C ints or sizes."""
        request = control | len(arguments) << 26 | 1 << 30
        self.check("uc_ctl", self.handle.uc_ctl(_VOID(uc), _INT(request), *map(_SIZE, arguments)))

    def hook(self, uc: int, kind: int, callback: int, user_data: int) -> None:
        """Add a hook for all addresses; ``callback`` is a machine-code address."""
        made = _SIZE(0)
        error = self.handle.uc_hook_add(
            _VOID(uc), ctypes.byref(made), _INT(kind), _VOID(callback), _VOID(user_data), _U64(1), _U64(0)
        )
        self.check("uc_hook_add", error)

    def check(self, what: str, error: int) -> None:
        """Raise EngineError when a Unicorn call returned an error code."""
        if error:
            raise EngineError(f"{what} failed: {self.uc_strerror(error).decode()} (error {error})")


def supported() -> str:
    """One sentence that every refusal ends with."""
    known = ", ".join(sorted(BUILD for BUILD in layout.BUILD_IDS.values()))
    return (
        f"this version of colo-vmm knows: {known}."
        f" Install it with `pip install unicorn=={layout.ENGINE_VERSION}` on Linux x86-64"
    )


@lru_cache(maxsize=1)
def load() -> Library:
    """Load the engine once per process; EngineError says what is wrong with it and what to do."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise EngineError(f"this is {sys.platform} on {platform.machine()}; {supported()}")
    path = _find()
    build_id = read_build_id(path)
    if build_id not in layout.BUILD_IDS:
        raise EngineError(f"{path} has build id {build_id or 'none'}, which is not known; {supported()}")
    return Library(_load_private_copy(path), path, build_id)


def _find() -> Path:
    spec = importlib.util.find_spec("unicorn")
    if spec is None or spec.origin is None:
        raise EngineError(f"the package unicorn is not installed; {supported()}")
    folder = Path(spec.origin).parent / "lib"
    found = sorted(folder.glob("libunicorn.so*"))
    if not found:
        raise EngineError(f"no libunicorn.so in {folder}; {supported()}")
    return found[0]


def _load_private_copy(path: Path) -> ctypes.CDLL:
    copy = os.memfd_create("colo-vmm-engine", os.MFD_CLOEXEC)
    try:
        with path.open("rb") as source:
            left = os.fstat(source.fileno()).st_size
            while left > 0:
                left -= os.sendfile(copy, source.fileno(), None, left)
        return ctypes.CDLL(f"/proc/self/fd/{copy}")
    except OSError as exc:
        raise EngineError(f"{path} cannot be loaded: {exc}; {supported()}") from None
    finally:
        os.close(copy)


def read_build_id(path: Path) -> str:
    """The GNU build id of an ELF file, from its note segment near the start; "" if there is none."""
    with path.open("rb") as file:
        head = file.read(4096)
    at = head.find(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0")
    return head[at + 16 : at + 36].hex() if at >= 0 else ""
