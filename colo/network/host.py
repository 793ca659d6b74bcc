"""The network of a protected pair on one host, as its supervisor sees it.

    with Network("colo-demo", publish=[(6379, 6379)]) as network:
        ... start nodes with network.namespace, network.user_namespace and network.nic("tap-a") ...

A namespace with a bridge and one TAP a node (:mod:`colo.network.links`) belongs to a holder process
(:mod:`colo.network.holder`), which also carries the clients of published ports to the guest
(:mod:`colo.network.forward`).  So neither node's death touches a client's connection, and everything
goes when the holder goes: at ``close``, or when the supervisor dies, however it dies.

A node enters the namespace first thing (:func:`enter`), and opens its TAP by name there.  Where neither
root nor user namespaces are to be had, :class:`colo.network.hub.HubNetwork` has the same interface.

Not modelled: the network between two hosts.  Each node then brings its own TAP, on a bridge that the
people who run the two hosts share.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from colo.errors import NetworkError
from colo.network import links as network_links
from colo.network.holder import MESSAGE_MAX, STATS, Hello
from colo.network.links import ADDRESS, GUEST_ADDRESS, RTO_MIN_MS, Plan
from colo.network.namespace import command_in, enter, python_module, run_in
from colo.network.ports import Publish, listen, published

__all__ = ["Network", "Plan", "Publish", "command_in", "enter", "run_in"]

START_WAIT_S = 20.0
"""Until the holder is ready: a third of a second on an idle host, far more on a busy one."""
ANSWER_WAIT_S = 5.0
"""Until the holder answers or ends, which takes it one turn of its loop."""


class Network:
    """The network ``name``; a pair of numbers in ``publish`` is a port of 127.0.0.1 and the guest's."""

    limits = ""
    """What cannot be done with it: nothing that the design asks for."""
    unplugged = "none,offloads"
    """The word for a card that will be plugged into it later: a TAP takes offloads."""

    def __init__(
        self,
        name: str,
        publish: Sequence[Publish | tuple[int, int]] = (),
        address: str = ADDRESS,
        guest_address: str = GUEST_ADDRESS,
        *,
        rto_min_ms: int = RTO_MIN_MS,
    ) -> None:
        self.name = name
        self.plan = Plan(address=address, guest_address=guest_address, rto_min_ms=rto_min_ms)
        self.plan.check()
        self.published = published(publish)
        self.taps = self.plan.taps
        self.guest_address = guest_address
        self.namespace: str | None = None
        self.user_namespace: str | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make everything, or raise NetworkError and leave nothing."""
        assert self._holder is None
        listeners = listen(self.published)
        try:
            self._spawn(listeners)
            hello = self._greeting()
        except BaseException:
            self.close()
            raise
        finally:
            for _, listener in listeners:
                listener.close()  # the holder's copy lives on
        self.published = [port for port, _ in listeners]
        self.namespace = f"/proc/{self.pid}/ns/net"
        self.user_namespace = f"/proc/{self.pid}/ns/user" if hello.user_namespace else None

    @property
    def pid(self) -> int | None:
        """The holder's."""
        return self._holder.pid if self._holder is not None else None

    @property
    def alive(self) -> bool:
        return self._holder is not None and self._holder.poll() is None

    def nic(self, tap: str) -> str:
        """The word for vmm.backends.net.parse with which a node in the namespace gets this TAP."""
        assert tap in self.taps, f"{tap} is none of {self.taps}"
        return f"tap={tap}"

    def add_tap(self, name: str) -> None:
        """One more TAP on the bridge, for one more node."""
        done = self.run([*python_module("colo.network.links"), name], capture_output=True, text=True)
        if done.returncode != 0:
            raise NetworkError(f"network {self.name}: {done.stderr.strip()}")
        self.taps = (*self.taps, name)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` inside, as that same process."""
        return command_in(self._inside(), argv, self.user_namespace)

    def run(
        self, argv: Sequence[str], *, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program inside and wait for it; ``options`` are those of subprocess.run."""
        return run_in(self._inside(), argv, self.user_namespace, check=check, **options)

    def stats(self) -> dict[str, int]:
        """Of the published ports: clients accepted, established, unreachable (the guest did not answer),
        refused (too many), resets, open; bytes carried, both ways."""
        self._inside()
        assert self._control is not None
        try:
            self._control.send(STATS)
            answer = self._control.recv(MESSAGE_MAX)
        except OSError as exc:
            answer = b""
            found = exc.strerror or "no answer"
        else:
            found = "it has ended"
        if not answer:
            raise NetworkError(
                f"network {self.name}: asking its holder, process {self.pid}: {found}: expected it to live as"
                " long as the pair; start the pair again"
            )
        return msgspec.json.decode(answer, type=dict[str, int])

    def explain(self) -> list[str]:
        """Shell commands, for root, that make the same by hand."""
        lines = network_links.explain(self.name, self.plan)
        for port in self.published:
            inner = f"ip netns exec {self.name} socat STDIO TCP:{self.guest_address}:{port.guest_port}"
            bind = f"bind={port.host}," if ":" not in port.host else f"pf=ip6,bind=[{port.host}],"
            lines.append(
                f"socat TCP-LISTEN:{port.host_port},{bind}fork,reuseaddr"
                f""" EXEC:'"{inner}"' &"""
            )
        return lines

    def explain_close(self) -> list[str]:
        """Shell commands that remove what those of ``explain`` made."""
        stop = [f"kill %{number}" for number in range(1, len(self.published) + 1)]
        return [*stop, f"ip netns delete {self.name}"]

    def close(self) -> None:
        """End the holder and with it everything.  Nodes that are still inside keep the namespace."""
        if self._control is not None:
            self._control.close()
            self._control = None
        holder, self._holder = self._holder, None
        self.namespace = self.user_namespace = None
        if holder is not None:
            try:
                holder.wait(ANSWER_WAIT_S)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()

    def _spawn(self, listeners: list[tuple[Publish, socket.socket]]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ports = [f"{listener.fileno()}:{port.guest_port}" for port, listener in listeners]
            plan = msgspec.json.encode(self.plan).decode()
            arguments = [self.name, str(theirs.fileno()), str(os.getpid()), plan, *ports]
            self._holder = subprocess.Popen(
                [*python_module("colo.network.holder"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *(listener.fileno() for _, listener in listeners)),
                start_new_session=True,  # Ctrl-C is not for it
            )

    def _greeting(self) -> Hello:
        assert self._control is not None
        self._control.settimeout(START_WAIT_S)
        try:
            said = self._control.recv(MESSAGE_MAX)
        except OSError as exc:
            said, found = (
                b"",
                f"no word in {START_WAIT_S:.0f} s" if isinstance(exc, TimeoutError) else str(exc),
            )
        else:
            found = "it ended at once; what it printed is above"
        if not said:
            raise NetworkError(
                f"network {self.name}: starting its holder: {found}: expected it to be ready; look at the"
                " host's load, or use --network hub"
            )
        hello = msgspec.json.decode(said, type=Hello)
        if hello.error is not None:
            raise NetworkError(f"network {self.name}: {hello.error}")
        self._control.settimeout(ANSWER_WAIT_S)
        return hello

    def _inside(self) -> str:
        if self.namespace is None:
            raise NetworkError(f"network {self.name}: not started: expected start() before it is used")
        return self.namespace
