"""Bytes that are written and read where they lie: in the ring.

Guarantee: what is published was written by who reserved it and by nobody else, or it isn't published; what is given
back was what was looked at, or nothing is.

Theory.  A reservation is a position: the tail as it stood.  The bytes behind the tail belong to whoever sends next, so
they may be written without a lock, and at the end the tail says whether anybody sent meanwhile.  Looking ahead is
the same at the other end: the sender doesn't touch what lies behind the head.  So locks are held for a few loads,
never while a program fills or reads a message, and a reservation that is given up leaves nothing behind.

The lane may change meanwhile, and the pair may move, without a byte being sent or received.  Then the answer is -LOOK
and the caller, who still has the bytes before him, sends or receives them the usual way.

Rejected: to hold the sender's lock from reservation to commit (every other thread and process, a spill and a move
would wait for a program's own time); room that is counted as taken in shared memory (somebody would have to give it
back when its taker dies).
"""
from __future__ import annotations

from shmstack._jit import kernel, load, load_acquire
from shmstack.ring.lock import take, unlock
from shmstack.ring.stream import cached_room, consume, pass_bounds, publish, readable, window
from shmstack.shm.layout import DIRECTION
from shmstack.tcp.codes import EAGAIN, EBADF, ECONNRESET, EPIPE, FULL, LOCKED, LOOK, NO_MEMORY
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.course import RING_LANE, choose_lane
from shmstack.tcp.loopback import announce, extend, relieve

_D, _H = DIRECTION.at, HANDLE.at


@kernel
def reserve_room(h, tx, tail, least, size):
    """Do the work of `reserve`, under the lock."""
    if load(tx + _D.tail) != tail:
        return -EAGAIN
    if choose_lane(h, tx, least) != RING_LANE:
        return -LOOK
    capacity = load(h + _H.capacity)
    index = tail & (capacity - 1)
    size = min(size, capacity - index)
    free = cached_room(tx, tail, window(tx, capacity), size)
    if free < 0:
        return -ECONNRESET
    if free < min(least, size):
        return -FULL
    size = min(size, free)
    if load(tx + _D.backed) < capacity and not extend(h, tx, index + size):
        return -NO_MEMORY
    return size


@kernel
def reserve(h, tail, least, size):
    """Return how many bytes can be written in place from position `tail` on, at most `size`.

    Parameters
    ----------
    h : address of a handle
    tail : where this end sends next
    least : fewer than this (or than there are up to the ring's end) are -FULL

    Returns
    -------
    int
        The count; -EAGAIN if the tail is elsewhere, -LOOK if the next bytes go by the lifeline, or as `send_some`.
    """
    tx = load(h + _H.tx)
    if load(h + _H.dead):
        return -EBADF
    if load(tx + _D.fin) & 1:
        return -EPIPE
    if not take(tx + _D.tx_lock, load(h + _H.me)):
        return -LOCKED
    found = reserve_room(h, tx, tail, least, size)
    unlock(tx + _D.tx_lock)
    return found


@kernel
def commit(h, tail, ring, size):
    """Send `size` bytes that were written in place; return the count, or as `reserve` with nothing sent.

    Parameters
    ----------
    h, tail : as reserved
    ring : address of the ring that they were written to
    size : of them, not more than reserved
    """
    tx = load(h + _H.tx)
    if load(h + _H.dead):
        return -EBADF
    if load(tx + _D.fin) & 1:
        return -EPIPE
    if not take(tx + _D.tx_lock, load(h + _H.me)):
        return -LOCKED
    if load(tx + _D.tail) != tail:
        done = -EAGAIN
    elif load(tx + _D.nb) & 1 == 0 or load(h + _H.tx_ring) != ring:
        done = -LOOK
    else:
        publish(tx, tail + size)
        done = size
    unlock(tx + _D.tx_lock)
    if done > 0:
        announce(h, tx)
    return done


@kernel
def there(h, rx, head):
    """Return how many bytes the ring holds from position `head` on, -EAGAIN if the head is elsewhere, -LOOK if none."""
    if load(rx + _D.head) != head:
        return -EAGAIN
    if pass_bounds(rx, head) == 0:
        return -LOOK
    count = readable(rx, head, load(h + _H.capacity))
    if count <= 0:
        return -LOOK if count == 0 else -ECONNRESET
    return count


@kernel
def look_at(h, head, size):
    """Return how many bytes can be read in place from position `head` on, at most `size`, or as `there`."""
    rx = load(h + _H.rx)
    if load(h + _H.dead):
        return -EBADF
    if not take(rx + _D.rx_lock, load(h + _H.me)):
        return -LOCKED
    count = there(h, rx, head)
    unlock(rx + _D.rx_lock)
    capacity = load(h + _H.capacity)
    return min(count, size, capacity - (head & (capacity - 1))) if count > 0 else count


@kernel
def give_back(h, head, size):
    """Receive `size` bytes that were read in place; return the count, or as `there` with nothing received."""
    rx = load(h + _H.rx)
    if load(h + _H.dead):
        return -EBADF
    if not take(rx + _D.rx_lock, load(h + _H.me)):
        return -LOCKED
    count = there(h, rx, head)
    if count >= size:
        count = size
        consume(rx, head + size)
        if load_acquire(rx + _D.stalled):
            relieve(h, rx)
    elif count > 0:
        count = -LOOK                                            # the rest was moved to the kernel lane
    unlock(rx + _D.rx_lock)
    return count
