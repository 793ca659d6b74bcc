"""Policy ``colo`` on the secondary: its guest runs, with the primary's inputs, and is overheard.

The guest began as the primary was at the last cut.  What the primary's guest is given comes on the companion
connection, and is given to ours: frames after the rewriter (:mod:`colo.rewrite`) moved them into its own
sequence numbers.  A frame that the bridge brings here too (:mod:`colo.node.standby_frames`) it is given at
once, and the primary's tidings only tell that they were the same.  What ours says goes back the same way, in
the numbers that clients know, to be compared (:mod:`colo.filters.compared`); the world hears none of it.

A survivor is the guest as it runs: what the world heard since the cut, this guest said too.  The inputs that
are still on their way are given to it first; the frames of the last moment, and of the console all that the
primary has not told to be heard, it says again, because the primary may have died before it did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from colo.errors import PeerLost, ProtocolViolation
from colo.filters.console import PORT
from colo.filters.diverted import Sayings
from colo.messages import Log, Message, Packet, Progress, Said
from colo.node.replica import Replica
from colo.node.standby_frames import StandbyFrames
from colo.node.translation import Translation
from colo.peer import brief
from colo.transport.companion import Companion
from vmm.machine import Ended

WORD_BYTES = 256 << 10
OWN_EVENTS = ("snapshot", "announce")
"""Inputs that concern the node that had them, and no other."""
HAD_MIN = 16
"""Frames in a row that came here by themselves: the primary need not hurry with its tidings."""
SHORT_BYTES = 1024
"""Of a frame: less than a full segment."""
REPEATED_S, REPEATED_MAX = 0.1, 1024
"""Frames of the last moment are said again by a survivor: TCP takes them for what a network may do."""
CONSOLE_KEPT = 1 << 20
"""Bytes that the world may not have heard; the oldest go."""
FRAMES_ROUND_S = 0.2


class Runner:
    """For the guest's thread, but for the constructor."""

    def __init__(
        self,
        replica: Replica,
        companion: Companion,
        frames: dict[str, StandbyFrames],
        translation: Translation,
        violated: Callable[[str], None],
    ) -> None:
        self._replica = replica
        self._machine = replica.machine
        self._now_s = replica.now_s
        self._companion = companion
        self._frames = frames
        self._translation = translation
        self._violated = violated
        self._sayings = Sayings([*replica.nets, *replica.consoles], self._speak_soon)
        self._epoch = -1
        self._next: Message | None = None
        self._recent: deque[tuple[float, Packet]] = deque(maxlen=REPEATED_MAX)
        self._console = bytearray()
        self._console_at = 0
        """How many bytes of the epoch come before those that are kept."""
        self._round_s = 0.0
        self._full: dict[str, int] = {}
        """Cards that have no room, and the descriptors that are not looked at meanwhile."""
        self._hears = False
        """The primary was told, in this epoch, that frames come here without it."""
        self._had_of_late = 0
        """Frames in a row."""
        self.given = 0
        """Inputs, of all epochs."""
        self.has_ended = False
        """The guest did, by itself, in this epoch."""

    # The life of one epoch

    def begin(self, epoch: int) -> None:
        """The machine is the epoch's, installed and loaded."""
        machine, replica = self._machine, self._replica
        self._epoch = epoch
        self._recent.clear()
        self._console.clear()
        self._console_at = 0
        self._hears, self._had_of_late = False, 0
        self.has_ended = False
        machine.door.forget()
        machine.listen(False)
        machine.pacer.start(machine.clock.now_ns)
        machine.watch(self._look)
        machine.call(self._companion.fileno(), self.hear)
        replica.guest.drive_by(self._run, self._companion.fileno())
        self._translation.begin()
        self._sayings.begin()
        for frames in self._frames.values():
            frames.taken_back()
        self.hear()
        self._listen()

    def end(self) -> None:
        """Stand still, and be an ordinary machine again, in what way it is to go on."""
        machine = self._machine
        self._sayings.end()
        machine.watch(None)
        machine.call(self._companion.fileno(), None)
        for descriptor in self._descriptors().values():
            machine.call(descriptor, None)
        self._full.clear()
        machine.listen(True)
        self._replica.guest.drive_by(None)

    # Running

    def _run(self) -> Ended:
        """A guest that ended stands still: if the primary's did too, its node says so."""
        ended = self._replica.guest.run_freely()
        if ended in (Ended.REQUEST, Ended.PAUSED, Ended.TIME):
            return ended
        self.has_ended = self.has_ended or ended is not Ended.IDLE
        return Ended.IDLE

    def hear(self) -> None:
        """What the primary's guest was given, ours is given."""
        try:
            while (word := self._word()) is not None and getattr(word, "epoch", -1) <= self._epoch:
                self._next = None
                if getattr(word, "epoch", -1) < self._epoch:
                    self._match(word)
                    continue
                if not isinstance(word, Log):
                    raise ProtocolViolation(f"expected Log, the peer sent {brief(word)}")
                self._give(word)
        except PeerLost:
            self._machine.call(self._companion.fileno(), None)
        except ProtocolViolation as exc:
            self._machine.call(self._companion.fileno(), None)
            self._violated(str(exc))
        if self._next is not None:  # it waits for its epoch, and so does all behind it
            self._machine.call(self._companion.fileno(), None)

    def _word(self) -> Message | None:
        if self._next is None:
            self._next = self._companion.receive()
        return self._next

    def _match(self, word: Message) -> None:
        """Of an epoch that is over, whatever its policy: its frames are in what our guest was made from."""
        if isinstance(word, Log):
            for _, port, payload in word.inputs:
                if port in self._frames:
                    self._frames[port].given(payload)

    def _give(self, word: Log) -> None:
        for frames in self._frames.values():
            frames.collect()
        for _, port, payload in word.inputs:
            if port not in self._machine.door.ports:
                raise ProtocolViolation(f"an input for {port!r}, which is no port here")
            if port in OWN_EVENTS:
                continue
            if port in self._frames and self._frames[port].given(payload):
                self._had_of_late += 1
                continue
            if port in self._frames:
                self._had_of_late = 0
            self._enter(port, payload)
        self._forget_console(word.spoken.get(PORT, 0) - self._console_at)
        if self._hears != (hears := self._had_of_late >= HAD_MIN):
            self._hears = hears
            self._say(Progress(self._epoch, int(hears), 0))

    def _enter(self, port: str, payload: bytes) -> None:
        self._machine.door.enter(port, self._replica.to_guest(port, payload))
        self.given += 1

    # What comes here as well as to the primary

    def _listen(self) -> None:
        for card in self._machine.nets:
            card.agree_on_offloads()  # frames are compared with the primary's as they come
        for name, descriptor in self._descriptors().items():
            hear = partial(self._hear_frames, name, descriptor)
            self._machine.call(descriptor, hear)
            hear()

    def _descriptors(self) -> dict[str, int]:
        """Of the cards that anything can come to, by name."""
        numbers = {net.name: net.backend.fileno() for net in self._replica.nets}
        return {name: number for name, number in numbers.items() if name in self._frames and number >= 0}

    def _hear_frames(self, name: str, descriptor: int) -> None:
        for frame in self._frames[name].fresh():
            self._enter(name, frame)
        if self._machine.door.is_full(name):
            self._full[name] = descriptor
            self._machine.call(descriptor, None)

    def _hear_again(self) -> None:
        for name, descriptor in [*self._full.items()]:
            if not self._machine.door.is_full(name):
                del self._full[name]
                self._machine.call(descriptor, partial(self._hear_frames, name, descriptor))

    # What our guest says

    def _speak_soon(self) -> None:
        """A short frame goes at once, since somebody waits for it; a long one may be the first of many."""
        if self._sayings.waiting_bytes <= SHORT_BYTES:
            self._speak()
        else:
            self._machine.cpu.request_stop()  # between this block and the next

    def _speak(self) -> None:
        now_s = self._now_s()
        while packets := self._sayings.take(WORD_BYTES):
            for packet in packets:
                self._keep(now_s, packet)
            self._say(Said(self._epoch, packets))

    def _say(self, word: Message) -> None:
        with suppress(PeerLost):  # met, and acted on, elsewhere
            self._companion.send(word)

    def _look(self, waits: bool) -> None:
        """Between two blocks."""
        if self._companion.backlog:
            with suppress(PeerLost):
                self._companion.flush()
        if self._sayings.waiting:
            self._speak()
        if self._full:
            self._hear_again()
        now_s = self._now_s()
        if now_s - self._round_s >= FRAMES_ROUND_S:
            self._round_s = now_s
            for frames in self._frames.values():
                frames.collect()
                frames.committed()

    # What the primary may die before it says

    def _keep(self, now_s: float, packet: Packet) -> None:
        port, data = packet
        if port != PORT:
            self._recent.append((now_s, packet))
            return
        self._console += data
        self._forget_console(len(self._console) - CONSOLE_KEPT)

    def _forget_console(self, count: int) -> None:
        if count > 0:
            del self._console[:count]
            self._console_at += count

    # Taking over

    def drain(self) -> None:
        """Every input that the primary's guest had, as far as it came; no more will."""
        self._companion.shut()
        self._look(waits=False)
        self.hear()

    def repeated(self) -> list[Packet]:
        since_s = self._now_s() - REPEATED_S
        console = [(PORT, bytes(self._console))] if self._console else []
        recent = [packet for at_s, packet in self._recent if at_s >= since_s]
        again = self._translation.once_more
        return [*((port, again(port, frame)) for port, frame in recent), *console]
