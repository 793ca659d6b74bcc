"""What a filter is, its words, and the order in which frames meet the filters of a card.

Follows QEMU's netfilter objects (``qapi/qom.json``, ``net/filter.c``); what the words mean stands in
:mod:`colo.filters`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from vmm.clock import NEVER_NS
from vmm.errors import ConfigError

INTERVAL_MAX_US = 0xFFFF_FFFF
"""QEMU's ``interval`` is a uint32."""
FILTERS_MAX = 16
"""Filters of one card: each is a call for every frame."""
ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
"""QEMU's rule for the id of anything, with a limit."""

HEAD, TAIL = "head", "tail"

Frame = bytes | memoryview


class Queue(Enum):
    """Which frames a filter sees."""

    ALL = "all"
    RX = "rx"
    """From the guest."""
    TX = "tx"
    """To the guest."""


@dataclass(frozen=True)
class FilterSpec:
    """One filter in words."""

    kind: str
    id: str
    netdev: str = ""
    """Whose chain; empty where it is said otherwise."""
    queue: Queue = Queue.ALL
    on: bool = True
    position: str = TAIL
    """``head``, ``tail``, or the id of another filter."""
    before: bool = False
    interval_us: int = 0
    outdev: str = ""
    server: bool = False
    """Of a mirror: wait for somebody to connect, where else it connects."""
    vnet_hdr: bool = False
    file: str = ""
    auto: bool = False
    """Added when a pair formed, and removed when it dissolves."""

    def sees(self, queue: Queue) -> bool:
        return self.queue in (Queue.ALL, queue)

    @property
    def on_demand(self) -> bool:
        """A buffer that only a commit empties."""
        return self.kind == "buffer" and self.interval_us == 0


class Filter:
    """One filter at its place.  A filter that keeps a frame copies it: a frame is valid during the call.

    ``keeps`` is called by whoever moves frames: the guest's thread, or for frames that a commit released
    the thread that released them.  Everything else belongs to the guest's thread, between two blocks.
    """

    __slots__ = ("dropped", "on", "spec")
    ticks = False
    """Something may become due here with no frame passing."""

    def __init__(self, spec: FilterSpec) -> None:
        self.spec = spec
        self.on = spec.on
        self.dropped = 0

    def keeps(self, frame: Frame, queue: Queue) -> bool:
        """True: the frame goes no further now."""
        raise NotImplementedError

    def tick(self, now_ns: int) -> int:
        """Do what is due at virtual ``now_ns``; when to come again, or NEVER_NS."""
        return NEVER_NS

    def switch(self, on: bool) -> None:
        """QEMU's ``status``; what is held was let go before it is switched off."""
        self.on = on

    def let_go(self) -> None:
        """Pass on what is held, in order: the filter is about to be taken out of the way."""

    def close(self) -> None:
        """Give back descriptors and files."""


class Chain:
    """The filters of one card, from head to tail, and the order in which frames meet them."""

    __slots__ = ("_filters", "from_guest", "to_guest")

    def __init__(self) -> None:
        self._filters: list[Filter] = []
        self.from_guest: tuple[Filter, ...] = ()
        """Those that are on and see ``rx``, in the order of a frame from the guest."""
        self.to_guest: tuple[Filter, ...] = ()

    def __iter__(self) -> Iterator[Filter]:
        return iter(tuple(self._filters))

    def find(self, id: str) -> Filter:
        for each in self._filters:
            if each.spec.id == id:
                return each
        known = ", ".join(each.spec.id for each in self._filters) or "there are none"
        raise ConfigError(f"filter {id!r}: no such filter on this card; expected one of: {known}")

    def place(self, spec: FilterSpec) -> int:
        """Where a filter of ``spec`` would stand; ConfigError when it cannot stand anywhere."""
        if any(each.spec.id == spec.id for each in self._filters):
            raise ConfigError(f"filter {spec.id!r}: id is taken by another filter of this card; use another")
        if len(self._filters) >= FILTERS_MAX:
            raise ConfigError(f"filter {spec.id!r}: the card has {FILTERS_MAX} filters; remove one first")
        if spec.position == HEAD:
            return 0
        if spec.position == TAIL:
            return len(self._filters)
        return self._filters.index(self.find(spec.position)) + (not spec.before)

    def insert(self, place: int, filter: Filter) -> None:
        self._filters.insert(place, filter)
        self.arrange()

    def remove(self, filter: Filter) -> None:
        self._filters.remove(filter)
        self.arrange()

    def arrange(self) -> None:
        """Work out again who meets a frame: somebody came, went, or changed its status."""
        on = [each for each in self._filters if each.on]
        self.to_guest = tuple(each for each in on if each.spec.sees(Queue.TX))
        self.from_guest = tuple(each for each in reversed(on) if each.spec.sees(Queue.RX))


