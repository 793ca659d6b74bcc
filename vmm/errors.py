"""Every exception the machine raises, in one tree.

    VmmError                       the world misbehaved: says what, where, found, expected, what to do
     ├── ConfigError               a machine that cannot be built as asked
     ├── EngineError               the CPU engine is not one we know, or broke a promise
     ├── ImageError                a kernel, boot sector or disk image that is not what it should be
     ├── StateError                bytes that do not unpack to the declared state
     │    └── SnapshotError        a snapshot file that cannot be loaded
     ├── ReplayError               a replay that departs from its log
     ├── BackendError              a host-side resource (TAP, socket, file) failed
     ├── ScriptError               a console script or limit that was not met
     └── GuestBuildError           a guest recipe that could not be prepared
    BadAddress(Exception)          DMA outside RAM: raised by Memory, caught by the device that asked

Three kinds of wrong are kept apart.  A guest that misbehaves gets all-ones or is ignored, and is
counted; nothing is raised out of a chip.  A world that misbehaves raises one of the above.  We
misbehaving is an ``assert``, which nobody catches.
"""

from __future__ import annotations


class VmmError(Exception):
    """Base of everything a user can cause and mend."""


class ConfigError(VmmError):
    """A machine that cannot be built as asked."""


class EngineError(VmmError):
    """The CPU engine is not one we know, or did what it never should."""


class ImageError(VmmError):
    """A kernel, boot sector, module or disk image that is not what it should be."""


class StateError(VmmError):
    """Bytes that do not unpack to the declared state; names the field."""


class SnapshotError(StateError):
    """A snapshot file that cannot be loaded."""


class ReplayError(VmmError):
    """A replay that departs from its log; says at which virtual time and how."""


class BackendError(VmmError):
    """A host-side resource (TAP, socket, file) that failed."""


class ScriptError(VmmError):
    """A console script step or limit that was not met."""


class GuestBuildError(VmmError):
    """A guest recipe that could not be prepared."""


class BadAddress(Exception):
    """A DMA access outside RAM.

    Not a VmmError: it is the guest's fault, so the device that asked catches it, counts it and
    answers as its data sheet says.
    """

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"[{address:#x}, +{length:#x}) is not RAM")
        self.address = address
        self.length = length
