"""Pages of the toy guest on their way: differences against what the other has, and the stage they end in."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from colo.errors import ProtocolViolation
from colo.life import Life
from colo.messages import RamPages, VmstateSize
from colo.primary import Batches
from tests.protocol.toy_guest import PAGE_BYTES

PAGES_A_BATCH = 3
ZERO_PAGE = bytes(PAGE_BYTES)
_ENTRY = struct.Struct(f"<H{PAGE_BYTES}s")


def difference(old: bytes, new: bytes) -> bytes:
    bits = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    return bits.to_bytes(PAGE_BYTES, "little")


def encoded(pages: Mapping[int, bytes], shadow: dict[int, bytes]) -> Batches:
    """What differs from ``shadow``, which is then what the secondary will have."""
    changed = [page for page in pages if pages[page] != shadow.get(page, ZERO_PAGE)]
    for at in range(0, len(changed), PAGES_A_BATCH):
        batch = changed[at : at + PAGES_A_BATCH]
        data = bytearray()
        for page in batch:
            data += _ENTRY.pack(page, difference(shadow.get(page, ZERO_PAGE), pages[page]))
            shadow[page] = pages[page]
        yield len(batch), bytes(data)


class ToyStage:
    """A :class:`colo.secondary.Staging` over ``image``, the RAM of the epoch that is installed."""

    def __init__(self, image: list[bytes], epoch: int) -> None:
        self.epoch = epoch
        self.life = Life.WAIT
        self.pages: dict[int, bytes] = {}
        self.vmstate: VmstateSize | None = None
        self._image, self._received = image, 0

    def add(self, pages: RamPages) -> None:
        for page, change in _ENTRY.iter_unpack(pages.data):
            old = self.pages.get(page)
            self.write(page, difference(self._image[page] if old is None else old, change))
        self._received += pages.count

    def write(self, page: int, data: bytes) -> None:
        self.pages[page] = data

    def seal(self, vmstate: VmstateSize) -> None:
        if vmstate.pages != self._received:
            raise ProtocolViolation(f"{self._received} pages came, {vmstate.pages} were sent")
        self.vmstate = vmstate
