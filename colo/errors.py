"""Every exception of the replication layer, in one tree.

    ColoError                      says what was being done, found, expected, what to do
     ├── PeerLost                  the link or the machine behind it is gone: failover decides what next
     ├── ProtocolViolation         the peer said something that the protocol does not allow
     │    └── FrameError           bytes that are no frame of ours: damaged, too long, out of order
     ├── Refused                   the other side's handshake does not fit ours; the reason is in it
     ├── NetworkError              a namespace, bridge, TAP or published port could not be had
     ├── Departed                  a guest that follows a log is no longer what the log says
     ├── ArbiterError              the arbiter could not be asked: nobody may act alone on that
     ├── FaultError                a fault, trial or plan that makes no sense (:mod:`colo.faults.errors`)
     │    └── PlanError            the same, with file and line
     ├── WorldError                a simulated world that cannot be, or stands still (:mod:`colo.sim.loop`)
     └── ControlError              a QMP command that failed, as QEMU words it

A machine's own exceptions are in :mod:`vmm.errors`.  ``PeerLost`` is handled where a half of the
protocol ends (:mod:`colo.failover`) and nowhere else.
"""

from __future__ import annotations


class ColoError(Exception):
    """Base of everything that the world can do to a pair."""


class PeerLost(ColoError):
    """The link or the machine behind it is gone; nothing is proved about the machine."""


class ProtocolViolation(ColoError):
    """The peer said something that the protocol does not allow.  Never retried."""


class FrameError(ProtocolViolation):
    """Bytes that are no frame of ours."""


class Refused(ColoError):
    """The handshake found two nodes that cannot be a pair."""


class NetworkError(ColoError):
    """A namespace, bridge, TAP or published port could not be had."""


class Departed(ColoError):
    """A guest that follows a log is no longer what the log says; a checkpoint repairs that."""


class ArbiterError(ColoError):
    """The arbiter gave no answer: neither won nor lost."""


class ControlError(ColoError):
    """A QMP command that failed; ``kind`` is QMP's error class."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind
