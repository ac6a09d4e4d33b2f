"""The fast path: `recv`, `recv_into`, `send` and `sendall` as methods of the socket class.

One C call for a send or a recv: no Python frame, no object but the result.  A method finds its handle in the socket's
`_handle` slot, as eight bytes: an address is too large for an int to be read in less than 20 ns.  Where there is none (a
socket that isn't accelerated) it calls the standard library's own method, and where the ring has no quick answer the slow
method of the class.  The slot's offset and the methods to fall back to stand in the static words, written by `_native` at
load.

`METHODS` is in the order in which the fallbacks stand there.
"""
from __future__ import annotations

from collections.abc import Callable

from numba import types

from shmstack._jit import cycles, extern, kernel, load, load_acquire, scratch, static_words, store
from shmstack.ring.stream import lane_end
from shmstack.shm.layout import DIRECTION
from shmstack.tcp import budget, lane, loopback, pace, spin, wait
from shmstack.tcp.codes import LOOK, PIECE
from shmstack.tcp.handle import HANDLE

_D, _H = DIRECTION.at, HANDLE.at
_i, _i32, _none = types.int64, types.int32, types.void

# static words (see doorbell for the first ones)
SLOT = 8 * 8                         # offset of the `_handle` slot in a socket object
NONE = 8 * 9                         # address of None
BYTES = 8 * 10                       # address of the type `bytes`; 0: its objects aren't laid out as BYTES_SIZE says
BYTES_DATA = 8 * 11                  # where the bytes are in such an object
TYPE_AT, BYTES_SIZE = 8, 16          # where the type and the size are
FALLBACK = 8 * 16                    # for method k: the slow method at 16 + 2 k, the standard library's at 17 + 2 k

SLICE_NS = 100_000_000               # longest time without a look at the lifeline
PEER_CHECK = 1 << 27                 # cycles between two looks at a peer that takes nothing
POLLED = 1 << 16                     # most that `recv` takes from the ring for who doesn't wait, and comes again; see there
PyBUF_WRITABLE = 1

_as_size = extern("PyLong_AsSsize_t", _i, _i)
_from_int = extern("PyLong_FromLongLong", _i, _i)
_bytes = extern("PyBytes_FromStringAndSize", _i, _i, _i)
_bytes_at = extern("PyBytes_AsString", _i, _i)
_resize = extern("_PyBytes_Resize", _i32, _i, _i)
_get_buffer = extern("PyObject_GetBuffer", _i32, _i, _i, _i32)
_release_buffer = extern("PyBuffer_Release", _none, _i)
_clear = extern("PyErr_Clear", _none)
_call = extern("PyObject_Vectorcall", _i, _i, _i, _i, _i)
_keep = extern("Py_IncRef", _none, _i)
_drop = extern("Py_DecRef", _none, _i)


@kernel
def handle_of(self):
    """Return the handle of a socket object, 0 if it has none."""
    words = static_words()
    address = load(self + load(words + SLOT))
    if address == 0:
        return 0
    return load(address + load(words + BYTES_DATA))


@kernel
def fall_back(index, self, args, n, names):
    """Call the slow method (index even) or the standard library's (odd) with the same arguments."""
    vector = scratch()
    store(vector, self)
    if n > 16:
        n = 16
    for i in range(n):
        store(vector + 8 + 8 * i, load(args + 8 * i))
    keywords = 0
    if names != 0:
        keywords = load(names + 16)                      # ob_size of the tuple of names
        for i in range(min(keywords, 8)):
            store(vector + 8 + 8 * (n + i), load(args + 8 * (n + i)))
    return _call(load(static_words() + FALLBACK + 8 * index), vector, 1 + n, names)


@kernel
def quick_wait(h):
    """Wait for input, with a time-out for no longer than a spin (the slow way keeps the time); return 1 if it came."""
    timeout = load(h + _H.receive_ns)
    if timeout == 0:
        return 0
    return wait.wait_arrived(h, SLICE_NS if timeout < 0 else budget.spin_budget(h, budget.RECV))


@kernel
def quick_recv(h, to, size):
    """Receive from the ring, after a short wait if it is empty; return the count or <= 0: take the slow way."""
    pace.rest(h)
    got = loopback.recv_some(h, to, size, 0)
    if got == -LOOK and quick_wait(h) != 0:
        got = loopback.recv_some(h, to, size, 0)
    return pace.took(h, size, got) if got > 0 else got


@kernel
def may_be_quick(h):
    """Return 1 if the next receive can be answered from the ring, with the bytes or a wait of known kind."""
    return 1 if spin.in_ring(h) and load(h + _H.failed) == 0 else 0


@kernel
def peer_takes(h):
    """Return 0 if the peer took nothing for a while: the slow way then asks whether it lives."""
    now = cycles()
    if now - load(h + _H.checked) < PEER_CHECK:
        return 1
    tx = load(h + _H.tx)
    taken = load_acquire(tx + _D.head) >= load(h + _H.checked_at)
    if taken:
        store(h + _H.checked, now)
        store(h + _H.checked_at, load(tx + _D.tail))
        return 1
    return 0


@kernel
def waiting(h):
    """Return how many bytes there are to receive at most, 0 if none came in a moment."""
    rx = load(h + _H.rx)
    if not spin.in_ring(h):
        there, end = lane.queued(h), lane_end(rx)
        return there + max(0, load_acquire(rx + _D.tail) - end) if there > 0 and end >= 0 else there
    if load_acquire(rx + _D.tail) == load(rx + _D.head) and quick_wait(h) == 0:
        return 0
    return load_acquire(rx + _D.tail) - load(rx + _D.head)


