"""A deterministic x86-64 PC that boots unmodified Linux.

The same start and the same inputs give the same machine, bit for bit, on any host.  Ten lines show
most of it; ``counter`` comes with the package, prints a line a second and works on memory meanwhile:

>>> import vmm
>>> pc = vmm.start("counter")                       # also "linux", "redis", or your images
>>> pc.expect("second 1", within_s=5)               # run until the console says so
'GUEST-READY counter mib=8 ms=10\\r\\nsecond 1'
>>> before = pc.snapshot()                          # the whole machine; pc.save("FILE") keeps it
>>> twin = pc.fork()
>>> pc.run_for(0.25), twin.run_for(0.25)            # seconds of virtual time
(<Ended.TIME: 'time'>, <Ended.TIME: 'time'>)
>>> pc.hash == twin.hash                            # processor, devices and memory
True
>>> pc.read_virtual(pc.registers["rip"] - 1, 1)     # it waits in HLT, opcode 0xF4
b'\\xf4'
>>> twin.write_physical(0x500, b"planted")
>>> print(*twin.differences(pc), sep="\\n")
ram[0x500] (7 bytes of page 0x0): 70 6c 61 6e 74 65 64 00 00 00 00 00 00 00 00 00 != \
00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
>>> with vmm.resume(before) as again:               # or vmm.load("FILE"), in another process
...     _ = again.run_for(0.25)
...     again.hash == pc.hash
True
>>> pc.close(); twin.close()

A Linux guest is talked to the same way::

    with vmm.start("linux", progress=print) as pc:
        pc.expect("~ # ")
        print(pc.command("uname -r"))

``start`` explains its options; :class:`vmm.Pc` has the rest: recording and replay, devices, the screen.
Below it, :class:`vmm.Machine` is the PC itself and :class:`vmm.PcConfig` what it is made of.

Names are loaded when they are first used, so that ``import vmm`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.api import Pc, load, resume, start
    from vmm.boot.source import BootSectorBoot, LinuxBoot, MultibootBoot
    from vmm.config import DiskConfig, NetConfig, PcConfig
    from vmm.errors import VmmError
    from vmm.launch import LaunchOptions
    from vmm.machine import Backends, Ended, Machine

_HOME = {
    "Backends": "vmm.machine",
    "BootSectorBoot": "vmm.boot.source",
    "DiskConfig": "vmm.config",
    "Ended": "vmm.machine",
    "LaunchOptions": "vmm.launch",
    "LinuxBoot": "vmm.boot.source",
    "Machine": "vmm.machine",
    "MultibootBoot": "vmm.boot.source",
    "NetConfig": "vmm.config",
    "Pc": "vmm.api",
    "PcConfig": "vmm.config",
    "VmmError": "vmm.errors",
    "load": "vmm.api",
    "resume": "vmm.api",
    "start": "vmm.api",
}

__all__ = [
    "Backends",
    "BootSectorBoot",
    "DiskConfig",
    "Ended",
    "LaunchOptions",
    "LinuxBoot",
    "Machine",
    "MultibootBoot",
    "NetConfig",
    "Pc",
    "PcConfig",
    "VmmError",
    "load",
    "resume",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
