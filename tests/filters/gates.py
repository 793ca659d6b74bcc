"""A hold with the gate of policy colo in front of it, and a world that listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from colo.filters.compared import ComparedOutput
from colo.filters.hold import OutputHold
from colo.messages import Packet

NETS = ("net0", "net1")


class Gated:
    """Epochs go on by :meth:`cut` and :meth:`commit`, as a node makes them."""

    def __init__(self, **limits: Any) -> None:
        self.now_ms = 0.0
        self.asked: list[str] = []
        """Causes for which a checkpoint was asked."""
        self.early: list[Packet] = []
        self.world: list[Packet] = []
        """Everything that was said; early, of that, what no commit covered."""
        self.watch: Callable[[str, bytes], object] = lambda port, frame: None
        self.hold = OutputHold(now_ns=lambda: int(self.now_ms * 1e6))
        nets = limits.pop("nets", dict.fromkeys(NETS, False))
        self.gate = ComparedOutput(self.say, self.asked.append, lambda: self.now_ms, nets, **limits)
        for port in (*nets, "com1", "net0:in"):
            self.hold.connect(port, lambda data, port=port: self.world.append((port, data)))  # type: ignore[misc]
        self.epoch = 0
        self.hold.begin()

    def say(self, port: str, frame: bytes) -> None:
        """The gate's word."""
        self.watch(port, frame)
        self.early.append((port, frame))
        self.hold.say(port, frame)

    def opened(self) -> Gated:
        """After the first checkpoint of a pair."""
        self.cut()
        self.hold.gate = self.gate
        self.commit()
        return self

    def checkpoint(self) -> None:
        self.cut()
        self.commit()

    def cut(self) -> None:
        self.epoch += 1
        self.hold.cut(self.epoch)

    def commit(self) -> None:
        self.hold.release(self.epoch)
        for port, frame in self.gate.open(self.hold.take_open()):
            self.hold.hold(port, frame)

    def primary(self, *frames: bytes, port: str = "net0") -> None:
        for frame in frames:
            assert self.hold.hold(port, memoryview(frame))

    def secondary(self, *frames: bytes, port: str = "net0") -> None:
        for frame in frames:
            self.gate.heard(port, bytes(bytearray(frame)))

    def later(self, ms: float) -> None:
        self.now_ms += ms
        self.gate.tick()

    @property
    def frames(self) -> list[bytes]:
        return [frame for _, frame in self.world]
