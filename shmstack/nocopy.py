"""Large messages without a copy: write into the ring what is to be sent, read where it lies what has come.

    from shmstack import nocopy

    room = nocopy.reserve(sock, size)          # a writable memoryview of 1 to `size` bytes
    room[:] = ...
    nocopy.commit(sock)                        # send them

    data = nocopy.peek(sock, size)             # a read-only memoryview of 1 to `size` bytes; empty: end of the stream
    ...
    nocopy.consume(sock)                       # received: give the room back

Guarantee: the stream is that of `send` and `recv`, with which these may be mixed, and the other end needs to know
nothing.  It works with every stream socket: where the next bytes don't go by the ring (before accept, a full ring, kernel
TCP, a plain socket) the view is of memory of our own, and commit and consume send and receive, which costs the copies.

What you get is contiguous, so it is short where the ring ends, and where it is nearly full or empty: ask again for the
rest.  `reserve` doesn't wait for longer than a moment; commit, peek and consume wait as `send` and `recv` of the
socket do.  One thread sends at a time and one receives: who sends between somebody's reserve and commit, or receives
between peek and consume, has the other one get `StaleView`; nothing of the stream is lost or spoilt by it.

A view ends with commit or consume, or with the next reserve or peek: using it is then a ValueError.  What was made of it and
still lives (a slice, an array of numpy) keeps its memory mapped, also after close; what it shows then is anybody's,
and writing there is writing into the next message.

Rejected: a second mapping by `mmap` as the exporter (a descriptor and another 64 page faults a ring); a lock that is held
from reserve to commit (see `tcp.inplace`).
"""
from __future__ import annotations

import errno
import socket as _stdlib
import threading
import weakref
from typing import Any

from shmstack import _native
from shmstack.errors import StaleView
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.places import Place, Views, ahead, give_back, publish, room
from shmstack.tcp.codes import EAGAIN

__all__ = ["commit", "consume", "peek", "reserve"]

_SLICE_NS = 100_000_000
_MOST = 1 << 18                       # bytes of our own memory a view

_turn = threading.Lock()
_views: weakref.WeakKeyDictionary[Any, Views] = weakref.WeakKeyDictionary()


def _of(sock: Any) -> tuple[Views, Endpoint | None]:
    end = getattr(sock, "_endpoint", None)
    views = end.views if end is not None else None
    if views is None:
        with _turn:
            views = _views.setdefault(sock, Views())
        if end is not None:
            end.views = views                                 # quicker to find
    return views, end


# ---- sending -------------------------------------------------------------------------------------------------

def reserve(sock: Any, size: int) -> memoryview:
    """Return a writable view of the next bytes to be sent, 1 to `size` of them; what was reserved before is dropped.

    Parameters
    ----------
    sock : connected stream socket
    size : how many are wanted
    """
    if size <= 0:
        raise ValueError(f"wanted the number of bytes to reserve, found {size}")
    views, end = _of(sock)
    place = room(views, end, size) if end is not None else None
    if place is None:
        place = Place(memoryview(bytearray(min(size, _MOST))))
    views.show_out(place)
    return place.view


def commit(sock: Any, size: int | None = None) -> int:
    """Send the first `size` bytes of what was reserved, all by default; the rest is dropped.

    Returns
    -------
    int
        How many went: `size`, or fewer if they take the kernel and the socket doesn't wait (as `send`).  Those left are
        still reserved; commit them again.

    Raises
    ------
    StaleView
        Somebody else sent since.  Nothing of this was; reserve and write again.
    OSError
        As `send` does.
    """
    views, end = _of(sock)
    place = views.out
    size = _checked(place, size)
    if not size or place is None:
        views.show_out(None)
        return 0
    if place.ring is not None:
        done = publish(place, size) if end is place.end else 0
        if done == size:
            views.show_out(None)
            return size
        # Only what nobody can have written to is worth sending.
        data = memoryview(bytearray(place.view[:size]))
        if done == -EAGAIN or not place.intact():
            views.show_out(None)
            raise StaleView("the bytes that were reserved", "others sent since", "reserve and write again")
        place = Place(data)
        views.show_out(place)
    sent = _send(sock, place.view[:size])
    views.show_out(Place(place.view[sent:size]) if sent < size else None)
    return sent


def _checked(place: Place | None, size: int | None) -> int:
    there = len(place.view) if place is not None else 0
    if size is None:
        size = there
    if place is None or not 0 <= size <= there:
        raise ValueError(f"wanted a number of bytes up to the {there} of the view, found {size}")
    return size


def _send(sock: Any, view: memoryview) -> int:
    if sock.gettimeout() is None:
        sock.sendall(view)
        return len(view)
    return int(sock.send(view))


# ---- receiving -----------------------------------------------------------------------------------------------

def peek(sock: Any, size: int) -> memoryview:
    """Return a read-only view of the next bytes received, 1 to `size` of them, or none at the end of the stream.

    Parameters
    ----------
    sock : connected stream socket
    size : how many are wanted

    Raises
    ------
    OSError
        As `recv` does.
    """
    if size <= 0:
        raise ValueError(f"wanted the number of bytes to look at, found {size}")
    views, end = _of(sock)
    while True:
        place = ahead(views, end, size) if end is not None else None
        if place is None and end is not None:
            if not sock.recv_into(bytearray(1), 1, _stdlib.MSG_PEEK):             # waits
                place = Place(memoryview(b""))                # the end of the stream
                break
            place = ahead(views, end, size)
        if place is None:
            place = _copied(sock, size, 0 if end is None else _stdlib.MSG_DONTWAIT)
        if place is not None:
            break
        end = getattr(sock, "_endpoint", None)
    views.show_in(place)
    return place.view


def _copied(sock: Any, size: int, flags: int) -> Place | None:
    room = bytearray(min(size, _MOST))
    try:
        got = sock.recv_into(room, len(room), _stdlib.MSG_PEEK | flags)
    except BlockingIOError:
        if not flags:
            raise
        return None                                           # it came by the other lane; look again
    return Place(memoryview(room)[:got].toreadonly())


def consume(sock: Any, size: int | None = None) -> None:
    """Receive the first `size` bytes of what `peek` showed, all by default; the view ends here.

    Raises
    ------
    StaleView
        Somebody else received since.
    OSError
        As `recv` does.
    """
    views, end = _of(sock)
    place = views.into
    size = _checked(place, size)
    views.show_in(None)
    if not size or place is None:
        return
    done = 0
    if place.ring is not None and end is place.end:
        done = give_back(place, size)
        if done == -EAGAIN:
            raise StaleView("the bytes that were looked at", "others received since", "look again")
    if done != size:
        _discard(sock, size)


def _discard(sock: Any, size: int) -> None:
    """Receive bytes that are known to be there, in either lane or on their way from one to the other."""
    with memoryview(bytearray(min(size, _MOST))) as room:
        while size:
            try:
                got = sock.recv_into(room[:size])
            except (BlockingIOError, TimeoutError):
                end = getattr(sock, "_endpoint", None)
                if end is None:
                    raise
                _native.call.wait_lifeline(end.handle, 1, _SLICE_NS)
                continue
            if not got:
                raise OSError(errno.ECONNRESET, "the stream ended before bytes that were there")
            size -= got
