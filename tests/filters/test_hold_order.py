"""Any order of events: nothing is lost, reordered, or heard before its commit."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from colo.filters import FilteredNet, OutputHold, parse, protect, unprotect
from tests.filters.cables import Cable, frame, number_of


class Interleavings(RuleBasedStateMachine):
    """Two cards, a pair that forms and dissolves, filters that come and go; a model says what was heard."""

    def __init__(self) -> None:
        super().__init__()
        self.cables = [Cable(), Cable()]
        self.now = 0
        self.nets = [
            FilteredNet(cable, f"net{n}", now_ns=lambda: self.now) for n, cable in enumerate(self.cables)
        ]
        self.world: list[tuple[int, int]] = []
        for n, cable in enumerate(self.cables):
            cable.on_transmit = lambda data, n=n: self.world.append((n, number_of(data)))  # type: ignore[misc]
        self.hold = OutputHold()
        self.said: list[tuple[int, int]] = []
        """Everything that the guest ever said, in order."""
        self.cuts: list[int] = []
        """How much of ``said`` each epoch closed off."""
        self.may_be_heard = 0
        self.extra = 0

    @rule(card=st.integers(0, 1), size=st.integers(60, 2000))
    def say(self, card: int, size: int) -> None:
        number = len(self.said)
        self.said.append((card, number))
        self.nets[card].transmit(memoryview(frame(number, size)))
        if not self.hold.active:
            self.may_be_heard = len(self.said)

    @rule()
    def form(self) -> None:
        if not self.hold.active:
            self.may_be_heard = len(self.said)
            self.cuts = []
        protect(self.nets, self.hold)

    @rule()
    def dissolve(self) -> None:
        unprotect(self.nets)
        self.may_be_heard = len(self.said)

    @precondition(lambda self: self.hold.active)
    @rule()
    def cut(self) -> None:
        self.cuts.append(len(self.said))
        self.hold.cut(len(self.cuts))

    @precondition(lambda self: self.hold.active and self.cuts)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        epoch = data.draw(st.integers(1, len(self.cuts)))
        held = [number_of(each) for _, each in self.hold.taken(epoch, 1 << 20)]
        begin = self.cuts[epoch - 2] if epoch > 1 else 0
        assert held == [n for _, n in self.said[max(begin, self.may_be_heard) : self.cuts[epoch - 1]]]
        self.hold.release(epoch)
        self.may_be_heard = max(self.may_be_heard, self.cuts[epoch - 1])

    @rule(card=st.integers(0, 1), place=st.sampled_from(["head", "tail"]))
    def add(self, card: int, place: str) -> None:
        """Nearer to the card or to the back end than the buffer of the pair, wherever that stands."""
        if len(self.nets[card].filters) < 5:
            self.extra += 1
            self.nets[card].add(parse(f"dump,id=f{self.extra},position={place},file=/dev/null"))

    @rule(card=st.integers(0, 1), data=st.data())
    def remove(self, card: int, data: Any) -> None:
        mine = [each.spec.id for each in self.nets[card].filters if not each.spec.auto]
        if mine:
            self.nets[card].remove(data.draw(st.sampled_from(mine)))

    @invariant()
    def the_world_heard_what_it_may_in_order(self) -> None:
        assert self.world == self.said[: self.may_be_heard]
        assert self.hold.held_frames == len(self.said) - self.may_be_heard

    def teardown(self) -> None:
        for net in self.nets:
            net.close()


TestInterleavings = Interleavings.TestCase


class Delays(RuleBasedStateMachine):
    """Buffers with intervals around the pair's: per card nothing is lost, reordered, or let out too early."""

    def __init__(self) -> None:
        super().__init__()
        self.cable = Cable()
        self.now = 0
        self.net = FilteredNet(self.cable, now_ns=lambda: self.now)
        self.hold = OutputHold()
        protect([self.net], self.hold)
        self.count = 0
        self.epoch = 0
        self.cut_at = 0
        self.committed = 0
        self.extra = 0

    @rule()
    def say(self) -> None:
        self.net.transmit(memoryview(frame(self.count)))
        self.count += 1

    @rule(us=st.integers(0, 3000))
    def wait(self, us: int) -> None:
        self.now += us * 1000
        self.net.tick()

    @rule()
    def checkpoint(self) -> None:
        self.cut_at = self.count
        self.epoch += 1
        self.hold.cut(self.epoch)

    @rule()
    def commit(self) -> None:
        self.hold.release(self.epoch)
        self.committed = self.cut_at

    @rule(place=st.sampled_from(["head", "tail"]), us=st.integers(1, 2000))
    def add(self, place: str, us: int) -> None:
        if len(self.net.filters) < 4:
            self.extra += 1
            self.net.add(parse(f"buffer,id=f{self.extra},position={place},interval={us}"))

    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        mine = [each.spec.id for each in self.net.filters if not each.spec.auto]
        if mine:
            self.net.remove(data.draw(st.sampled_from(mine)))

    @invariant()
    def nothing_early_and_all_in_order(self) -> None:
        heard = self.cable.numbers
        assert heard == list(range(len(heard)))
        assert len(heard) <= self.committed

    def teardown(self) -> None:
        for each in self.net.filters:
            if not each.spec.auto and each.spec.kind == "buffer":
                self.net.remove(each.spec.id)
        unprotect([self.net])
        assert self.cable.numbers == list(range(self.count))
        self.net.close()


TestDelays = Delays.TestCase