# The text form


def parse(text: str) -> FilterSpec:
    """``buffer,id=f0,queue=rx,interval=0``, as a command line writes it; ``filter-buffer`` is ``buffer``."""
    kind, *words = text.split(",")
    properties: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key in properties:
            raise ConfigError(f"filter {text!r}: {key}: given twice; leave one out")
        properties[key] = value if equals else "on"
    return spec_of(kind, properties)


def spec_of(kind: str, properties: Mapping[str, object]) -> FilterSpec:
    """The filter that QMP's ``object-add`` describes: ``kind`` is its ``qom-type``."""
    kind = kind.removeprefix("filter-")
    if kind not in _OWN_KEYS:
        raise ConfigError(f"filter {kind!r}: no such kind; expected {', '.join(sorted(_OWN_KEYS))}")
    keys = {**_COMMON_KEYS, **_OWN_KEYS[kind]}
    fields: dict[str, object] = {"id": ""}
    for key, value in properties.items():
        if key not in keys:
            raise ConfigError(f"filter {kind}: {key}: no such key; expected {', '.join(sorted(keys))}")
        name, read = keys[key]
        try:
            fields[name] = read(value)
        except ValueError as exc:
            raise ConfigError(f"filter {kind}: {key}={value}: expected {exc}") from None
    for name, key in (("id", "id"), *_NEEDED.get(kind, ())):
        if not fields.get(name):
            raise ConfigError(f"filter {kind}: {key}: missing; add {key}=...")
    return FilterSpec(kind=kind, **fields)  # type: ignore[arg-type]


def _id(value: object) -> str:
    if not isinstance(value, str) or ID.fullmatch(value) is None:
        raise ValueError("a letter, then at most 62 letters, digits, '-', '.' and '_'")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("some text")
    return value


def _switch(value: object) -> bool:
    if value in (True, "on", "yes", "true"):
        return True
    if value in (False, "off", "no", "false"):
        return False
    raise ValueError("on or off")


def _queue(value: object) -> Queue:
    for queue in Queue:
        if value == queue.value:
            return queue
    raise ValueError("all, rx (from the guest) or tx (to the guest)")


def _position(value: object) -> str:
    if value in (HEAD, TAIL):
        return str(value)
    if isinstance(value, str) and value.startswith("id=") and ID.fullmatch(value[3:]):
        return value[3:]
    raise ValueError("head, tail or id=ID of another filter")


def _before(value: object) -> bool:
    if value not in ("before", "behind"):
        raise ValueError("before or behind")
    return value == "before"


def _interval(value: object) -> int:
    digits = str(value)
    if not digits.isdecimal() or not digits.isascii() or len(digits) > 10 or int(digits) > INTERVAL_MAX_US:
        raise ValueError(f"microseconds from 0 (until a commit) to {INTERVAL_MAX_US}")
    return int(digits)


Reader = Callable[[object], object]

_COMMON_KEYS: dict[str, tuple[str, Reader]] = {
    "id": ("id", _id),
    "netdev": ("netdev", _id),
    "queue": ("queue", _queue),
    "status": ("on", _switch),
    "position": ("position", _position),
    "insert": ("before", _before),
}
_OWN_KEYS: dict[str, dict[str, tuple[str, Reader]]] = {
    "buffer": {"interval": ("interval_us", _interval)},
    "mirror": {
        "outdev": ("outdev", _text),
        "server": ("server", _switch),
        "vnet_hdr_support": ("vnet_hdr", _switch),
    },
    "dump": {"file": ("file", _text)},
}
_NEEDED = {"mirror": (("outdev", "outdev"),), "dump": (("file", "file"),)}
