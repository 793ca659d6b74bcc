"""``filter-dump``: what passes here, in a file for Wireshark.

The file is :mod:`vmm.backends.pcap`'s, with the times of the machine's clock.  A capture that cannot be
written any further stops and says so in ``failed``: watching must not end what is watched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from colo.filters.chain import Filter, FilterSpec, Frame, Queue
from vmm.backends.net import Nowhere
from vmm.backends.pcap import PcapTap
from vmm.errors import BackendError


class Dump(Filter):
    """A capture of one place in a chain."""

    __slots__ = ("_file", "_lock", "failed")

    def __init__(self, spec: FilterSpec, offloads: bool, now_ns: Callable[[], int], epoch_s: int) -> None:
        super().__init__(spec)
        self.failed = ""
        # What was recorded goes nowhere: the chain carries the frame itself.
        self._file = PcapTap(Nowhere(offloads), spec.file, now_ns, epoch_s)
        self._lock = threading.Lock()  # released frames come from another thread

    def keeps(self, frame: Frame, queue: Queue) -> bool:
        if not self.failed:
            try:
                with self._lock:
                    self._file.transmit(frame)
            except BackendError as exc:
                self.failed = str(exc)
        return False

    def close(self) -> None:
        try:
            self._file.close()
        except BackendError as exc:
            self.failed = self.failed or str(exc)
