"""A pair's network without any privilege: the hub in user space of :mod:`vmm.backends.hub`.

The interface is that of :class:`colo.network.host.Network`; what stands behind it is a directory of Unix
sockets, private to this user.  Every node and every program that opens a ``HubPort`` there is on one
Ethernet segment, and the death of a node takes away its own port alone.

What it cannot do is in ``HubNetwork.limits``, to be shown to whoever chose it: the host's own network
stack is not on the segment, so there are no ordinary clients, no published port, no gateway address.

Not modelled: everything that the hub does not model; removal of the directory when the supervisor is
killed (the next start with the same directory clears what dead nodes left).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from colo.errors import NetworkError
from colo.network.links import ADDRESS, GUEST_ADDRESS, TAPS, Plan
from colo.network.ports import Publish, published


class HubNetwork:
    """The network ``name`` as a hub; it reaches guests and programs on the hub, and nobody else."""

    limits = (
        "a hub in user space: no clients of the host and no published ports, because the host's network"
        " stack is not on it; only guests, and programs that speak Ethernet through vmm.backends.hub"
    )

    unplugged = "none"
    namespace = None
    user_namespace = None
    pid = None

    def __init__(
        self,
        name: str,
        publish: Sequence[Publish | tuple[int, int]] = (),
        address: str = ADDRESS,
        guest_address: str = GUEST_ADDRESS,
        *,
        directory: str | None = None,
    ) -> None:
        if wanted := published(publish):
            raise NetworkError(
                f"network {name}: publishing {wanted[0]} on a hub: not possible: {self.limits}; run as root"
                " or allow user namespaces, or leave out --publish"
            )
        self.name = name
        self.plan = Plan(address=address, guest_address=guest_address)
        self.plan.check()
        self.published: list[Publish] = []
        self.taps: tuple[str, ...] = TAPS
        self.guest_address = guest_address
        self.directory: str | None = None
        self._wanted = directory

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        try:
            if self._wanted is None:
                self.directory = tempfile.mkdtemp(prefix=f"{self.name}-hub-")
            else:
                Path(self._wanted).mkdir(mode=0o700, parents=True, exist_ok=True)
                self.directory = self._wanted
        except OSError as exc:
            raise NetworkError(
                f"network {self.name}: making the hub's directory: {exc.strerror}: expected a folder that may"
                " be written to; set TMPDIR to another"
            ) from None

    @property
    def alive(self) -> bool:
        return self.directory is not None

    def nic(self, tap: str) -> str:
        """The word for vmm.backends.net.parse: all nodes name the same hub."""
        assert tap in self.taps, f"{tap} is none of {self.taps}"
        return f"hub={self._started()}"

    def add_tap(self, name: str) -> None:
        self.taps = (*self.taps, name)

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv`` itself: there is nothing to enter."""
        return list(argv)

    def run(
        self, argv: Sequence[str], *, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        return subprocess.run(list(argv), check=check, **options)

    def stats(self) -> dict[str, int]:
        return {}

    def explain(self) -> list[str]:
        return [f"mkdir -m 700 {self.directory or self._wanted or f'/tmp/{self.name}-hub'}"]

    def explain_close(self) -> list[str]:
        return [f"rm -r {self.explain()[0].rpartition(' ')[2]}"]

    def close(self) -> None:
        """Remove the directory, and the sockets that killed nodes left in it."""
        directory, self.directory = self.directory, None
        if directory is not None:
            for port in Path(directory).glob("port-[0-9][0-9]"):
                port.unlink(missing_ok=True)
            if self._wanted is None:
                Path(directory).rmdir()

    def _started(self) -> str:
        if self.directory is None:
            raise NetworkError(f"network {self.name}: not started: expected start() before it is used")
        return self.directory
