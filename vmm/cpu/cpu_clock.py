"""The machine's clock: virtual time that the guest's execution drives."""

from __future__ import annotations

from vmm.clock import TimerClock
from vmm.cpu.control import ControlBlock


class CpuClock(TimerClock):
    """Virtual time, kept by the guest's execution; a new deadline reaches the native code at once."""

    __slots__ = ("_block", "_budget", "_words", "limit_ns")

    def __init__(self, block: ControlBlock, limit_ns: int) -> None:
        super().__init__()
        self._block = block
        self._words, self._budget = block.words, block.budget
        self.limit_ns = limit_ns

    @property
    def now_ns(self) -> int:
        return self._words[0] - self._budget.value  # as ControlBlock.now_ns, without that call

    def rearmed(self) -> None:
        super().rearmed()
        self._block.stop_at(min(self.next_deadline_ns, self.limit_ns))

    def jump(self, time_ns: int) -> None:
        """A halted guest's clock goes on to ``time_ns``."""
        self._block.now_ns = max(time_ns, self._block.now_ns)

    def set_limit(self, limit_ns: int) -> None:
        """The run loop's own deadline, besides the devices'."""
        self.limit_ns = limit_ns
        deadline = self.next_deadline_ns
        self._block.stop_at(deadline if deadline < limit_ns else limit_ns)
