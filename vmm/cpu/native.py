"""Loads, stores and calls at raw addresses, for callbacks compiled by numba.

The engine's state is a C structure in this process.  These intrinsics compile to one instruction
each; nothing checks the address, so every address comes from :mod:`vmm.cpu.layout`, whose offsets
were verified against the running engine.

Calls go through pointers kept in the control block instead of symbols, so the compiled callbacks
refer to nothing outside themselves and can be cached on disk as plain machine code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

i32: Any = types.int32
u32: Any = types.uint32
i64: Any = types.int64
void: Any = types.void

_WORD = ir.IntType(64)

CALLBACKS: dict[str, tuple[Callable[..., Any], Any]] = {}
"""Name -> (function, signature) of everything the engine may call; see vmm.cpu.compile."""

F = TypeVar("F", bound=Callable[..., Any])


def native(function: F) -> F:
    """Compile ``function`` with numba when native code calls it; for the type checker, itself."""
    return cast(F, njit(function))


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


Load = Callable[[int], int]
Store = Callable[[int, int], None]

load8: Load = _load(8)
load16: Load = _load(16)
load32: Load = _load(32)
load64: Load = _load(64)
"""``load*(address) -> int64``, zero-extended."""
store8: Store = _store(8)
store16: Store = _store(16)
store32: Store = _store(32)
store64: Store = _store(64)
"""``store*(address, value)``; the value is truncated."""


def _generate_call(returns: Any, count: int) -> Callable[..., Any]:
    signature = ir.FunctionType(returns, [_WORD] * count).as_pointer()

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        result = builder.call(builder.inttoptr(args[0], signature), list(args[1:]))
        return context.get_dummy_value() if isinstance(returns, ir.VoidType) else result

    return generate


@intrinsic
def _call1(_typing: Any, _function: Any, _a: Any) -> Any:
    return i64(i64, i64), _generate_call(_WORD, 1)


@intrinsic
def _call2(_typing: Any, _function: Any, _a: Any, _b: Any) -> Any:
    return i64(i64, i64, i64), _generate_call(_WORD, 2)


@intrinsic
def _call3(_typing: Any, _function: Any, _a: Any, _b: Any, _c: Any) -> Any:
    return i64(i64, i64, i64, i64), _generate_call(_WORD, 3)


@intrinsic
def _call4(_typing: Any, _function: Any, _a: Any, _b: Any, _c: Any, _d: Any) -> Any:
    return i64(i64, i64, i64, i64, i64), _generate_call(_WORD, 4)


@intrinsic
def _call5(_typing: Any, _function: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any) -> Any:
    return i64(i64, i64, i64, i64, i64, i64), _generate_call(_WORD, 5)


@intrinsic
def _call7(
    _typing: Any, _function: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, _f: Any, _g: Any
) -> Any:
    return i64(*[i64] * 8), _generate_call(_WORD, 7)


call1: Callable[[int, int], int] = cast(Any, _call1)
"""``call1(function, a) -> int64``: a C call through a pointer, with one 64-bit argument."""
call2: Callable[[int, int, int], int] = cast(Any, _call2)
call3: Callable[[int, int, int, int], int] = cast(Any, _call3)
call4: Callable[[int, int, int, int, int], int] = cast(Any, _call4)
call5: Callable[[int, int, int, int, int, int], int] = cast(Any, _call5)
call7: Callable[[int, int, int, int, int, int, int, int], int] = cast(Any, _call7)
