"""Loads, stores and calls at raw addresses, for callbacks compiled by numba.

The engine's state is a C structure in this process.  These intrinsics compile to one instruction
each; nothing checks the address, so every address comes from :mod:`vmm.cpu.layout`, whose offsets
were verified against the running engine.

Calls go through pointers kept in the control block instead of symbols, so the compiled callbacks
refer to nothing outside themselves and can be cached on disk as plain machine code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

i32 = types.int32
u32 = types.uint32
i64 = types.int64
void = types.void

_WORD = ir.IntType(64)

CALLBACKS: dict[str, tuple[Callable[..., Any], Any]] = {}
"""Name -> (function, signature) of everything the engine may call; see vmm.cpu.compile."""

F = TypeVar("F", bound=Callable[..., Any])


def callback(signature: Any) -> Callable[[F], F]:
    """Declare a function that the engine calls, with its C signature.

    Nothing is compiled here: :mod:`vmm.cpu.compile` compiles all of them into one object.
    """

    def register(function: F) -> F:
        CALLBACKS[function.__name__] = (function, signature)
        return function

    return register


def _load(bits: int) -> Any:
    kind = ir.IntType(bits)

    @intrinsic
    def load(_typing: Any, _address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = builder.load(builder.inttoptr(args[0], kind.as_pointer()))
            return value if bits == 64 else builder.zext(value, _WORD)

        return types.int64(types.int64), generate

    return load


def _store(bits: int) -> Any:
    kind = ir.IntType(bits)

    @intrinsic
    def store(_typing: Any, _address: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = args[1] if bits == 64 else builder.trunc(args[1], kind)
            builder.store(value, builder.inttoptr(args[0], kind.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


load8, load16, load32, load64 = _load(8), _load(16), _load(32), _load(64)
"""``load*(address) -> int64``, zero-extended."""
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)
"""``store*(address, value)``; the value is truncated."""


def _generate_call(returns: Any, count: int) -> Callable[..., Any]:
    signature = ir.FunctionType(returns, [_WORD] * count).as_pointer()

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        result = builder.call(builder.inttoptr(args[0], signature), list(args[1:]))
        return context.get_dummy_value() if isinstance(returns, ir.VoidType) else result

    return generate


@intrinsic
def call1(_typing: Any, _function: Any, _a: Any) -> Any:
    """``call1(function, a) -> int64``: C call through a pointer with one 64-bit argument."""
    return i64(i64, i64), _generate_call(_WORD, 1)


@intrinsic
def call2(_typing: Any, _function: Any, _a: Any, _b: Any) -> Any:
    """As :func:`call1` with two arguments."""
    return i64(i64, i64, i64), _generate_call(_WORD, 2)


@intrinsic
def call3(_typing: Any, _function: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """As :func:`call1` with three arguments."""
    return i64(i64, i64, i64, i64), _generate_call(_WORD, 3)


@intrinsic
def call4(_typing: Any, _function: Any, _a: Any, _b: Any, _c: Any, _d: Any) -> Any:
    """As :func:`call1` with four arguments."""
    return i64(i64, i64, i64, i64, i64), _generate_call(_WORD, 4)


@intrinsic
def call5(_typing: Any, _function: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any) -> Any:
    """As :func:`call1` with five arguments."""
    return i64(i64, i64, i64, i64, i64, i64), _generate_call(_WORD, 5)
