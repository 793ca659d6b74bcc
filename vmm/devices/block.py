"""What a disk controller needs of the host: sectors, read and written at once.

A back end is wiring, not state: it holds the contents of the medium, which travel apart from the
state of the chips (base image, overlay, replication buffer).  Every request is answered before it
returns, so no request is ever in flight outside a chip's ``state``.

Requests lie wholly inside the medium; the controller checks that first and answers its guest when
they do not.  A host resource that fails raises :class:`vmm.errors.BackendError`, which the
controller reports to the guest as its data sheet says a medium error is reported.

Not part of the contract: sectors of any other size than 512 bytes, discard, write zeroes.
"""

from __future__ import annotations

from typing import Protocol

from vmm.device import Pieces

SECTOR_BYTES = 512
"""The unit of every count and address here, whatever the host's block size."""


class BlockBackend(Protocol):
    """A medium of ``sectors`` sectors of 512 bytes."""

    @property
    def sectors(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def read(self, sector: int, count: int) -> bytes:
        """The ``count`` sectors from ``sector`` on: exactly ``count * 512`` bytes."""

    def write(self, sector: int, data: bytes | memoryview) -> None:
        """Replace the sectors from ``sector`` on; ``data`` is a whole number of sectors."""

    def read_into(self, sector: int, pieces: Pieces) -> None:
        """Fill ``pieces``, a whole number of sectors, with those from ``sector`` on."""

    def write_from(self, sector: int, pieces: Pieces) -> None:
        """Replace the sectors from ``sector`` on by ``pieces``, a whole number of sectors."""

    def flush(self) -> None:
        """Return when everything written so far would survive a loss of power."""
