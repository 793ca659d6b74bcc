"""State declared once: saving, restoring, hashing, comparing and describing are derived from it.

A component that the guest can notice keeps everything noticeable in one :class:`State` subclass,
and nothing else in it is mutable.  Field order is wire order, the annotation is the wire type and
its limits, the default is the power-on value::

    class Channel(State):
        mode: u8 = 3
        count: u16 = 0

    class PitState(State):
        channels: Annotated[list[Channel], length(3)] = field(default_factory=three_channels)
        rx: Annotated[bytes, at_most(16)] = b""

There are no version numbers.  Two builds whose layouts differ refuse each other by
:func:`layout_digest`; QEMU's rule for the contents holds: state reflects the device being
modelled, never the way the implementation works.

The bytes are MessagePack arrays written by msgspec, in canonical form: ``pack(unpack(b)) == b``
or ``b`` is refused, so one state has one hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, field

from vmm.errors import StateError

__all__ = [
    "Difference",
    "State",
    "at_most",
    "diff",
    "encode",
    "field",
    "i64",
    "layout",
    "layout_digest",
    "length",
    "pack",
    "u8",
    "u16",
    "u32",
    "u64",
    "unpack",
]

u8 = Annotated[int, Meta(ge=0, le=0xFF)]
u16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
u32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
u64 = Annotated[int, Meta(ge=0)]  # MessagePack itself holds no more than 64 bits
i64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


def length(count: int) -> Meta:
    """Exactly ``count`` items or bytes."""
    return Meta(min_length=count, max_length=count)


def at_most(count: int) -> Meta:
    """No more than ``count`` items or bytes: every queue has a limit."""
    return Meta(max_length=count)


class State(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Base of every component's state."""


S = TypeVar("S", bound=State)


def encode(state: State) -> bytes:
    """:func:`pack` without the check that every value fits, for whoever sends to one that checks."""
    return msgspec.msgpack.encode(state)


def pack(state: State) -> bytes:
    """The canonical bytes of ``state``.

    Raises :class:`StateError` naming the field when a value does not fit its declaration.
    """
    try:
        data = msgspec.msgpack.encode(state)
        msgspec.msgpack.decode(data, type=type(state))
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError, TypeError) as exc:
        raise StateError(f"{type(state).__qualname__}: {_named(type(state), str(exc))}") from None
    return data


def unpack(kind: type[S], data: bytes | memoryview) -> S:
    """The state that ``data`` holds; anything but its canonical bytes raises :class:`StateError`."""
    try:
        state = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise StateError(f"{kind.__qualname__}: {_named(kind, str(exc))}") from None
    if msgspec.msgpack.encode(state) != bytes(data):
        raise StateError(f"{kind.__qualname__}: not in canonical form (short, padded or re-encoded)")
    return state


def _named(kind: type[State], message: str) -> str:
    """msgspec reports an array-like field as ``$[3]``; give the field its name."""
    if "`$[" not in message:
        return message
    before, _, rest = message.partition("`$[")
    index, _, tail = rest.partition("]")
    names = kind.__struct_fields__
    if not index.isdigit() or int(index) >= len(names):
        return message
    return f"{before}`{names[int(index)]}{tail}"


class Difference(msgspec.Struct, frozen=True):
    """One place where two states differ."""

    path: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.left)} != {_shown(self.right)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "..."
    return f"{value:#x}" if value > 9 else str(value)


def diff(left: Any, right: Any, path: str = "") -> Iterator[Difference]:
    """Every place where two values of one layout differ, with the path to each."""
    if isinstance(left, State) and type(left) is type(right):
        for name in left.__struct_fields__:
            inner = f"{path}.{name}" if path else name
            yield from diff(getattr(left, name), getattr(right, name), inner)
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from diff(one, other, f"{path}[{index}]")
    elif isinstance(left, bytes | bytearray) and isinstance(right, bytes | bytearray):
        yield from _diff_bytes(bytes(left), bytes(right), path)
    elif left != right:
        yield Difference(path, left, right)


def _diff_bytes(left: bytes, right: bytes, path: str) -> Iterator[Difference]:
    if len(left) != len(right):
        yield Difference(f"len({path})", len(left), len(right))
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    if at is not None:
        yield Difference(f"{path}[{at:#x}:]", left[at : at + 8].hex(" "), right[at : at + 8].hex(" "))


def layout(kind: type[State]) -> str:
    """The declaration as one line of text: what :func:`layout_digest` covers."""
    hints = get_type_hints(kind, include_extras=True)
    return "{" + " ".join(f"{name}:{_layout_of(hints[name])}" for name in kind.__struct_fields__) + "}"


def _layout_of(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, State):
        return layout(hint)
    origin = get_origin(hint)
    if origin is Annotated:
        base, *metas = get_args(hint)
        return _layout_of(base) + "".join(_limits(meta) for meta in metas if isinstance(meta, Meta))
    if origin is not None:
        inner = ",".join(_layout_of(arg) for arg in get_args(hint) if arg is not Ellipsis)
        return f"{getattr(origin, '__name__', str(origin))}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def _limits(meta: Meta) -> str:
    known = {"ge": meta.ge, "le": meta.le, "min": meta.min_length, "max": meta.max_length}
    return "(" + ",".join(f"{key}={value}" for key, value in known.items() if value is not None) + ")"


def layout_digest(layouts: dict[str, type[State]]) -> str:
    """Hex digest of a machine's whole layout: component names, field names, types and limits."""
    text = "\n".join(f"{name} {layout(kind)}" for name, kind in sorted(layouts.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
