"""Accelerated sockets in loops that numba compiles.

    from shmstack import jit

    h = jit.handle(sock)                       # a number, for the loop

    @numba.njit                                # nogil=True, parallel=True and cache=True too
    def serve(h, buffer):
        while True:
            n = jit.recv(h, buffer)            # waits; 0: end of the stream; < 0: the negative of an errno
            if n <= 0:
                return n
            jit.send(h, buffer[:n])

`recv(h, array)` and `send(h, array)` do what the socket's methods of these names do, with the socket's time-out, and
answer with a count or the negative of an errno in place of an exception: `-EAGAIN` on a socket that doesn't block,
`-ETIMEDOUT`, `-EPIPE`, `-ECONNRESET`.  Arrays are contiguous; what is counted is bytes.

`-EBADF` says that the socket was closed.  A number is good while its socket is open and means nothing ever after; it
stays good in a forked child, and when the connection goes on in the kernel.

`-EINTR` says that a signal's handler raised an exception, as Ctrl-C does.  Python raises it as soon as the compiled
function has returned, so a loop leaves at a negative answer, or it goes on for ever.

The GIL is left alone as long as the ring has an answer within a short spin.  A call that waits longer gives it up if
the caller has it, and takes it for a moment if not.

Guarantee, theory and what was rejected are told in `tcp.nopython`.
"""
from __future__ import annotations

import ctypes
import errno
import itertools
import threading
import weakref
from typing import Any

try:
    from llvmlite import binding as _binding
    from numba import types as _types
    from numba.core import errors as _errors
    from numba.extending import overload as _overload
except ImportError as _missing:
    raise ImportError("shmstack.jit: wanted numba, which compiles its callers, found none; pip install numba") from _missing

from shmstack import _native
from shmstack import errors as _ours
from shmstack._socket import socket as _socket
from shmstack.shm.layout import DIRECTION as _DIRECTION
from shmstack.tcp import nopython as _tickets

__all__ = ["handle", "recv", "send"]

_D = _DIRECTION.at
_turn = threading.RLock()
_uses = itertools.count(1)
_sockets: weakref.WeakValueDictionary[int, _socket] = weakref.WeakValueDictionary()     # by number
_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()             # by socket, where they are known
_free = list(range(_tickets.TICKETS - 1, -1, -1))


class _Cut(BaseException):
    """A call was cut short by `error`, when `count` bytes had gone."""

    def __init__(self, error: BaseException, count: int) -> None:
        self.error, self.count = error, count


# ---- numbers -------------------------------------------------------------------------------------------------

def handle(sock: Any) -> int:
    """Return the number by which compiled code knows a socket.

    Parameters
    ----------
    sock : an accelerated, connected socket

    Raises
    ------
    NotAccelerated
        It isn't accelerated (now).
    """
    end = getattr(sock, "_endpoint", None)
    if end is None:
        raise _ours.NotAccelerated(
            "an accelerated socket", repr(sock), "is it connected, to this host, and was its peer started with shmstack?")
    with _turn:
        known = _numbers.get(sock)
        if known is not None and _native.call.load(_ticket(known)):
            return known
        if not _free:
            raise OSError(errno.EMFILE, f"wanted a socket for compiled code, found {_tickets.TICKETS} of them open")
        ticket = _free.pop()
        number = next(_uses) << 16 | ticket
        at = _ticket(number)
        _native.call.store(at + _tickets.HANDLE_AT, end.handle)
        _native.call.store(at + _tickets.NUMBER_AT, number)
        _numbers[sock], _sockets[number] = number, sock
        weakref.finalize(end, _leave, number).atexit = False
        weakref.finalize(sock, _retire, number).atexit = False
    return number


def _ticket(number: int) -> int:
    return _table + (number & _tickets.TICKETS - 1) * _tickets.TICKET_SIZE


def _leave(number: int) -> None:
    # The endpoint is gone: its handle's memory is about to be given back, if it wasn't just now.
    with _turn:
        if _native.call.load(_ticket(number) + _tickets.NUMBER_AT) == number:
            _native.call.store(_ticket(number) + _tickets.HANDLE_AT, 0)


