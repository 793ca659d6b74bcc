"""The machine's clock: virtual time that the guest's execution drives."""

from __future__ import annotations

from vmm.clock import TimerClock
from vmm.cpu.control import ControlBlock


class CpuClock(TimerClock):
    """Virtual time, kept by the guest's execution; a new deadline reaches the native code at once."""

    __slots__ = ("_block", "limit_ns")

    def __init__(self, block: ControlBlock, limit_ns: int) -> None:
        super().__init__()
        self._block = block
        self.limit_ns = limit_ns

    @property
    def now_ns(self) -> int:
        return self._block.now_ns

    def rearmed(self) -> None:
        super().rearmed()
        self._block.stop_at(min(self.next_deadline_ns, self.limit_ns))

    def jump(self, time_ns: int) -> None:
        """A halted guest's clock goes on to ``time_ns``."""
        self._block.now_ns = max(time_ns, self._block.now_ns)

    def set_limit(self, limit_ns: int) -> None:
        """The run loop's own deadline, besides the devices'."""
        self.limit_ns = limit_ns
        self._block.stop_at(min(self.next_deadline_ns, limit_ns))
