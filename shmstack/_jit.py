"""Kernels and atomics: the words every other module is written in, and the one unsafe file.

A *kernel* is a function of integers that numba compiles to machine code: 64-bit integers in, one 64-bit
integer out (>= 0 a result, < 0 the negative of an errno), no allocation, no exception, no reference counting.
Addresses are integers.  The same source runs in three ways:

* compiled ahead of time into one native library (`_build` writes it, `_native` loads it): a program that uses
  sockets imports neither numba nor numpy;
* the same library called from a user's own `numba.njit` code, through `shmstack.jit`;
* as plain Python under ``NUMBA_DISABLE_JIT=1``, where tests step through every interleaving of two kernels.

For the third, each atomic is an ordinary Python function with a numba `overload`; a bare `intrinsic` can't be
called from Python.  The plain twins have no memory ordering of their own: the schedule tests explore the
sequentially consistent interleavings, and the order annotations are covered by the two-process stream tests.

Every word that two processes touch goes through `load_acquire`, `store_release`, `cas`, `swap` or `fetch_add`.
`load` and `store` are for words that the caller alone writes and for the process' private memory.

What was rejected: numba's own disk cache.  It stamps only the file that holds a function, so a changed offset
in an imported file keeps the old machine code alive, which in shared memory is silent corruption.  The native
library's name holds a digest of every file that it was made from.
"""
from __future__ import annotations

import ctypes
from typing import Any, Callable, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

F = TypeVar("F", bound=Callable[..., Any])

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_i64 = types.int64


def kernel(function: F) -> F:
    """Compile `function` in nopython mode when a caller first needs it; all arguments are int64."""
    compiled: F = njit(error_model="numpy", no_cpython_wrapper=True)(function)
    return compiled


def extern(name: str, result: Any, *arguments: Any) -> Any:
    """Name a C function of libc or of CPython's API, callable from kernels.

    It is bound by symbol when the native library is loaded, so no address of this process is compiled in.
    """
    return types.ExternalFunction(name, result(*arguments))


def _pointer(builder: Any, address: Any, kind: Any = _I64) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


# ---- plain words ---------------------------------------------------------------------------------------------

@intrinsic
def _load(_context, address):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        return builder.load(_pointer(builder, args[0]))
    return _i64(_i64), generate


@intrinsic
def _store(context, address, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[1], _pointer(builder, args[0]))
        return context.get_dummy_value()
    return types.void(_i64, _i64), generate


# ---- words that another process may touch --------------------------------------------------------------------

@intrinsic
def _load_acquire(_context, address):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_pointer(builder, args[0]), "acquire", 8)
    return _i64(_i64), generate


@intrinsic
def _store_release(context, address, value):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, args):  # type: ignore[no-untyped-def]
        builder.store_atomic(args[1], _pointer(builder, args[0]), "release", 8)
        return context.get_dummy_value()
    return types.void(_i64, _i64), generate


@intrinsic
def _cas(_context, address, old, new):  # type: ignore[no-untyped-def]
    def generate(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        pair = builder.cmpxchg(_pointer(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 0)
    return _i64(_i64, _i64, _i64), generate


def _read_modify_write(operation: str) -> Any:
    @intrinsic
    def word(_context, address, value):  # type: ignore[no-untyped-def]
        def generate(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
            return builder.atomic_rmw(operation, _pointer(builder, args[0]), args[1], "acq_rel")
        return _i64(_i64, _i64), generate
    return word


_swap = _read_modify_write("xchg")
_fetch_add = _read_modify_write("add")
_fetch_or = _read_modify_write("or")


@intrinsic
def _pause(context):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, _args):  # type: ignore[no-untyped-def]
        machine = str(builder.module.triple)
        if machine.startswith(("x86_64", "i686")):
            hint = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), ()))
            builder.call(hint, ())
        elif machine.startswith(("aarch64", "arm64")):
            hint = builder.module.declare_intrinsic("llvm.aarch64.hint", (), ir.FunctionType(ir.VoidType(), (_I32,)))
            builder.call(hint, (_I32(1),))
        return context.get_dummy_value()
    return types.void(), generate


@intrinsic
def _fence(context):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, _args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()
    return types.void(), generate


@intrinsic
def _prefetch(context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, _signature, args):  # type: ignore[no-untyped-def]
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), (byte, _I32, _I32, _I32))
        hint = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        builder.call(hint, (builder.inttoptr(args[0], byte), _I32(0), _I32(3), _I32(1)))
        return context.get_dummy_value()
    return types.void(_i64), generate


