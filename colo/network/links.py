"""What is inside a pair's network namespace: a bridge with the gateway's address, and TAPs on it.

    client in the host ── published port ── holder ──┐ (a socket of this namespace)
                                                    br0  10.77.0.1
                                             tap-a ──┴── tap-b
                                            primary     secondary

Follows the kernel's Documentation/networking/bridge.rst and tuntap.rst, ip-link(8) and ip-route(8).

Why it is so:

* The TAPs are persistent: a node attaches to one by name, and when it dies, however it dies, the
  interface loses its carrier and stays, for the next node.
* The bridge never learns (ageing time 0): a frame for the guest goes to every TAP that a node holds.
  A bridge that learns sends to the port where the guest was last heard, and is told of a lost carrier
  by the kernel's link watch, which handles one such event a second: after two deaths within a second
  the survivor would be deaf for up to another (0.9 s measured).  It costs one reference to each frame
  per further node.  A node that holds a TAP without serving the guest must therefore read and drop,
  or its queue (500 frames) is full of old frames when it takes over.
* The TAPs are isolated from each other: what one node's guest says would otherwise go to the
  other node too, which would be woken to drop it.
* No spanning tree and no forward delay: a TAP forwards as soon as it has a carrier.
* The bridge's address is fixed and derived from its IP address.  Left alone it would be the lowest of
  its ports' and change under the guest's ARP cache when a port joins.
* The route to the guest has a minimum retransmission time-out of 20 ms in place of TCP's 200 ms
  (RFC 6298 asks for a second): both ends are in this host, and what the world calls an outage is the
  time until somebody retransmits.  The time-out still follows the measured round trip.
* IPv6 addresses are not generated: neither duplicate address detection nor router solicitations
  reach the guest, whose network traffic is then what its clients and itself sent.

Not modelled: IPv6 for the guest, routing or address translation to the outside world (the guest
reaches its clients, not the Internet), more than one bridge.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import stat
import sys
from typing import Any

import msgspec

from colo.errors import NetworkError
from vmm.backends.tap import DEVICE, Tap
from vmm.errors import BackendError

BRIDGE = "br0"
TAPS = ("tap-a", "tap-b")
ADDRESS, GUEST_ADDRESS = "10.77.0.1/24", "10.77.0.2"
RTO_MIN_MS = 20
"""Shortest TCP retransmission time-out towards the guest."""

TUNSETPERSIST = 0x400454CB
ADDRESS_GENERATION_NONE = 1
"""IN6_ADDR_GEN_MODE_NONE of linux/if_link.h."""
_RTAX_RTO_MIN = 13
"""linux/rtnetlink.h: its bit in RTAX_LOCK makes the kernel heed the metric."""


class Plan(msgspec.Struct, frozen=True):
    """Everything that is to be inside."""

    address: str = ADDRESS
    guest_address: str = GUEST_ADDRESS
    taps: tuple[str, ...] = TAPS
    rto_min_ms: int = RTO_MIN_MS

    @property
    def interface(self) -> ipaddress.IPv4Interface:
        return ipaddress.IPv4Interface(self.address)

    @property
    def mac(self) -> str:
        """A locally administered address that contains the IP address."""
        return "02:00:" + self.interface.ip.packed.hex(":")

    def check(self) -> None:
        """NetworkError for addresses that make no network."""
        try:
            interface, guest = self.interface, ipaddress.IPv4Address(self.guest_address)
        except ValueError as exc:
            raise NetworkError(
                f"the pair's network: {exc}: expected an address such as {ADDRESS} and a guest's"
                f" such as {GUEST_ADDRESS}"
            ) from None
        if guest not in interface.network or guest == interface.ip:
            raise NetworkError(
                f"the pair's network: guest {guest}, gateway {interface}: expected two different addresses"
                " of one network; change either"
            )


def build(plan: Plan) -> None:
    """Make all of it in the namespace that this process is in."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    doing = "starting"
    try:
        with IPRoute() as route:
            doing = "bringing lo up"
            route.link("set", index=_index(route, "lo"), state="up")
            doing = f"making the bridge {BRIDGE}"
            _bridge(route, plan)
            for name in plan.taps:
                doing = f"making the TAP {name}"
                _tap(route, name)
    except NetlinkError as exc:
        raise NetworkError(f"{doing}: {_explained(exc.code)}") from None


