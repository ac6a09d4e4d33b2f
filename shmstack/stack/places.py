"""Where a program writes and reads in place: pieces of a ring as memoryviews, for `shmstack.nocopy`.

Guarantee: a view, and whatever is made of it, keeps its memory mapped.  An exporter of the whole ring, one for each end
that is used so, is noted among the segment's handles, and struck off when the last view of it is gone.
"""
from __future__ import annotations

import ctypes
import weakref

from shmstack import _native
from shmstack.shm.layout import DIRECTION, PAIR
from shmstack.stack.endpoint import Endpoint
from shmstack.tcp.codes import EAGAIN, FULL, LOCKED
from shmstack.tcp.handle import HANDLE

_H, _D, _P = HANDLE.at, DIRECTION.at, PAIR.at
_TRIES = 20                           # at a place that others keep changing, or a lock; then the copies are made
_MOMENT_NS = 20_000_000               # longest wait for room


class Ring:
    """A ring as memory of this process, mapped for as long as a view of it is left."""

    def __init__(self, end: Endpoint, address: int) -> None:
        segment = end.stack.segment
        memory = (ctypes.c_char * end.stack.capacity).from_address(address)
        segment.handles.add(id(memory))
        weakref.finalize(memory, segment.let_go, id(memory)).atexit = False
        self.address, self.view = address, memoryview(memory).cast("B")


class Place:
    """What a view of this module shows: where it is in the stream, and in which ring; None: memory of our own."""

    __slots__ = ("at", "end", "generation", "pair", "ring", "view")

    def __init__(self, view: memoryview, end: Endpoint | None = None, at: int = 0, ring: Ring | None = None) -> None:
        self.view, self.end, self.at, self.ring = view, end, at, ring
        if end is not None:
            self.pair, self.generation = end.pair, end.generation

    def intact(self) -> bool:
        """Return whether no other connection may have written here."""
        return self.ring is None or _native.call.load(self.pair + _P.generation) == self.generation

    def release(self) -> None:
        try:
            self.view.release()
        except BufferError:
            pass                                              # something was made of it, and keeps it


class Views:
    """The views that a socket has at present."""

    def __init__(self) -> None:
        self.rings: dict[int, Ring] = {}                     # field of the handle -> the ring that was there last
        self.out: Place | None = None
        self.into: Place | None = None

    def ring(self, end: Endpoint, field: int) -> Ring:
        address = _native.call.load(end.handle + field)
        known = self.rings.get(field)
        if known is None or known.address != address:
            known = self.rings[field] = Ring(end, address)
        return known

    def show_out(self, place: Place | None) -> None:
        before, self.out = self.out, place
        if before is not None:
            if before.end is not None:
                before.end.written = 0
            before.release()
        if place is not None and place.end is not None:
            place.end.written = place.pair

    def show_in(self, place: Place | None) -> None:
        before, self.into = self.into, place
        if before is not None:
            before.release()


def room(views: Views, end: Endpoint, size: int) -> Place | None:
    """Return a place in the ring, or None if the next bytes go elsewhere (or to find out what is wrong)."""
    native, capacity = _native.call, end.stack.capacity
    patience = -1                                             # not known yet
    for _ in range(_TRIES):
        ring, tail = views.ring(end, _H.tx_ring), native.load(end.tx + _D.tail)
        start = tail & capacity - 1
        least = min(size, capacity // 4, capacity - start)
        found = native.reserve(end.handle, tail, least, size)
        if found == -FULL:
            end.serve()
            end.look_at_peer()
            if patience:
                patience = _MOMENT_NS if native.load(end.handle + _H.timeout_ns) else 0
            if not patience or not native.wait_room(end.handle, least, patience):
                found = native.reserve(end.handle, tail, 1, size)
            patience = 0
        if found > 0 and native.load(end.handle + _H.tx_ring) == ring.address:
            return Place(ring.view[start:start + found], end, tail, ring)
        if found == -LOCKED:
            _unlock(end)
        elif found < 0 and found not in (-EAGAIN, -FULL):
            break
        capacity = end.stack.capacity
    return None


def _unlock(end: Endpoint) -> None:
    end.break_lock(end.tx + _D.tx_lock)
    end.break_lock(end.rx + _D.rx_lock)


def publish(place: Place, size: int) -> int:
    """Send bytes that were written in place; return `size`, -EAGAIN if others sent, or what else stands in the way."""
    end, ring, done = place.end, place.ring, -LOCKED
    assert end is not None and ring is not None
    for _ in range(_TRIES):
        done = _native.call.commit(end.handle, place.at, ring.address, size)
        if done != -LOCKED:
            break
        _unlock(end)
    return done


def ahead(views: Views, end: Endpoint, size: int) -> Place | None:
    """Return a place in the ring, or None if nothing is to be read there."""
    native = _native.call
    for _ in range(_TRIES):
        ring, head = views.ring(end, _H.rx_ring), native.load(end.rx + _D.head)
        found = native.look_at(end.handle, head, size)
        if found > 0 and native.load(end.handle + _H.rx_ring) == ring.address:
            start = head & end.stack.capacity - 1
            return Place(ring.view[start:start + found].toreadonly(), end, head, ring)
        if found == -LOCKED:
            _unlock(end)
        elif found < 0 and found != -EAGAIN:
            break
    return None


def give_back(place: Place, size: int) -> int:
    """Receive bytes that were read in place; return `size`, -EAGAIN if others did, or what else stands in the way."""
    end, done = place.end, -LOCKED
    assert end is not None
    for _ in range(_TRIES):
        done = _native.call.give_back(end.handle, place.at, size)
        if done != -LOCKED:
            break
        _unlock(end)
    return done
