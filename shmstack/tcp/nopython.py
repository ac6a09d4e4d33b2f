"""Sends and receives for machine code that numba made of somebody else's loop: `shmstack.jit` leads here.

Guarantee: a number is all that such a loop has of its socket, and no number, however old, leads to memory that is
not the connection's.  Nothing here needs the GIL, so a loop may hold it or not; what a call can't answer from the ring
or by a short spin it leaves to the socket's own methods, which keep time-outs, look after the peer, follow moves and
change lanes.  So such a loop sees exactly the stream that a loop in Python would.

Theory.  A number names a *ticket* and its use: use << 16 | ticket.  A ticket holds the handle while there is one, and
the number that is valid; a ticket that is used again has another number.  The handle is read before the number is
compared, and whoever retires a ticket takes the number away first.

For the slow way the GIL is taken in a manner that suits whoever has it already, and given up again by whatever
sleeps.  An exception that isn't the socket's (a signal's handler raised it) can't pass through machine code without
Python's knowledge: it is raised in this thread as soon as that runs Python again, and the caller gets what was sent
or received before it, or -EINTR.

Rejected: to inline kernels into the caller's code.  A loop that numba has cached on disk would keep the layout of the
version it was compiled with, which in shared memory is silent corruption, and each loop would take seconds to
compile; a call by symbol costs 1 ns.  Waits of its own: all of `stack.transfer`, in machine code, a second time.
"""
from __future__ import annotations

from collections.abc import Callable

from numba import types

from shmstack._jit import cycles, extern, kernel, load, load_acquire, scratch, static_words, store
from shmstack.shm.layout import DIRECTION
from shmstack.tcp import budget, loopback, spin, wait
from shmstack.tcp.codes import EAGAIN, EINTR, PIECE
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.method import may_be_quick, peer_takes

_D, _H = DIRECTION.at, HANDLE.at
_i, _i32, _none = types.int64, types.int32, types.void

# static words (see doorbell for the first ones), written by `shmstack.jit`
TABLE = 8 * 32                       # address of the tickets
ATTEND = 8 * 33                      # the slow way: attend(what, number, address, size) -> count or -errno
DEFER = 8 * 34                       # defer(exception) -> (a class that is it once it is raised, count or -errno)

TICKETS = 1 << 16
TICKET_SIZE, HANDLE_AT, NUMBER_AT, ASKED_AT, HEARD_AT = 32, 0, 8, 16, 24
RECV, SEND = 0, 1                    # what is asked for
HELD_NS = 1_000_000                  # longest spin of a caller who may hold the GIL; Python's own turns are five of these
ASK = 1 << 21                        # cycles between two looks at the lifeline by who never waits: a millisecond or less

_ensure = extern("PyGILState_Ensure", _i32)
_release = extern("PyGILState_Release", _none, _i32)
_call = extern("PyObject_Vectorcall", _i, _i, _i, _i, _i)
_from_int = extern("PyLong_FromLongLong", _i, _i)
_as_int = extern("PyLong_AsLongLong", _i, _i)
_drop = extern("Py_DecRef", _none, _i)
_item = extern("PyTuple_GetItem", _i, _i, _i)
_clear = extern("PyErr_Clear", _none)
_fetch = extern("PyErr_Fetch", _none, _i, _i, _i)
_normalize = extern("PyErr_NormalizeException", _none, _i, _i, _i)
_raise_later = extern("PyThreadState_SetAsyncExc", _i32, _i, _i)
_thread = extern("PyThread_get_thread_ident", _i)


@kernel
def ticket_of(number):
    """Return the address of the ticket that a number names."""
    return load(static_words() + TABLE) + (number & (TICKETS - 1)) * TICKET_SIZE


@kernel
def handle_of(number):
    """Return the handle that a number stands for, 0 if it stands for none (any more)."""
    ticket = ticket_of(number)
    handle = load_acquire(ticket + HANDLE_AT)
    return handle if load_acquire(ticket + NUMBER_AT) == number else 0