def add_tap(name: str) -> None:
    """One more TAP on the bridge of the namespace that this process is in."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            _tap(route, name)
    except NetlinkError as exc:
        raise NetworkError(f"making the TAP {name}: {_explained(exc.code)}") from None


def explain(name: str, plan: Plan) -> list[str]:
    """Shell commands that make the same by hand, for root, in a namespace called ``name``."""
    ip = f"ip -n {name}"
    interface = plan.interface
    settings = "stp_state 0 forward_delay 0 mcast_snooping 0 ageing_time 0"
    route = f"{interface.network} dev {BRIDGE} proto kernel scope link src {interface.ip}"
    lines = [
        f"ip netns add {name}",
        f"{ip} link set lo up",
        f"{ip} link add {BRIDGE} address {plan.mac} type bridge {settings}",
        f"{ip} link set {BRIDGE} addrgenmode none",
        f"{ip} address add {interface} broadcast + dev {BRIDGE}",
        f"{ip} link set {BRIDGE} up",
        f"{ip} route replace {route} rto_min {plan.rto_min_ms}ms",
    ]
    for tap in plan.taps:
        lines += [
            f"{ip} tuntap add {tap} mode tap vnet_hdr",
            f"{ip} link set {tap} addrgenmode none",
            f"{ip} link set {tap} master {BRIDGE} up",
            f"{ip} link set {tap} type bridge_slave isolated on",
        ]
    return lines


def _bridge(route: Any, plan: Plan) -> None:
    interface = plan.interface
    route.link(
        "add",
        ifname=BRIDGE,
        kind="bridge",
        address=plan.mac,
        br_stp_state=0,
        br_forward_delay=0,
        br_mcast_snooping=0,
        br_ageing_time=0,
    )
    index = _index(route, BRIDGE)
    _no_ipv6_addresses(route, index)
    route.addr(
        "add",
        index=index,
        address=str(interface.ip),
        prefixlen=interface.network.prefixlen,
        broadcast=str(interface.network.broadcast_address),
    )
    route.link("set", index=index, state="up")
    route.route(
        "replace",
        dst=str(interface.network),
        oif=index,
        prefsrc=str(interface.ip),
        proto="kernel",
        scope="link",
        metrics={"lock": 1 << _RTAX_RTO_MIN, "rto_min": plan.rto_min_ms},
    )


def _tap(route: Any, name: str) -> None:
    try:
        made = Tap(name)
    except BackendError as exc:
        raise NetworkError(f"{exc}{_device_access()}; or use --network hub") from None
    try:
        fcntl.ioctl(made.fileno(), TUNSETPERSIST, 1)
    finally:
        made.close()
    index = _index(route, name)
    _no_ipv6_addresses(route, index)
    route.link("set", index=index, master=_index(route, BRIDGE), state="up")
    route.brport("set", index=index, isolated=1)


def _device_access() -> str:
    """Who may open the TAP device, where we may not."""
    if os.access(DEVICE, os.R_OK | os.W_OK, effective_ids=True):
        return ""
    try:
        found = os.stat(DEVICE)  # noqa: PTH116 - its mode and owner, no path
    except OSError:  # the message says that it is not there
        return ""
    return (
        f" ({DEVICE} has mode {stat.S_IMODE(found.st_mode):04o} and its owner is another: expected 0666, as"
        f" distributions have it; as root: chmod 666 {DEVICE})"
    )


def _no_ipv6_addresses(route: Any, index: int) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", ADDRESS_GENERATION_NONE)]}
    try:
        route.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})
    except NetlinkError as exc:
        if exc.code != errno.EAFNOSUPPORT:  # a kernel without IPv6 has nothing to be switched off
            raise


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise NetworkError(
            f"the pair's network: no interface {name} in this namespace: expected it to be there; start the"
            " network again"
        )
    return int(found[0])


def _explained(code: int) -> str:
    match code:
        case errno.EEXIST:
            return "exists already: expected a namespace of our own; use the namespace of a new network"
        case errno.EOPNOTSUPP:
            return (
                "this kernel has no such interface: expected CONFIG_BRIDGE; load it (modprobe bridge) or use"
                " --network hub"
            )
        case errno.EPERM:
            return "not permitted: expected CAP_NET_ADMIN in this namespace; run as root or use --network hub"
    return f"the kernel refuses ({os.strerror(code)}): look at dmesg, or use --network hub"


def main(arguments: list[str]) -> None:
    """``NAME``: add a TAP to the bridge of this namespace."""
    try:
        add_tap(arguments[0])
    except NetworkError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main(sys.argv[1:])
