"""What shared memory can do at best: two cache lines, a bare ring and memcpy, in jitted code.

    lines   one word on each of two cache lines; a round trip is one store and one wait on each
            side, and the whole loop is machine code: no Python program can be faster.
    ring    one byte ring each way, a Python loop around one call a message of a built-in function
            without arguments; no socket, no sleep, no checks, no `bytes` made: what is left
            between this and shmstack is ours.
    memcpy  each byte copied into a ring-sized buffer and out again, by one process.

The kernels are this file's own, so that shmstack is measured against something it cannot break.
They spin without PAUSE (on some virtual machines a PAUSE takes more than a cache miss) and for
ever: the worker's SIGALRM ends them.

A direction of the ring is a pair of positions that only grow, each on its own pair of cache
lines, and a power of two of bytes.  SYNC tail: the bytes before tail are visible before tail is.
SYNC head: the bytes before head were read before head passes them.

    0 tail | 8 producer's view of head | 128 head | 136 consumer's view of tail | 4096 data ...
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

TAIL, HEAD_SEEN, HEAD, TAIL_SEEN, DATA = 0, 8, 128, 136, 4096
CAPACITY = 1 << 20
MASK = CAPACITY - 1
RING_BYTES = DATA + CAPACITY
PIECE = 128 * 1024  # a large message goes in pieces, so that both sides copy at the same time
CLOCK_MONOTONIC = 1
TIMED_TOGETHER = 10  # round trips between two looks at the clock, which costs 20-40 ns itself

_memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


def _access(ordering: str | None, store: bool) -> Any:
    # An intrinsic for one aligned 64-bit word at an address; `ordering` None is a plain access.
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        if store:
            if ordering:
                builder.store_atomic(args[1], word, ordering, 8)
            else:
                builder.store(args[1], word)
            return args[1]
        return builder.load_atomic(word, ordering, 8) if ordering else builder.load(word)

    return codegen


@intrinsic
def load_acquire(_typing: Any, address: Any) -> Any:
    """Load the word at `address`, before everything after it."""
    return types.int64(types.int64), _access("acquire", store=False)


@intrinsic
def store_release(_typing: Any, address: Any, value: Any) -> Any:
    """Store `value` at `address`, after everything before it."""
    return types.int64(types.int64, types.int64), _access("release", store=True)


@intrinsic
def load(_typing: Any, address: Any) -> Any:
    """Load a word that only this side writes."""
    return types.int64(types.int64), _access(None, store=False)


@intrinsic
def store(_typing: Any, address: Any, value: Any) -> Any:
    """Store a word that only this side reads."""
    return types.int64(types.int64, types.int64), _access(None, store=True)


@njit("int64(int64)", cache=True)
def now_ns(scratch: int) -> int:
    """Read CLOCK_MONOTONIC in ns through 16 bytes of `scratch`."""
    _clock_gettime(types.int32(CLOCK_MONOTONIC), scratch)
    return load(scratch) * 1_000_000_000 + load(scratch + 8)


@njit("int64(int64, int64, int64, int64)", cache=True)
def lines_ask(base: int, first: int, batches: int, out: int) -> int:
    """Make `batches` x TIMED_TOGETHER round trips; write the mean ns of each batch to `out`."""
    turn = first
    scratch = out + batches * 8
    began = now_ns(scratch)
    for batch in range(batches):
        for _ in range(TIMED_TOGETHER):
            turn += 1
            store_release(base, turn)
            while load_acquire(base + 128) != turn:
                pass
        ended = now_ns(scratch)
        store(out + batch * 8, (ended - began) // TIMED_TOGETHER)
        began = ended
    return turn


@njit("int64(int64, int64, int64)", cache=True)
def lines_echo(base: int, first: int, count: int) -> int:
    """Answer `count` round trips of `lines_ask`."""
    turn = first
    for _ in range(count):
        turn += 1
        while load_acquire(base) != turn:
            pass
        store_release(base + 128, turn)
    return turn


@njit("int64(int64, int64, int64)", cache=True)
def push(ring: int, source: int, size: int) -> int:
    """Copy `size` bytes from `source` into the ring, in pieces, waiting for room for each."""
    done = 0
    while done < size:
        tail = load(ring + TAIL)
        piece = min(size - done, PIECE)
        if tail + piece - load(ring + HEAD_SEEN) > CAPACITY:
            head = load_acquire(ring + HEAD)  # SYNC head
            while tail + piece - head > CAPACITY:
                head = load_acquire(ring + HEAD)  # SYNC head
            store(ring + HEAD_SEEN, head)
        start = tail & MASK
        first = min(piece, CAPACITY - start)
        _memcpy(ring + DATA + start, source + done, first)
        if first < piece:
            _memcpy(ring + DATA, source + done + first, piece - first)
        store_release(ring + TAIL, tail + piece)  # SYNC tail
        done += piece
    return done


@njit("int64(int64, int64, int64, int64)", cache=True)
def pop(ring: int, target: int, least: int, most: int) -> int:
    """Copy what is there to `target`, up to `most` bytes, until it was `least`; return it."""
    done = 0
    while done < least:
        head = load(ring + HEAD)
        tail = load(ring + TAIL_SEEN)
        if tail == head:
            while tail == head:
                tail = load_acquire(ring + TAIL)  # SYNC tail
            store(ring + TAIL_SEEN, tail)
        piece = min(tail - head, most - done)
        start = head & MASK
        first = min(piece, CAPACITY - start)
        _memcpy(target + done, ring + DATA + start, first)
        if first < piece:
            _memcpy(target + done + first, ring + DATA, piece - first)
        store_release(ring + HEAD, head + piece)  # SYNC head
        done += piece
    return done


@njit("int64(int64, int64, int64, int64, int64)", cache=True)
def copy_twice(ring: int, source: int, target: int, size: int, count: int) -> int:
    """Copy `size` bytes into the ring's data and out again, `count` times, moving along it.

    What is larger than the ring goes through it a ringful at a time.
    """
    start = 0
    for _ in range(count):
        done = 0
        while done < size:
            piece = min(size - done, CAPACITY)
            if start + piece > CAPACITY:
                start = 0
            _memcpy(ring + DATA + start, source + done, piece)
            _memcpy(target + done, ring + DATA + start, piece)
            start += piece
            done += piece
    return count


# What a built-in function without arguments gets is its `self`: here a bytes object that holds the
# kernel's arguments, which so are parsed once and not at every call.
ARGUMENTS = bytes.__basicsize__ - 1  # where the bytes of a bytes object begin
_new_long = types.ExternalFunction("PyLong_FromLongLong", types.intp(types.int64))


@cfunc("intp(intp, intp)", cache=True)
def _push_method(self: int, _none: int) -> int:
    at = self + ARGUMENTS
    return _new_long(push(load(at), load(at + 8), load(at + 16)))


@cfunc("intp(intp, intp)", cache=True)
def _pop_method(self: int, _none: int) -> int:
    at = self + ARGUMENTS
    return _new_long(pop(load(at), load(at + 8), load(at + 16), load(at + 24)))


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_NOARGS = 4
_definitions: list[_MethodDef] = []  # a built-in function refers to its definition for ever


def bound(kernel: str, *arguments: int) -> Any:
    """Make a built-in function of no arguments that calls `push` or `pop` with these."""
    compiled = {"push": _push_method, "pop": _pop_method}[kernel]
    _definitions.append(_MethodDef(kernel.encode(), compiled.address, _NOARGS, None))
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    return new(ctypes.addressof(_definitions[-1]), struct.pack(f"{len(arguments)}q", *arguments), None)


def entry(kernel: Any) -> Any:
    """Return the compiled function itself: a fifth of the dispatcher's cost a call."""
    return kernel.overloads[kernel.signatures[0]].entry_point
