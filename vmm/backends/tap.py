"""A TAP interface: the guest's cable ends in the host's network stack.

Follows the kernel's Documentation/networking/tuntap.rst and ``linux/if_tun.h``: IFF_TAP (Ethernet
frames), IFF_NO_PI (no packet information), IFF_VNET_HDR with a 12-byte header, which is
``struct virtio_net_hdr_v1`` of virtio 1.2, section 5.1.6, in the byte order of an x86 host and of
a virtio 1 guest alike.  With the header the guest may leave checksums and TCP segmentation to the
host and hand over 64 KiB at once: one trip through the device where there would be forty-four.

A named interface that does not exist is made by the kernel and goes away with the descriptor.
Addresses, bridges and bringing the interface up are the business of whoever runs the machine.
Frames sent while the interface is down are dropped and counted.  Not modelled: multiple queues
(there is one CPU), IFF_NAPI, filters.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vmm.backends.net import FRAME_MAX, FRAME_MIN, VNET_HEADER
from vmm.errors import BackendError

DEVICE = "/dev/net/tun"
NAME_MAX = 15
"""IFNAMSIZ of linux/if.h, without the final zero."""

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04

SHORTEST = VNET_HEADER + FRAME_MIN
TOO_LONG = VNET_HEADER + FRAME_MAX + 1
"""Bytes that are asked for: a frame that fills them is longer than it may be."""

_GONE = (errno.EBADFD, errno.ENODEV)
"""What the kernel says when the interface was deleted under its descriptor."""


class Tap:
    """The TAP interface ``name``, made if it does not exist."""

    __slots__ = ("descriptor", "dropped", "name")
    offloads = True
    pending_output = False  # the kernel takes a frame or loses it; there is nothing to wait for

    def __init__(self, name: str) -> None:
        _check_name(name)
        self.name = name
        self.dropped = 0
        self.descriptor = _open_device(name)
        try:
            _attach(self.descriptor, name)
            self.set_offloads(checksum=True, tso4=True, tso6=True)
        except BaseException:
            self.close()
            raise

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool) -> None:
        """Say which work the guest's driver can spare the host on frames that come in.

        All of it at first; a device whose driver accepted less (VIRTIO_NET_F_GUEST_CSUM, _TSO4,
        _TSO6) says so here, and the kernel then completes checksums and segments by itself.
        """
        flags = TUN_F_CSUM if checksum else 0
        if checksum:  # segmentation without checksums is refused by the kernel
            flags |= (TUN_F_TSO4 if tso4 else 0) | (TUN_F_TSO6 if tso6 else 0)
        try:
            fcntl.ioctl(self.descriptor, TUNSETOFFLOAD, flags)
        except OSError as exc:
            raise BackendError(
                f"tap={self.name}: the kernel refuses checksum and TCP segmentation offload"
                f" ({exc.strerror}); expected Linux 2.6.27 or later"
            ) from None

    def fileno(self) -> int:
        return self.descriptor

    def receive(self) -> bytes | None:
        try:
            frame = os.read(self.descriptor, TOO_LONG)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self._lost(exc) from None
        return self.admitted(frame)

    def admitted(self, frame: bytes) -> bytes | None:
        if SHORTEST <= len(frame) < TOO_LONG:
            return frame
        self.dropped += 1
        return None

    def transmit(self, frame: bytes | memoryview) -> None:
        if not SHORTEST <= len(frame) < TOO_LONG:
            self.dropped += 1
            return
        try:
            os.write(self.descriptor, frame)
        except OSError as exc:
            # EIO: the interface is down.  EINVAL: the guest's header contradicts its frame.
            if exc.errno in _GONE:
                raise self._lost(exc) from None
            self.dropped += 1

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _lost(self, exc: OSError) -> BackendError:
        return BackendError(
            f"tap={self.name}: the interface failed while in use ({exc.strerror}): expected it to live as"
            " long as the machine; look whether something deleted it (ip monitor link)"
        )


def _check_name(name: str) -> None:
    if not 0 < len(name.encode()) <= NAME_MAX or set(name) & set("/%: \t\n\0") or name in (".", ".."):
        raise BackendError(
            f"tap={name}: not the name of an interface: expected 1 to {NAME_MAX} bytes without"
            " '/', '%', ':' and spaces; try tap=tap0"
        )


def _open_device(name: str) -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        mend = "load the module (modprobe tun), or give the container the device (--device /dev/net/tun)"
        found = "does not exist"
    except PermissionError:
        mend, found = "run as root, or use stream= or hub=, which need no privilege", "may not be opened"
    except OSError as exc:
        mend, found = "load the module (modprobe tun)", f"could not be opened ({exc.strerror})"
    raise BackendError(f"tap={name}: {DEVICE} {found}: a TAP interface needs it; {mend}")


def _attach(fd: int, name: str) -> None:
    request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as exc:
        raise BackendError(f"tap={name}: {_why_refused(exc, name)}") from None
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))


def _why_refused(exc: OSError, name: str) -> str:
    match exc.errno:
        case errno.EPERM:
            return (
                "not permitted to make or open it: expected root, or an interface that belongs to you; as"
                f" root: ip tuntap add {name} mode tap user {os.getuid()} && ip link set {name} up"
            )
        case errno.EBUSY:
            return (
                "in use by another process: expected it to be free; stop that machine or choose another"
                f" name (fuser -v {DEVICE} lists who holds one)"
            )
        case errno.EINVAL:
            return (
                "exists but is not a plain TAP interface: expected mode tap with one queue; choose another"
                f" name, or remove it (ip link del {name})"
            )
    return f"the kernel refuses it ({exc.strerror}): expected to open or make the interface; look at dmesg"
