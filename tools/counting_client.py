"""A Redis client that counts: INCR on several connections, every reply judged, every wait timed.

    python -m tools.counting_client PORT CONNECTIONS

It is a process of its own, so that nobody else's work delays what it measures.  Each connection has a
key and asks again as soon as it was answered (closed loop), so each reply must be the one before it and
one more: a smaller one means that an acknowledged write is gone, any other that something was done
twice or not at all.  Nothing is sent again on a connection that lives: what a failover loses, TCP
repeats, or nobody does.  A connection that breaks is counted, made again, and asked what its key holds.

Time is divided into phases.  A line on standard input names the next one and ends the one before; the
end of the input ends the client, which then asks for every key once more, on new connections.  Lines on
standard output are JSON objects: ``live`` a few times a second, ``phase`` for each phase that ended,
``end``.  A wait belongs to the phase in which its reply came.

RESP, the protocol of Redis, as far as these commands need it: replies of one line.  The keys are new
for each process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

HOST = "127.0.0.1"
ANSWER_S = 10.0
"""Whoever has waited so long has no connection any more."""
CONNECT_S = 1.0
"""On this host somebody listens or does not; the other connections wait meanwhile."""
RETRY_S = 0.1
LIVE_S = 0.2
CHUNK = 4096
LINE_MAX = 1024
"""Bytes of a reply; one without an end is none of Redis."""
SAMPLES_MAX = 3
"""Wrong replies that are kept as they were."""

Say = Callable[[str, dict[str, object]], None]


@dataclass
class Tally:
    """What happened in one phase."""

    name: str
    began_s: float
    replies: int = 0
    wrong: int = 0
    lost: int = 0
    """Acknowledged increments that are not there any more."""
    resets: int = 0
    longest_s: float = 0.0

    def facts(self) -> dict[str, object]:
        seconds = time.monotonic() - self.began_s
        return {
            "phase": self.name,
            "seconds": round(seconds, 3),
            "replies": self.replies,
            "wrong": self.wrong,
            "lost": self.lost,
            "resets": self.resets,
            "longest_ms": round(self.longest_s * 1e3, 2),
        }


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Counter:
    """One connection, and what its key must hold."""

    def __init__(self, port: int, key: bytes) -> None:
        self.key = key
        self.value = 0
        """The last acknowledged one."""
        self.samples: list[str] = []
        self._port = port
        self._increment = command(b"INCR", key)
        self._look = command(b"INCRBY", key, b"0")  # GET, with a reply of one line
        self._unread = b""
        self._resumes = False
        """The next reply says what the key holds, after a connection was lost."""
        self._due = False
        """An increment is under way: whether it was done is not known."""
        self.asked_s = 0.0
        self.socket: socket.socket | None = None
        self.retry_s = 0.0

    def connect(self) -> None:
        """OSError if there is nobody."""
        self.socket = socket.create_connection((HOST, self._port), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""

    def ask(self) -> None:
        """OSError when the connection is gone."""
        assert self.socket is not None
        self.asked_s = time.monotonic()
        self._due = self._due or not self._resumes
        self.socket.sendall(self._look if self._resumes else self._increment)

    def receive(self) -> bytes | None:
        """The reply, when it is whole.  OSError when the connection is gone."""
        assert self.socket is not None
        data = self.socket.recv(CHUNK)
        if not data or len(self._unread) > LINE_MAX:
            raise ConnectionResetError("closed")
        self._unread += data
        line, end, rest = self._unread.partition(b"\r\n")
        if not end:
            return None
        self._unread = rest
        return line

    def judge(self, line: bytes, tally: Tally) -> None:
        """Is this the reply that must be?"""
        tally.replies += 1
        found = int(line[1:]) if line[:1] == b":" and line[1:].lstrip(b"-").isdigit() else None
        expected = [self.value + 1] if self._due else []
        if self._resumes:
            expected.insert(0, self.value)
        self._resumes = self._due = False
        if found not in expected:
            tally.wrong += 1
            if len(self.samples) < SAMPLES_MAX:
                self.samples.append(f"{self.key.decode()}: expected :{expected[-1]}, got {line[:80]!r}")
        if found is not None:
            tally.lost += max(0, expected[0] - found)
            self.value = found

    def broke(self, tally: Tally) -> None:
        """The connection is gone: that is a reset, whoever did it."""
        tally.resets += 1
        self.close()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket, self._resumes = None, True
        self.retry_s = time.monotonic() + RETRY_S


class Client:
    """All connections, in one thread."""

    def __init__(self, port: int, connections: int, say: Say) -> None:
        prefix = f"count:{os.getpid()}:{time.time_ns():x}"
        self.counters = [Counter(port, f"{prefix}:{number}".encode()) for number in range(connections)]
        self._say = say
        self._poll = select.epoll()
        self._found: dict[int, Counter] = {}
        self._tally = Tally("start", time.monotonic())
        self._live_s, self._live_replies = time.monotonic(), 0

    def run(self, commands: int) -> None:
        """Until the input ends."""
        self._poll.register(commands, select.EPOLLIN)
        for counter in self.counters:
            self._connect(counter)
        while True:
            for descriptor, _ in self._poll.poll(LIVE_S / 2):
                if descriptor == commands:
                    words = os.read(commands, CHUNK)
                    if not words:
                        self._finish()
                        return
                    self._next_phase(words.decode().splitlines()[-1])
                elif descriptor in self._found:
                    self._step(self._found[descriptor])
            self._look_after()

    def _connect(self, counter: Counter) -> None:
        try:
            counter.connect()
            assert counter.socket is not None
            self._found[counter.socket.fileno()] = counter
            self._poll.register(counter.socket, select.EPOLLIN)
            counter.ask()
        except OSError:
            self._broke(counter)

    def _step(self, counter: Counter) -> None:
        try:
            line = counter.receive()
            if line is None:
                return
            self._tally.longest_s = max(self._tally.longest_s, time.monotonic() - counter.asked_s)
            counter.judge(line, self._tally)
            counter.ask()
        except OSError:
            self._broke(counter)

    def _broke(self, counter: Counter) -> None:
        if counter.socket is not None and counter.socket.fileno() in self._found:
            del self._found[counter.socket.fileno()]
            self._poll.unregister(counter.socket)
        counter.broke(self._tally)

    def _look_after(self) -> None:
        """Connections that broke or are stuck, and the live line."""
        now = time.monotonic()
        for counter in self.counters:
            if counter.socket is None:
                if now >= counter.retry_s:
                    self._connect(counter)
            elif now - counter.asked_s > ANSWER_S:
                self._broke(counter)
        if now - self._live_s >= LIVE_S:
            self._say("live", self._live(now))

    def _live(self, now: float) -> dict[str, object]:
        rate = (self._tally.replies - self._live_replies) / (now - self._live_s)
        self._live_s, self._live_replies = now, self._tally.replies
        waiting = max((now - each.asked_s for each in self.counters if each.socket), default=0.0)
        return {"per_s": round(rate), "waiting_ms": round(waiting * 1e3, 2), **self._tally.facts()}

    def _next_phase(self, name: str) -> None:
        self._say("phase", {"at_s": round(time.monotonic(), 6), **self._tally.facts()})
        self._tally = Tally(name, time.monotonic())
        self._live_replies = 0

    def _finish(self) -> None:
        """Take the replies that are due, then see what every key holds."""
        deadline = time.monotonic() + ANSWER_S
        for counter in self.counters:
            self._last_word(counter, deadline)
        self._say("phase", {"at_s": round(time.monotonic(), 6), **self._tally.facts()})
        last = Tally("end", time.monotonic())
        for counter in self.counters:
            self._last_word(counter, deadline + ANSWER_S, again=True, tally=last)
        samples = [sample for counter in self.counters for sample in counter.samples][:SAMPLES_MAX]
        self._say("end", {**last.facts(), "keys": len(self.counters), "samples": samples})

    def _last_word(
        self, counter: Counter, deadline: float, again: bool = False, tally: Tally | None = None
    ) -> None:
        """One more reply: the one that is due, or ``again`` what the key holds, asked anew."""
        tally = tally or self._tally
        try:
            if again:
                counter.close()
                counter.connect()
                counter.ask()
            line = None
            while line is None:
                if counter.socket is None:
                    return
                counter.socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                line = counter.receive()
            counter.judge(line, tally)
        except OSError:  # TimeoutError too
            counter.broke(tally)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us decides, by closing our input
    port, connections = map(int, arguments)

    def say(event: str, facts: dict[str, object]) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)

    try:
        Client(port, connections, say).run(sys.stdin.fileno())
    except BrokenPipeError:  # nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
