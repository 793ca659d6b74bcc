"""What passes a network back end, recorded for Wireshark.

Follows the classic capture format (draft-ietf-opsawg-pcap): a 24-byte file header, then for each
frame seconds, nanoseconds, stored length and original length.  The magic number 0xA1B23C4D says that
the fractions are nanoseconds.  Written least significant byte first on every host.

Times are virtual time counted from ``epoch_s``, so one run gives one file, byte for byte.  Frames
are recorded as the device sees them: one that the guest sent is there even if the back end then lost
it, in the order in which they passed.  The virtio-net header in front of a frame of an offloading back
end is left out, with two effects that a reader should know: checksums left to the host look wrong, and
a TCP segment may be larger than the MTU.

Not written: the direction of a frame (the format has no place for it; the addresses tell).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vmm.backends.net import VNET_HEADER, NetBackend
from vmm.backends.tap import Tap
from vmm.errors import BackendError

MAGIC_NS = 0xA1B23C4D
VERSION = (2, 4)
SNAPLEN = 262144
"""No frame is cut: this is the largest value that readers accept, and frames are smaller."""
LINKTYPE_ETHERNET = 1
FLUSH_EVERY = 64
"""Frames after which the file is brought up to date, so that it can be watched while it grows."""
CAPTURE_MAX = 4 << 30
"""Bytes of one capture: a machine left running must not fill the host's disk."""

_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_SECOND_NS = 1_000_000_000


class PcapTap:
    """``backend``, with a copy of every frame written to the file ``path``."""

    __slots__ = (
        "_backend",
        "_clock_ns",
        "_epoch_s",
        "_file",
        "_path",
        "_skip",
        "_written",
        "frames",
        "unrecorded",
    )

    def __init__(self, backend: NetBackend, path: str, clock_ns: Callable[[], int], epoch_s: int = 0) -> None:
        self._backend = backend
        self._path = path
        self._clock_ns = clock_ns
        self._epoch_s = epoch_s
        self._skip = VNET_HEADER if backend.offloads else 0
        self._written = _FILE_HEADER.size
        self.frames = 0
        self.unrecorded = 0  # frames beyond CAPTURE_MAX
        try:
            self._file: BinaryIO = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        except OSError as exc:
            raise self._failed(exc) from None
        try:
            self._file.write(_FILE_HEADER.pack(MAGIC_NS, *VERSION, 0, 0, SNAPLEN, LINKTYPE_ETHERNET))
            self._file.flush()
        except OSError as exc:
            with suppress(OSError):  # closing tries to write once more
                self._file.close()
            raise self._failed(exc) from None

    @property
    def offloads(self) -> bool:
        return self._backend.offloads

    @property
    def dropped(self) -> int:
        return self._backend.dropped

    @property
    def pending_output(self) -> bool:
        return self._backend.pending_output

    def fileno(self) -> int:
        return self._backend.fileno()

    def receive(self) -> bytes | None:
        frame = self._backend.receive()
        if frame is not None:
            self._record(frame)
        return frame

    def transmit(self, frame: bytes | memoryview) -> None:
        self._record(frame)
        self._backend.transmit(frame)

    def flush(self) -> None:
        self._backend.flush()

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool) -> None:
        """Of the TAP behind this, if there is one."""
        if isinstance(self._backend, Tap):
            self._backend.set_offloads(checksum=checksum, tso4=tso4, tso6=tso6)

    def close(self) -> None:
        self._backend.close()
        try:
            self._file.close()
        except OSError as exc:
            raise self._failed(exc) from None

    def _record(self, frame: bytes | memoryview) -> None:
        data = frame[self._skip : self._skip + SNAPLEN]
        length = max(len(frame) - self._skip, 0)
        if self._written + _RECORD.size + len(data) > CAPTURE_MAX:
            self.unrecorded += 1
            return
        seconds, fraction = divmod(self._clock_ns(), _SECOND_NS)
        stamp = (self._epoch_s + seconds) & 0xFFFF_FFFF  # the format's own limit: it wraps in 2106
        try:
            self._file.write(_RECORD.pack(stamp, fraction, len(data), length))
            self._file.write(data)
            self.frames += 1
            if self.frames % FLUSH_EVERY == 0:
                self._file.flush()
        except OSError as exc:
            raise self._failed(exc) from None
        self._written += _RECORD.size + len(data)

    def _failed(self, exc: OSError) -> BackendError:
        return BackendError(
            f"capture {self._path}: cannot be written ({exc.strerror}): expected a file in a directory with"
            " room that may be written to; name another"
        )
