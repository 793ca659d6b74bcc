"""The process that owns a pair's network namespace and forwards its published ports.

    python -m colo.network.holder NAME CONTROL SUPERVISOR PLAN LISTENER:GUEST-PORT...

CONTROL and LISTENER are numbers of inherited sockets, SUPERVISOR is the process to serve, PLAN is
colo.network.links.Plan in JSON.  On the control socket (SOCK_SEQPACKET, one JSON object a message) it
says once that it is ready, or why it cannot be; after that it answers each request for statistics.

It ends when the control socket ends or the supervisor does, whichever is noticed first: a child that
the supervisor forked may hold a copy of the socket, so the process itself is watched too, through a
pidfd (pidfd_open(2)).  PR_SET_PDEATHSIG would not do: it tells of the end of the thread that started
the holder.  With the holder go its sockets; with the last process inside goes the namespace.

It is a session of its own and ignores SIGINT: Ctrl-C is the supervisor's to interpret, and connections
outlive it as long as the supervisor wants.

The links are made by a forked child, so that the process which lives on and carries the clients has
neither pyroute2's 24 MB nor its event loop.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback

import msgspec

from colo.errors import NetworkError
from colo.network import namespace as network_namespace
from colo.network.forward import IN, Forwarder, Poller
from colo.network.links import Plan, build

MESSAGE_MAX = 16384
"""Bytes of a message on the control socket: one line of text or a few numbers."""
STATS = b"stats"


class Hello(msgspec.Struct):
    """The holder's first message: ready, or not and why."""

    error: str | None = None
    user_namespace: bool = False


def main(arguments: list[str]) -> None:
    _name, control_fd, supervisor, plan_text, *ports = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    control = socket.socket(fileno=int(control_fd))
    plan = msgspec.json.decode(plan_text, type=Plan)
    try:
        watch = _watch(int(supervisor))
        needed_user = network_namespace.create()
        _build_in_child(plan)
    except NetworkError as exc:
        control.send(msgspec.json.encode(Hello(error=str(exc))))
        return
    listeners = []
    for port in ports:
        fd, _, guest_port = port.partition(":")
        listeners.append((socket.socket(fileno=int(fd)), (plan.guest_address, int(guest_port))))
    control.send(msgspec.json.encode(Hello(user_namespace=needed_user)))
    serve(control, watch, listeners)


def serve(control: socket.socket, watch: int, listeners: list[tuple[socket.socket, tuple[str, int]]]) -> None:
    """Forward until the supervisor is gone."""
    poller = Poller()
    forwarder = Forwarder(poller, listeners)
    wanted = True

    def stop(_events: int) -> None:
        nonlocal wanted
        wanted = False

    def answer(events: int) -> None:
        try:
            if control.recv(MESSAGE_MAX) == STATS:
                control.send(msgspec.json.encode(forwarder.stats()))
            else:
                stop(events)
        except OSError:  # closed while we answered
            stop(events)

    poller.add(watch, IN, stop)
    poller.add(control.fileno(), IN, answer)
    gc.freeze()  # what there is stays; collections look at connections alone
    while wanted:
        poller.step(forwarder.wait_s())
        forwarder.expire()


def _watch(supervisor: int) -> int:
    """A descriptor that becomes readable when the supervisor has ended."""
    try:
        watch = os.pidfd_open(supervisor)
    except OSError as exc:
        raise NetworkError(
            f"watching the supervisor {supervisor}: {exc.strerror}: expected Linux 5.3"
        ) from None
    if os.getppid() != supervisor:  # it ended before, and the number may be somebody else's
        raise NetworkError(f"the supervisor {supervisor} has ended: expected it to wait for its network")
    return watch


def _build_in_child(plan: Plan) -> None:
    """Make the links in a child, which has the same namespaces; its NetworkError becomes ours."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            build(plan)
            status = 0
        except NetworkError as exc:
            os.write(writing, str(exc).encode())
        except BaseException:  # a child must not go on as if it were the holder
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read(MESSAGE_MAX).decode()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise NetworkError(said or "making the links failed: the trace is above; this is a bug of ours")


if __name__ == "__main__":
    main(sys.argv[1:])