def _word(address: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(address)


def load(address: int) -> int:
    """Read a word that only the caller writes."""
    return _word(address).value


def store(address: int, value: int) -> None:
    """Write a word that only the caller touches."""
    _word(address).value = value


def load_acquire(address: int) -> int:
    """Read a shared word; what was written before the matching `store_release` is visible afterwards."""
    return _word(address).value


def store_release(address: int, value: int) -> None:
    """Write a shared word after all earlier writes."""
    _word(address).value = value


def cas(address: int, old: int, new: int) -> int:
    """Write `new` if the word is `old`; return what was there (== `old` means it was written)."""
    word = _word(address)
    before = word.value
    if before == old:
        word.value = new
    return before


def swap(address: int, value: int) -> int:
    """Write `value`, return what was there."""
    word = _word(address)
    before, word.value = word.value, value
    return before


def fetch_add(address: int, value: int) -> int:
    """Add `value`, return what was there before."""
    word = _word(address)
    before, word.value = word.value, word.value + value
    return before


def fetch_or(address: int, value: int) -> int:
    """Set the bits of `value`, return what was there before."""
    word = _word(address)
    before, word.value = word.value, word.value | value
    return before


def pause() -> None:
    """Tell the core that this is a spin loop (67 cycles on Zen 4: never the first thing a spinner does)."""


def fence() -> None:
    """Have every store before this seen before any load after it is done."""


def prefetch(address: int) -> None:
    """Have the line at `address` fetched: it will be read soon."""


def copy(to: int, source: int, size: int) -> int:
    """Copy `size` bytes between two addresses that don't overlap."""
    ctypes.memmove(to, source, size)
    return 0


_memcpy = extern("memcpy", _i64, _i64, _i64, _i64)

overload(load)(lambda address: lambda address: _load(address))
overload(store)(lambda address, value: lambda address, value: _store(address, value))
overload(load_acquire)(lambda address: lambda address: _load_acquire(address))
overload(store_release)(lambda address, value: lambda address, value: _store_release(address, value))
overload(cas)(lambda address, old, new: lambda address, old, new: _cas(address, old, new))
overload(swap)(lambda address, value: lambda address, value: _swap(address, value))
overload(fetch_add)(lambda address, value: lambda address, value: _fetch_add(address, value))
overload(fetch_or)(lambda address, value: lambda address, value: _fetch_or(address, value))
overload(pause)(lambda: lambda: _pause())
overload(fence)(lambda: lambda: _fence())
overload(prefetch)(lambda address: lambda address: _prefetch(address))
overload(copy)(lambda to, source, size: lambda to, source, size: _memcpy(to, source, size))


# ---- what only compiled code needs ---------------------------------------------------------------------------

@intrinsic
def scratch(_context):  # type: ignore[no-untyped-def]
    """Return the address of 256 bytes on the caller's stack (for C calls that fill a structure)."""
    def generate(_context, builder, _signature, _args):  # type: ignore[no-untyped-def]
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(_I64, 32))
        return builder.ptrtoint(room, _I64)
    return _i64(), generate


@intrinsic
def static_words(_context):  # type: ignore[no-untyped-def]
    """Return the address of the native library's own 64 words, which `_native` fills when it loads it."""
    def generate(_context, builder, _signature, _args):  # type: ignore[no-untyped-def]
        name, kind = "shmstack_static", ir.ArrayType(_I64, 64)
        words = builder.module.globals.get(name)
        if words is None:
            words = ir.GlobalVariable(builder.module, kind, name)
            words.linkage = "weak"
            words.initializer = ir.Constant(kind, None)
        return builder.ptrtoint(words, _I64)
    return _i64(), generate


@intrinsic
def load32(_context, address):  # type: ignore[no-untyped-def]
    """Read a signed 32-bit integer of a C structure."""
    def generate(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        return builder.sext(builder.load(_pointer(builder, args[0], _I32)), _I64)
    return _i64(_i64), generate


@intrinsic
def cycles(_context):  # type: ignore[no-untyped-def]
    """Return a counter that runs at a constant rate of 10 MHz to 5 GHz (the time-stamp counter)."""
    def generate(_context, builder, _signature, _args):  # type: ignore[no-untyped-def]
        x86 = str(builder.module.triple).startswith(("x86_64", "i686"))
        name = "llvm.readcyclecounter" if x86 else "llvm.readsteadycounter"
        counter = builder.module.declare_intrinsic(name, (), ir.FunctionType(_I64, ()))
        return builder.call(counter, ())
    return _i64(), generate