def _retire(number: int) -> None:
    with _turn:
        _native.call.store(_ticket(number) + _tickets.NUMBER_AT, 0)
        _native.call.store(_ticket(number) + _tickets.HANDLE_AT, 0)
        _free.insert(0, number & _tickets.TICKETS - 1)


# ---- the slow way --------------------------------------------------------------------------------------------

def _attend(what: int, number: int, address: int, size: int) -> int:
    """Answer for the socket's own method: a count, or the negative of an errno."""
    sock = _sockets.get(number)
    if sock is None:
        return -errno.EBADF
    end = sock._endpoint
    place = (_D.head, _D.tail)[what]
    before = _native.call.load((end.rx, end.tx)[what] + place) if end is not None else 0
    try:
        with memoryview((ctypes.c_char * size).from_address(address)) as view:
            return sock.send(view) if what == _tickets.SEND else sock.recv_into(view) if size else 0
    except OSError as error:
        return -(error.errno or errno.ETIMEDOUT)
    except BaseException as error:
        # The method may have been past its last byte, so what went is read off the stream.
        gone = 0
        if end is not None and end.open:
            gone = _native.call.load((end.rx, end.tx)[what] + place) - before
        raise _Cut(error, gone if 0 < gone <= size else -errno.EINTR) from error


def _defer(raised: BaseException) -> tuple[type, int]:
    """Return (a class that, raised without arguments, is the exception itself; what the caller gets)."""
    error, count = (raised.error, raised.count) if isinstance(raised, _Cut) else (raised, -errno.EINTR)
    return type(type(error).__name__, (type(error),), {"__new__": lambda cls: error}), count


_table: int = _native.load().allocate(_tickets.TICKETS * _tickets.TICKET_SIZE)
for _word, _value in ((_tickets.TABLE, _table), (_tickets.ATTEND, id(_attend)), (_tickets.DEFER, id(_defer))):
    _native._static(_word // 8, _value)


# ---- what compiled code calls --------------------------------------------------------------------------------

for _name in _tickets.EXPORTS:
    _binding.add_symbol(f"shmstack_{_name}", _native._library(f"shmstack_{_name}"))
_machine = {_name: _types.ExternalFunction(f"shmstack_{_name}", _types.int64(_types.int64, _types.intp, _types.intp))
            for _name in _tickets.EXPORTS}
_recv, _send = _machine["jit_recv"], _machine["jit_send"]
_plain = {_name: ctypes.PYFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(_native._library(f"shmstack_{_name}"))
          for _name in _tickets.EXPORTS}


def recv(h: int, array: Any) -> int:
    """Receive into an array, waiting as the socket does.

    Parameters
    ----------
    h : as `handle` returns it
    array : contiguous, writable

    Returns
    -------
    int
        How many bytes came, 0 at the end of the stream, or the negative of an errno.
    """
    if not array.flags.writeable:
        raise TypeError("wanted a writable array")
    return int(_plain["jit_recv"](h, _contiguous(array).ctypes.data, array.nbytes))


def send(h: int, array: Any) -> int:
    """Send an array, all of it if the socket blocks.

    Parameters
    ----------
    h : as `handle` returns it
    array : contiguous

    Returns
    -------
    int
        How many bytes were sent (fewer if the call was cut short), or the negative of an errno if there were none.
    """
    return int(_plain["jit_send"](h, _contiguous(array).ctypes.data, array.nbytes))


def _contiguous(array: Any) -> Any:
    if not array.flags.c_contiguous:
        raise TypeError("wanted a contiguous array")
    return array


def _check(what: str, array: Any, writes: bool) -> None:
    if not isinstance(array, _types.Array) or array.layout != "C" or (writes and not array.mutable):
        raise _errors.TypingError(f"jit.{what}: wanted a contiguous{' writable' if writes else ''} array, found {array}")


# The twins' signatures are compared, annotations included, so none has any.

@_overload(recv)
def _compiled_recv(h, array):  # type: ignore[no-untyped-def]
    _check("recv", array, True)
    return lambda h, array: _recv(h, array.ctypes.data, array.nbytes)


@_overload(send)
def _compiled_send(h, array):  # type: ignore[no-untyped-def]
    _check("send", array, False)
    return lambda h, array: _send(h, array.ctypes.data, array.nbytes)
