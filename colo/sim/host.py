"""A client's host in the world: a process, an address on the segment, and the protocols to talk to guests.

An actor is ``async def actor(host)``; within it ``asyncio`` works as anywhere, in the world's time::

    async def visit(host):
        async with asyncio.timeout(5):
            stream = await host.connect("10.77.0.2", 80)
            await stream.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
            return await stream.read_until(b"</html>")

Hosts answer ARP, and resets what belongs to no connection.  Not modelled: ICMP, routes, more than one card.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from colo.sim import packets
from colo.sim.agenda import Agenda
from colo.sim.impair import FROM
from colo.sim.network import Cable
from colo.sim.process import Process
from colo.sim.tcp_client import TcpConnection, read_segment, reset_for

NETWORK = "10.77.0."
FIRST = 20
MAC_PREFIX = bytes.fromhex("5254 00c0 20")
FIRST_PORT = 40_000
ARP_AGAIN_S = 0.5
ARP_QUEUE = 16
"""Packets that wait for an address; the oldest goes."""


class UdpSocket:
    """A bound port."""

    def __init__(self, host: Host, port: int) -> None:
        self._host, self._port = host, port
        self._arrived: asyncio.Queue[tuple[str, int, bytes]] = asyncio.Queue()

    def send(self, address: str, port: int, payload: bytes) -> None:
        self._host.stack.send_udp(self._port, packets.address(address), port, payload)

    async def receive(self) -> tuple[str, int, bytes]:
        """The next datagram: whose, and what."""
        return await self._arrived.get()

    def arrive(self, address: bytes, datagram: packets.Datagram) -> None:
        self._arrived.put_nowait((packets.dotted(address), datagram.source_port, datagram.payload))


class Stack:
    """Ethernet, ARP, IP and what is above it, of one host."""

    def __init__(self, mac: bytes, ip: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self.mac, self.ip = mac, ip
        self.udp: dict[int, UdpSocket] = {}
        self.tcp: dict[tuple[int, bytes, int], TcpConnection] = {}
        self._loop = loop
        self._cable: Cable | None = None
        self._known: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, deque[tuple[int, bytes]]] = {}
        self._number = 0
        """Of IP packets."""

    def plug(self, cable: Cable) -> None:
        self._cable = cable

    # Out

    def _send(self, frame: bytes) -> None:
        if self._cable is not None:
            self._cable.send(FROM, frame)

    def send_ip(self, destination: bytes, protocol: int, payload: bytes) -> None:
        mac = self._known.get(destination)
        if mac is not None:
            self._send_to(mac, destination, protocol, payload)
            return
        asked = destination in self._waiting
        queue = self._waiting.setdefault(destination, deque(maxlen=ARP_QUEUE))
        queue.append((protocol, payload))
        if not asked:
            self._ask(destination)

    def _send_to(self, mac: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        self._number = (self._number + 1) & 0xFFFF
        packet = packets.ipv4(self.ip, destination, protocol, self._number, payload)
        self._send(packets.ethernet(mac, self.mac, packets.TYPE_IPV4, packet))

    def _ask(self, ip: bytes) -> None:
        """And again, until there is an answer."""
        if ip not in self._waiting:
            return
        request = packets.arp(packets.ARP_REQUEST, self.mac, self.ip, bytes(6), ip)
        self._send(packets.ethernet(packets.BROADCAST, self.mac, packets.TYPE_ARP, request))
        self._loop.call_later(ARP_AGAIN_S, self._ask, ip)

    def send_udp(self, source_port: int, destination: bytes, port: int, payload: bytes) -> None:
        packet = packets.udp(self.ip, destination, source_port, port, payload)
        self.send_ip(destination, packets.UDP, packet)

    # In

    def arrive(self, frame: bytes) -> None:
        if frame[:6] not in (self.mac, packets.BROADCAST):
            return
        kind, payload = int.from_bytes(frame[12:14], "big"), frame[14:]
        if kind == packets.TYPE_ARP:
            self._hear_arp(payload)
            return
        ip = packets.read_ipv4(payload) if kind == packets.TYPE_IPV4 else None
        if ip is not None and ip.destination == self.ip:
            self._hear_ip(ip)

    def _hear_arp(self, payload: bytes) -> None:
        heard = packets.read_arp(payload)
        if heard is None:
            return
        if heard.ip in self._known or heard.target_ip == self.ip:
            self._known[heard.ip] = heard.mac
        if heard.operation == packets.ARP_REQUEST and heard.target_ip == self.ip:
            reply = packets.arp(packets.ARP_REPLY, self.mac, self.ip, heard.mac, heard.ip)
            self._send(packets.ethernet(heard.mac, self.mac, packets.TYPE_ARP, reply))
        for protocol, packet in self._waiting.pop(heard.ip, ()) if heard.ip in self._known else ():
            self._send_to(heard.mac, heard.ip, protocol, packet)

    def _hear_ip(self, ip: packets.Ip) -> None:
        if ip.protocol == packets.UDP and (datagram := packets.read_udp(ip)) is not None:
            socket = self.udp.get(datagram.port)
            if socket is not None:
                socket.arrive(ip.source, datagram)
        elif ip.protocol == packets.TCP and (segment := read_segment(ip)) is not None:
            connection = self.tcp.get((segment.port, ip.source, segment.source_port))
            if connection is not None:
                connection.segment(segment)
            elif (reset := reset_for(ip, segment)) is not None:
                self.send_ip(ip.source, packets.TCP, reset)


class Host(Process):
    """One client's."""

    actor: asyncio.Task[Any]
    """What runs here; its result when it is done."""

    def __init__(
        self,
        name: str,
        number: int,
        agenda: Agenda,
        failed: Callable[[BaseException], None],
        rng: random.Random,
        tell: Callable[[str, str, str], None],
    ) -> None:
        super().__init__(name, agenda, failed)
        self.number, self.rng = number, rng
        self.address = f"{NETWORK}{FIRST + number}"
        self.stack = Stack(MAC_PREFIX + bytes([number]), packets.address(self.address), self.loop)
        self._ports = FIRST_PORT
        self._tell = tell

    @property
    def now_ns(self) -> int:
        return self.agenda.now_ns

    @property
    def is_done(self) -> bool:
        return self.actor.done()

    def tell(self, what: str, detail: str = "") -> None:
        """A line of the world's log."""
        self._tell(self.name, what, detail)

    def arrive(self, frame: bytes) -> None:
        self.act(lambda: self.stack.arrive(frame))

    def _port(self) -> int:
        self._ports += 1
        return self._ports

    def udp(self, port: int = 0) -> UdpSocket:
        """A socket on this port, or on a free one."""
        port = port or self._port()
        if port in self.stack.udp:
            raise OSError(f"{self.name}: UDP port {port} is taken")
        self.stack.udp[port] = UdpSocket(self, port)
        return self.stack.udp[port]

    async def connect(self, address: str, port: int) -> TcpConnection:
        """A connection, established; ConnectionRefusedError, or wrap it in ``asyncio.timeout``."""
        peer, mine = packets.address(address), self._port()
        key = (mine, peer, port)
        connection = TcpConnection(
            (self.stack.ip, mine, peer, port),
            self.rng.getrandbits(32),
            lambda segment: self.stack.send_ip(peer, packets.TCP, segment),
            lambda: self._forget(key),
            self.loop,
        )
        self.stack.tcp[key] = connection
        try:
            await connection.established()
        except asyncio.CancelledError:
            connection.abort()
            raise
        return connection

    def _forget(self, key: tuple[int, bytes, int]) -> None:
        self.stack.tcp.pop(key, None)
