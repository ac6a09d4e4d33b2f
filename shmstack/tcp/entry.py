"""What Python calls: the kernels as C functions of CPython's fast calling convention.

`FUNCTIONS` become built-in functions (`_native.call.NAME`): integers and buffers in, an integer or bytes out.
The methods of the fast path are in `tcp.method`.  Only CPython's stable API is used.
"""
from __future__ import annotations

from typing import Any, Callable

from numba import types

from shmstack._jit import (
    cas, copy, extern, fetch_add, fetch_or, kernel, load, load32, load_acquire, scratch, store, store_release,
    swap, cycles)
from shmstack.ring import doorbell, lock, memory, stream
from shmstack.shm.layout import DIRECTION
from shmstack.tcp import inplace, lane, lend, life, loopback, offer, ready, spill, spin, wait
from shmstack.tcp.codes import OVERFLOW
from shmstack.tcp.handle import HANDLE

_D, _H = DIRECTION.at, HANDLE.at
_i, _i32, _none = types.int64, types.int32, types.void

PyBUF_WRITABLE = 1

_as_int = extern("PyLong_AsLongLong", _i, _i)
_from_int = extern("PyLong_FromLongLong", _i, _i)
_bytes = extern("PyBytes_FromStringAndSize", _i, _i, _i)
_list = extern("PyList_New", _i, _i)
_list_set = extern("PyList_SetItem", _i32, _i, _i, _i)
_tuple = extern("PyTuple_New", _i, _i)
_tuple_set = extern("PyTuple_SetItem", _i32, _i, _i, _i)
_get_buffer = extern("PyObject_GetBuffer", _i32, _i, _i, _i32)
_release_buffer = extern("PyBuffer_Release", _none, _i)
_error = extern("PyErr_Occurred", _i)
_calloc = extern("calloc", _i, _i, _i)
_free = extern("free", _none, _i)
_mmap = extern("mmap", _i, _i, _i, _i32, _i32, _i32, _i)
_munmap = extern("munmap", _i32, _i, _i)

FUNCTIONS: dict[str, Callable[..., int]] = {}


def integers(function: Any, name: str | None = None) -> Any:
    """Offer a kernel of integers to Python."""
    inner = getattr(function, "py_func", function)
    count = inner.__code__.co_argcount
    scope = {"function": function, "_as_int": _as_int, "_from_int": _from_int, "_error": _error, "load": load}
    lines = [f"    a{i} = _as_int(load(args + {8 * i}))\n    if a{i} == -1 and _error() != 0:\n        return 0"
             for i in range(count)]
    call = ", ".join(f"a{i}" for i in range(count))
    check = f"    if n != {count}:\n        return _from_int(-22)"
    exec("def entry(self, args, n):\n" + "\n".join([check, *lines, f"    return _from_int(function({call}))"]), scope)
    FUNCTIONS[name or inner.__name__] = scope["entry"]  # type: ignore[assignment]
    return function


for _kernel in (
        doorbell.register_barrier, doorbell.barrier, doorbell.after_bell, doorbell.wake, doorbell.ring_bell, doorbell.now_ns,
        lock.take, lock.unlock, lock.break_lock, memory.back,
        stream.pass_bounds, stream.outstanding, stream.lane_end, stream.set_bound,
        loopback.announce, spill.spill, spill.inherit_sent, spill.inherit_received, lane.set_lowat, lane.under_way,
        loopback.send_some, loopback.recv_some, loopback.recv_end, lend.lend,
        wait.wait_arrived, wait.wait_room, wait.wait_lifeline, spin.arrived, spin.in_ring, spin.has_room,
        inplace.reserve, inplace.commit, inplace.look_at, inplace.give_back,
        ready.ring_ready, ready.set_asleep, wait.watch,
        ready.look, ready.listen_to, ready.expect_kernel, ready.spin_look,
        life.take_pair, life.release_pair, life.point, life.enter, life.withdraw, life.unpost, life.silent, life.finish,
        life.ended, life.share, life.in_use, life.take_slot,
        offer.limited, offer.spin_accept, offer.offer, offer.established, offer.claim):
    integers(_kernel)


def _named(name: str) -> Callable[[Any], Any]:
    return lambda function: integers(kernel(function), name)


@_named("load")
def _peek_word(address):
    return load_acquire(address)


@_named("store")
def _poke_word(address, value):
    store_release(address, value)
    return 0


integers(kernel(lambda address, old, new: cas(address, old, new)), "cas")
integers(kernel(lambda address, value: swap(address, value)), "swap")
integers(kernel(lambda address, value: fetch_add(address, value)), "fetch_add")
integers(kernel(lambda address, value: fetch_or(address, value)), "fetch_or")
integers(kernel(lambda size: _calloc(1, size)), "allocate")


@_named("free")
def _release_memory(address):
    _free(address)
    return 0


