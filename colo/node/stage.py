"""The secondary's stage: an epoch's pages, kept apart until the epoch is whole.

QEMU calls it the RAM cache and gives it the size of RAM; here it holds what the epoch changed and no
more, because between checkpoints the installed RAM of a standing-by machine *is* the last epoch.
Its life is xv6's log: add, seal, install, forget.  Installing writes whole pages and nothing is read
from where it writes, so that an install that was cut short can be done again.

A page may come several times within an epoch, each time as a difference from the time before; the stage
then is the base, not RAM.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from colo.errors import ProtocolViolation
from colo.life import Life
from colo.messages import Packet, RamPages, VmstateSize
from colo.pages import delta
from vmm.errors import StateError
from vmm.machine import Machine
from vmm.ram import PAGE_SIZE

ROWS_MIN = 256
"""Pages that a stage has room for at first."""
NOT_STAGED = -1


class Stage:
    """Pages and device state of one epoch, for ``machine``.

    ``image`` is RAM as the last epoch left it; it is not touched before install.
    """

    def __init__(self, machine: Machine, image: delta.Bytes, epoch: int) -> None:
        self.epoch = epoch
        self.life = Life.WAIT
        self.vmstate: VmstateSize | None = None
        self._machine = machine
        self._image = image
        self._row_of = np.full(machine.ram.size // PAGE_SIZE, NOT_STAGED, np.int32)
        self._rows = np.empty((ROWS_MIN, PAGE_SIZE), np.uint8)
        self._pages = np.empty(ROWS_MIN, np.uint32)
        self._used = 0
        self._received = 0

    @property
    def is_sealed(self) -> bool:
        return self.vmstate is not None

    @property
    def page_count(self) -> int:
        """How many different pages are staged."""
        return self._used

    @property
    def held(self) -> list[Packet]:
        """Output of the epoch that the world may not have heard."""
        return [] if self.vmstate is None else self.vmstate.held

    def add(self, pages: RamPages) -> None:
        """Stage pages; ProtocolViolation when they are not what they say."""
        assert not self.is_sealed
        overlay = delta.Overlay(self._row_of, self._rows)
        indices, contents = delta.decode(pages.count, pages.data, self._image, len(self._row_of), overlay)
        rows = self._rows_for(indices)
        self._rows[rows] = contents
        self._received += len(indices)

    def _rows_for(self, indices: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """The row of each page, which it is given if it has none."""
        fresh = indices[self._row_of[indices] == NOT_STAGED]
        end = self._used + len(fresh)
        if end > len(self._rows):
            self._grow(end)
        self._row_of[fresh] = np.arange(self._used, end, dtype=np.int32)
        self._pages[self._used : end] = fresh
        self._used = end
        return self._row_of[indices]

    def _grow(self, needed: int) -> None:
        size = min(max(needed, 2 * len(self._rows)), len(self._row_of))
        rows = np.empty((size, PAGE_SIZE), np.uint8)
        rows[: self._used] = self._rows[: self._used]
        pages = np.empty(size, np.uint32)
        pages[: self._used] = self._pages[: self._used]
        self._rows, self._pages = rows, pages

    def seal(self, vmstate: VmstateSize) -> None:
        """The epoch is whole: what could be refused is refused here, by ProtocolViolation."""
        if vmstate.pages != self._received:
            raise ProtocolViolation(
                f"epoch {self.epoch}: {self._received} pages came, the peer says it sent {vmstate.pages}"
            )
        try:
            self._machine.check_sections(vmstate.sections)
        except StateError as exc:
            raise ProtocolViolation(f"epoch {self.epoch}: device state: {exc}") from None
        self.vmstate = vmstate

    def install_pages(self) -> None:
        """Guest RAM becomes the epoch's.  The guest must not run; doing it twice is doing it once."""
        assert self.is_sealed
        delta.apply(self._image, self._pages[: self._used], self._rows[: self._used])

    @property
    def pages(self) -> npt.NDArray[np.uint32]:
        """Which pages are staged."""
        return self._pages[: self._used]


class FirstStage(Stage):
    """The first epoch's: nothing is promised yet, so its pages go straight into the image.

    All of RAM comes in it, some of it several times, and a node that loses its primary before it is
    sealed has nothing to stand for: there is no earlier state to keep.
    """

    def add(self, pages: RamPages) -> None:
        assert not self.is_sealed
        indices, contents = delta.decode(pages.count, pages.data, self._image, len(self._row_of))
        delta.apply(self._image, indices, contents)
        self._received += len(indices)