@kernel
def defer():
    """Have the present exception raised again when this thread runs Python next; return what the caller gets."""
    answer = -EINTR
    words = scratch()
    for i in range(4):
        store(words + 8 * i, 0)
    _fetch(words, words + 8, words + 16)
    _normalize(words, words + 8, words + 16)
    later = _call(load(static_words() + DEFER), words + 8, 1, 0)
    if later != 0:
        _raise_later(_thread(), _item(later, 0))
        answer = _as_int(_item(later, 1))
        _drop(later)
    else:
        _clear()
    for i in range(3):
        if load(words + 8 * i) != 0:
            _drop(load(words + 8 * i))
    return answer


@kernel
def attend(what, number, address, size):
    """Go the slow way; return the count or -errno."""
    state = _ensure()
    words = scratch()
    store(words, _from_int(what))
    store(words + 8, _from_int(number))
    store(words + 16, _from_int(address))
    store(words + 24, _from_int(size))
    result = _call(load(static_words() + ATTEND), words, 4, 0)
    for i in range(4):
        _drop(load(words + 8 * i))
    if result == 0:
        answer = defer()
    else:
        answer = _as_int(result)
        _drop(result)
    _release(state)
    return answer


@kernel
def came(h):
    """Look for input, as long as this socket's waits spin but never for long; return 1 if there is something."""
    timeout = load(h + _H.timeout_ns)
    if timeout == 0:
        return spin.spin_arrived(h, 1)
    if spin.spin_held(h):
        return 1
    limit = min(budget.spin_budget(h, budget.RECV), HELD_NS)
    if timeout > 0:
        limit = min(limit, timeout)
    if limit > 0 and spin.spin_arrived_ns(h, limit):
        budget.learn(h, 1)
        spin.stays_awake(h)
        return 1
    return 0


@kernel
def peer_lives(number, h):
    """Return 0 if the slow way is to ask whether the peer lives: nothing came from it since the last send, nor goes."""
    heard, head = ticket_of(number) + HEARD_AT, load(load(h + _H.rx) + _D.head)
    if load(heard) != head:
        store(heard, head)
        return 1
    return peer_takes(h)


@kernel
def may_ask(number):
    """Return 0 if this socket asked a moment ago whether anything came by the lifeline."""
    asked, now = ticket_of(number) + ASKED_AT, cycles()
    if 0 <= now - load(asked) < ASK:
        return 0
    store(asked, now)
    return 1


def recv(number, to, size):
    """Receive up to `size` bytes; return the count, 0 at the end of the stream, or -errno."""
    h = handle_of(number)
    if h != 0 and size > 0 and may_be_quick(h):
        # To look costs less than to take the lock, which waits until all that was sent has left the store buffer.
        if came(h):
            got = loopback.recv_some(h, to, size, 0)
            if got > 0:
                return got
        elif load(h + _H.timeout_ns) == 0 and not may_ask(number):
            return -EAGAIN
    return attend(RECV, number, to, size)


def send(number, source, size):
    """Send `size` bytes, all of them if the socket blocks; return the count, or -errno if it would be 0."""
    h = handle_of(number)
    sent = 0
    if h != 0 and size > 0 and load(h + _H.failed) == 0 and load(h + _H.shut) == 0 and peer_lives(number, h):
        if size <= PIECE:
            sent = loopback.send_pieces(h, source, size, 0)
        else:
            sent = wait.send_spinning(h, source, size, 0)
        if sent == size or (sent > 0 and load(h + _H.timeout_ns) >= 0):
            return sent
        sent = max(sent, 0)
    more = attend(SEND, number, source + sent, size - sent)
    if more < 0 and sent > 0:
        return sent
    return sent + more


# symbol -> entry
EXPORTS: dict[str, Callable[..., int]] = {"jit_recv": recv, "jit_send": send}