def recv(self, args, n):
    """socket.recv(bufsize[, flags])"""
    h = handle_of(self)
    if h == 0:
        return fall_back(1, self, args, n, 0)
    if n != 1 or load(h + _H.failed):
        return fall_back(0, self, args, n, 0)
    size = _as_size(load(args))
    if size <= 0:
        _clear()
        return fall_back(0, self, args, n, 0)
    # The result is made as large as what is there; another thread may take it first, then it is cut to size.  Event loops
    # ask for 256 KiB: objects of that size are given back to the kernel each time, and cost their pages anew, and the
    # sender idles meanwhile.
    pace.rest(h)
    there = waiting(h)
    if there <= 0:
        return fall_back(0, self, args, n, 0)
    most = load(h + _H.capacity)
    if load(h + _H.timeout_ns) == 0:
        most = POLLED if spin.in_ring(h) else 2 * POLLED
    wanted, size = size, max(1, min(size, min(there, most)))
    result = scratch()
    store(result, _bytes(0, size))
    if load(result) == 0:
        return 0
    got = loopback.recv_some(h, _bytes_at(load(result)), size, 0)
    if got == size:
        pace.took(h, wanted, got)
        return load(result)
    _resize(result, max(got, 0))
    if got > 0:
        return load(result)
    _drop(load(result))
    return fall_back(0, self, args, n, 0)


def recv_into(self, args, n, names):
    """socket.recv_into(buffer[, nbytes[, flags]])"""
    h = handle_of(self)
    if h == 0:
        return fall_back(3, self, args, n, names)
    if n < 1 or n > 2 or names != 0 or not may_be_quick(h):
        return fall_back(2, self, args, n, names)
    view = scratch()
    if _get_buffer(load(args), view, PyBUF_WRITABLE) < 0:
        _clear()
        return fall_back(2, self, args, n, names)
    size = load(view + 16)
    if n == 2:
        wanted = _as_size(load(args + 8))
        if wanted < 0 or wanted > size:
            _clear()
            size = 0
        elif wanted > 0:
            size = wanted
    got = 0
    if size > 0:
        got = quick_recv(h, load(view), size)
    _release_buffer(view)
    if got > 0:
        return _from_int(got)
    return fall_back(2, self, args, n, names)


@kernel
def send_at(h, address, size):
    """Send `size` bytes as far as that needs no sleep; return the count or <= 0."""
    if size <= 0 or size >= 1 << 31:
        return -1
    return loopback.send_pieces(h, address, size, 0) if size <= PIECE else wait.send_all(h, address, size, 0)


@kernel
def quick_send(h, buffer):
    """Send from `buffer`, an object; return size << 32 | count sent, or -1 with nothing sent: take the slow way."""
    if load(h + _H.failed) or load(h + _H.shut) or not peer_takes(h):
        return -1
    words = static_words()
    if load(buffer + TYPE_AT) == load(words + BYTES):
        size = load(buffer + BYTES_SIZE)
        sent = send_at(h, buffer + load(words + BYTES_DATA), size)
    else:
        view = scratch()
        if _get_buffer(buffer, view, 0) < 0:
            _clear()
            return -1
        size = load(view + 16)
        sent = send_at(h, load(view), size)
        _release_buffer(view)
    pace.answered(h)
    return size << 32 | sent if sent > 0 else -1


@kernel
def go_on(index, self, data, sent):
    """Call the slow method as METHOD(data, flags=0, sent)."""
    rest = scratch()
    store(rest, data)
    store(rest + 8, _from_int(0))
    store(rest + 16, _from_int(sent))
    result = fall_back(index, self, rest, 3, 0)
    _drop(load(rest + 8))
    _drop(load(rest + 16))
    return result


def send(self, args, n):
    """socket.send(bytes[, flags])"""
    h = handle_of(self)
    if h == 0 or n < 1 or n > 2:                                      # a third argument is ours, see `go_on`
        return fall_back(5, self, args, n, 0)
    sent = quick_send(h, load(args)) if n == 1 else -1
    if sent < 0:
        return fall_back(4, self, args, n, 0)
    if sent & 0xFFFFFFFF != sent >> 32 and load(h + _H.timeout_ns) < 0:
        return go_on(4, self, load(args), sent & 0xFFFFFFFF)          # a blocking send waits for all, as Linux does
    return _from_int(sent & 0xFFFFFFFF)


def sendall(self, args, n):
    """socket.sendall(bytes[, flags])"""
    h = handle_of(self)
    if h == 0 or n < 1 or n > 2:                                      # a third argument is ours, see `go_on`
        return fall_back(7, self, args, n, 0)
    sent = quick_send(h, load(args)) if n == 1 else -1
    if sent < 0:
        return fall_back(6, self, args, n, 0)
    count = sent & 0xFFFFFFFF
    if count == sent >> 32:
        nothing = load(static_words() + NONE)
        _keep(nothing)
        return nothing
    return go_on(6, self, load(args), count)


# name -> (entry, whether it takes keywords)
METHODS: dict[str, tuple[Callable[..., int], bool]] = {
    "recv": (recv, False), "recv_into": (recv_into, True), "send": (send, False), "sendall": (sendall, False)}