@_named("touch")
def _touch(handle):
    """Note the time of a look at the peer."""
    store(handle + _H.checked, cycles())
    return 0


@_named("map")
def _map(at, fd, size):
    """Map `size` bytes of the object, shared, in place of what is at `at` unless that is 0; return the address or -errno."""
    address = _mmap(at, size, 3, 0x11 if at else 1, fd, 0)
    return lane.failure() if address == -1 else address


@_named("unmap")
def _unmap(address, size):
    return _munmap(address, size)


def function(name: str) -> Callable[[Any], Any]:
    """Offer a function of (self, args, nargs) that handles its Python objects itself."""
    def add(entry: Any) -> Any:
        FUNCTIONS[name] = entry
        return entry
    return add


@function("read")
def read(self, args, n):
    """read(address, size) -> bytes"""
    return _bytes(_as_int(load(args)), _as_int(load(args + 8)))


@function("write")
def write(self, args, n):
    """write(address, buffer) -> size"""
    view = scratch()
    if _get_buffer(load(args + 8), view, 0) < 0:
        return 0
    size = load(view + 16)
    copy(_as_int(load(args)), load(view), size)
    _release_buffer(view)
    return _from_int(size)


@function("send_buffer")
def send_buffer(self, args, n):
    """send_buffer(handle, buffer, offset, flags) -> as send_some, from buffer[offset:]"""
    view = scratch()
    handle, offset, flags = _as_int(load(args)), _as_int(load(args + 16)), _as_int(load(args + 24))
    if _get_buffer(load(args + 8), view, 0) < 0:
        return 0
    size = load(view + 16) - offset
    sent = 0
    if size > 0:
        if flags & OVERFLOW:
            sent = wait.send_all(handle, load(view) + offset, size, flags)
        else:
            sent = loopback.send_pieces(handle, load(view) + offset, size, flags)
    _release_buffer(view)
    return _from_int(sent)


@function("recv_buffer")
def recv_buffer(self, args, n):
    """recv_buffer(handle, buffer, offset, size, flags, end) -> as recv_some (or recv_end), into buffer[offset:]"""
    view = scratch()
    handle, offset, size = _as_int(load(args)), _as_int(load(args + 16)), _as_int(load(args + 24))
    flags, end = _as_int(load(args + 32)), _as_int(load(args + 40))
    if _get_buffer(load(args + 8), view, PyBUF_WRITABLE) < 0:
        return 0
    size = min(size, load(view + 16) - offset)
    if end:
        got = loopback.recv_end(handle, load(view) + offset, size, flags)
    else:
        got = loopback.recv_some(handle, load(view) + offset, size, flags)
    _release_buffer(view)
    return _from_int(got)


@function("collect")
def collect(self, args, n):
    """collect(waiters, thorough) -> bytes: who was marked, as 64-bit numbers, at most 32 of them"""
    found = scratch()
    return _bytes(found, 8 * ready.collect(_as_int(load(args)), found, 32, _as_int(load(args + 8))))


@function("meet")
def meet(self, args, n):
    """meet(board, fd, link) -> (cookie, uid, inode, entry) of the socket at the other end, and of its offer; or zeros

    board: 0 if there is none; link: a netlink socket for sock_diag.
    """
    request, answer = scratch(), scratch()
    board, fd, link = _as_int(load(args)), _as_int(load(args + 8)), _as_int(load(args + 16))
    cookie, uid, inode, entry = 0, 0, 0, 0
    if offer.ask_peer(fd, link, request, answer):
        cookie = load32(answer + 60) & 0xFFFFFFFF | load32(answer + 64) << 32
        uid, inode = load32(answer + 80) & 0xFFFFFFFF, load32(answer + 84) & 0xFFFFFFFF
        entry = offer.seek(board, cookie) if board else 0
    found = _tuple(4)
    _tuple_set(found, 0, _from_int(cookie))
    _tuple_set(found, 1, _from_int(uid))
    _tuple_set(found, 2, _from_int(inode))
    _tuple_set(found, 3, _from_int(entry))
    return found


@function("poll_marks")
def poll_marks(self, args, n):
    """poll_marks(waiters, fd, limit_ns, ask_ns, polite, most) -> list of events; or -1: look with more care"""
    found = scratch()
    most = _as_int(load(args + 40))
    count = ready.await_ready(
        _as_int(load(args)), _as_int(load(args + 8)), _as_int(load(args + 16)), _as_int(load(args + 24)),
        _as_int(load(args + 32)), found, min(most, 31) if most > 0 else 31)
    if count < 0:
        return _from_int(-1)
    events = _list(count)
    for i in range(count):
        event = _tuple(2)
        _tuple_set(event, 0, _from_int(load(found + 8 * i) & 0xFFFFFFFF))
        _tuple_set(event, 1, _from_int(load(found + 8 * i) >> 32))
        _list_set(events, i, event)
    return events
