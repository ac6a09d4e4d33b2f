"""The stream of an accelerated connection: two lanes, one order.

An accelerated connection keeps its kernel TCP connection, the *lifeline*.  Each byte of a direction travels in one
of two lanes: through the lifeline (KERNEL) or through the ring in shared memory (RING).  Guarantee: the receiver
gets the bytes in the order of the send calls, whatever the lanes and however they change.

Theory.  `tail` counts every byte that the sender put in either lane, `head` every byte that the receiver took out
of either.  A change of lane is a *bound*: a position.  The receiver reads its present lane up to the next bound
and no further, then goes over.  Three rules keep that exact:

1. The receiver says where it will look (`bell`), the sender decides when to change; staying in the present lane is
   always right, only slower, so a sender that can't change simply stays.
2. A change from RING to KERNEL is set only when the receiver has gone through all earlier bounds (or is locked out
   by its lock meanwhile).  So a receiver that reads the kernel lane without an end in sight can't read past one.
3. Both ends work under a lock, so that threads and forked processes may share a socket.

The lifeline is also the overflow: a sender that must not wait and finds the ring full goes on in the kernel lane.
An accelerated connection therefore never buffers less than kernel TCP does, and "writable" is the kernel's word.

What the end of a stream looks like (EOF, ECONNRESET, EPIPE) is not imitated: after the last byte of the ring the
kernel socket is asked, because close and shutdown are done on it too.
"""
from __future__ import annotations


from shmstack._jit import fetch_add, fetch_or, kernel, load, load_acquire, store_release
from shmstack.ring.bell import FUTEX, RING, WAITER
from shmstack.ring.doorbell import before_bell, ring_bell
from shmstack.ring.lock import take, unlock
from shmstack.ring.memory import back
from shmstack.ring.stream import (
    cached_room, consume, get, outstanding, pass_bounds, publish, put, readable, window)
from shmstack.shm.layout import COUNTERS, DIRECTION, PAGE, WAITER as WAITER_STRUCT
from shmstack.tcp.codes import (
    CHANGED, EAGAIN, EBADF, ECONNRESET, EPIPE, FULL, LARGE, LOCKED, LOOK, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, NO_MEMORY,
    OVERFLOW, PIECE)
from shmstack.tcp.course import RING_LANE, WAKE, choose_lane, waiter_of, wake_part
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.lane import (
    begin_run, keep_long, keep_short, recv_kernel, recv_now, send_kernel, told)
from shmstack.tcp.spill import spill

_D, _H, _W = DIRECTION.at, HANDLE.at, WAITER_STRUCT.at
_MAP = WAITER_STRUCT.size
FIRST_BACKING = 1 << 14
_OVERFLOWS = 8 * COUNTERS.index("overflows")

# ---- sending -------------------------------------------------------------------------------------------------

@kernel
def extend(h, tx, end):
    """Have memory behind the first `end` bytes of the ring, or more; return 1, 0 if there is none."""
    there = max(0, load(tx + _D.backed))
    if there >= end:
        return 1
    wanted = min(load(h + _H.capacity), max(4 * there, FIRST_BACKING, (end + PAGE - 1) // PAGE * PAGE))
    offset = load(h + _H.tx_offset)
    if back(load(h + _H.tx_ring) - offset, load(h + _H.memory_fd), offset + there, wanted - there) < 0:
        return 0
    store_release(tx + _D.backed, wanted)
    return 1


@kernel
def send_ring(h, tx, source, size):
    """Put what fits in the ring; return the count, -FULL or -NO_MEMORY."""
    tail, capacity = load(tx + _D.tail), load(h + _H.capacity)
    free = cached_room(tx, tail, window(tx, capacity), size)
    if free <= 0:
        return -FULL if free == 0 else -ECONNRESET
    size = min(size, free, PIECE)
    if load(tx + _D.backed) < capacity and not extend(h, tx, min(capacity, (tail & (capacity - 1)) + size)):
        return -NO_MEMORY
    put(load(h + _H.tx_ring), capacity, tail, source, size)
    publish(tx, tail + size)
    return size


@kernel
def leave_ring(h, tx):
    """Go on in the kernel lane, although the receiver looks at the ring; return 0 if that can't be now.

    Behind a receiver that has yet to come to the ring all goes there: it is the kernel that says whether there is room.
    """
    if outstanding(tx) != 0:
        spill(h, tx, 1)
        if load(tx + _D.nb) & 1:
            return 0
    else:
        begin_run(h, tx, load(tx + _D.tail))
    fetch_add(load(h + _H.counters) + _OVERFLOWS, 1)
    return 1


@kernel
def overflow(h, tx, source, size, flags):
    """Go on in the kernel lane because the ring is full; return the count or -errno."""
    if not leave_ring(h, tx):
        return -EAGAIN
    keep_short(h)
    return send_kernel(h, tx, source, size, flags)


@kernel
def send_large(h, tx, source, size, flags):
    """Send what the ring couldn't hold by the kernel, which has room for megabytes; return the count, -FULL or -errno."""
    if load(tx + _D.nb) & 1 and not leave_ring(h, tx):
        return -FULL
    keep_long(h)
    return send_kernel(h, tx, source, size, flags)


@kernel
def announce(h, tx):
    """Wake the receiver, if it said that it sleeps, after bytes were published (SYNC asleep)."""
    before_bell(tx)
    bell = load_acquire(tx + _D.bell)
    if bell == RING:
        return 0
    if bell == FUTEX:
        return ring_bell(tx + _D.bell, FUTEX, RING)
    if bell >= WAITER:
        if load(tx + _D.nb) & 1 == 0:
            return 0                                          # what came by the kernel lane the kernel announces
        waiter = waiter_of(h, bell)
        mark(waiter, 2 * load(h + _H.pair_index) + 1 - load(h + _H.side))
        if load_acquire(waiter + _W.asleep) == 0:
            return 0
    if take(tx + _D.tx_lock, load(h + _H.me)):
        spill(h, tx, 0)
        unlock(tx + _D.tx_lock)
    return 1


@kernel
def mark(waiter, endpoint):
    """Set the endpoint's bit in a waiter's map (SYNC ready)."""
    word = waiter + _MAP + 8 * (endpoint >> 6)
    bit = 1 << (endpoint & 63)
    fetch_or(word, bit)                      # also when it is set: see tcp.ready
    if load_acquire(waiter + _W.summary) == 0:
        store_release(waiter + _W.summary, 1)
    return 0


@kernel
def send_some(h, source, size, flags):
    """Send what can go at once; return the count, -FULL, -EAGAIN, -LOCKED, -NO_MEMORY or -errno.

    Parameters
    ----------
    h : address of a handle
    source, size : address and number (> 0) of the bytes
    flags : MSG_ flags for the kernel lane, OVERFLOW and LARGE
    """
    tx = load(h + _H.tx)
    if load(h + _H.dead):
        return -EBADF
    if load(tx + _D.fin) & 1:
        return -EPIPE                                            # another process that has this end shut it down
    if not take(tx + _D.tx_lock, load(h + _H.me)):
        return -LOCKED
    lane = choose_lane(h, tx, size) if flags & LARGE == 0 else LARGE
    if lane == LARGE:
        sent = send_large(h, tx, source, size, flags)
    elif lane == RING_LANE:
        sent = send_ring(h, tx, source, size)
        if sent == -FULL and flags & OVERFLOW:
            sent = overflow(h, tx, source, size, flags)
    else:
        part = wake_part(h, size) if lane == WAKE else size
        sent = send_kernel(h, tx, source, part, flags)
    unlock(tx + _D.tx_lock)
    if sent > 0:
        announce(h, tx)
    return sent


@kernel
def send_pieces(h, source, size, flags):
    """Send all that can go at once, piece by piece; return the count, or what `send_some` answers to the first."""
    sent = send_some(h, source, size, flags)
    while 0 < sent < size:
        more = send_some(h, source + sent, size - sent, flags)
        if more <= 0:
            break
        sent += more
    return sent


# ---- receiving -----------------------------------------------------------------------------------------------

@kernel
def recv_ring(h, rx, to, size, flags):
    """Receive from the ring; return the count, -LOOK when it is empty, -ECONNRESET for garbage.

    MSG_TRUNC counts the bytes without a copy, as Linux does on TCP.
    """
    head, capacity = load(rx + _D.head), load(h + _H.capacity)
    there = readable(rx, head, capacity)
    if there <= 0:
        return -LOOK if there == 0 else -ECONNRESET
    ring, copies = load(h + _H.rx_ring), flags & MSG_TRUNC == 0
    if flags & MSG_PEEK:
        if copies:
            get(ring, capacity, head, to, min(size, there))
        return min(size, there)
    done = 0
    while there > 0 and done < size:
        piece = min(there, size - done, PIECE)
        if copies:
            get(ring, capacity, head, to + done, piece)
        head += piece
        done += piece
        consume(rx, head)
        if load_acquire(rx + _D.stalled):
            relieve(h, rx)
        if done < size:
            there = readable(rx, head, capacity)
    return done


@kernel
def relieve(h, rx):
    """Wake a sender that waits for room, once a quarter of the ring is free (SYNC stalled)."""
    used = load_acquire(rx + _D.tail) - load(rx + _D.head)
    if used > load(h + _H.capacity) * 3 // 4:
        return 0
    return ring_bell(rx + _D.stalled, 1, 0)


@kernel
def recv_some(h, to, size, flags):
    """Receive what is there; return the count, 0 at the end, -EAGAIN, -LOOK, -LOCKED, -CHANGED, -MEND or -errno."""
    rx = load(h + _H.rx)
    if load(h + _H.dead):
        return -EBADF
    if not take(rx + _D.rx_lock, load(h + _H.me)):
        return -LOCKED
    if pass_bounds(rx, load(rx + _D.head)):
        got = recv_ring(h, rx, to, size, flags)
    else:
        got = recv_kernel(h, rx, to, size, flags)
        # The few bytes that woke a poller are no message of their own: go on with what is behind them.
        if 0 < got < size and flags & MSG_PEEK == 0 and pass_bounds(rx, load(rx + _D.head)):
            got += max(0, recv_ring(h, rx, to + got, size - got, flags))
    unlock(rx + _D.rx_lock)
    return got


@kernel
def recv_end(h, to, size, flags):
    """Ask the lifeline how the stream ends, when the ring is empty; like `recv_some`.

    Bytes that come out here were written by somebody who doesn't count (a C child that inherited the socket):
    they belong behind the ring's, where they are.
    """
    rx = load(h + _H.rx)
    if load(h + _H.dead):
        return -EBADF
    if not take(rx + _D.rx_lock, load(h + _H.me)):
        return -LOCKED
    got = -CHANGED
    capacity = load(h + _H.capacity)
    if not pass_bounds(rx, load(rx + _D.head)):
        got = recv_kernel(h, rx, to, size, flags)
    elif readable(rx, load(rx + _D.head), capacity) == 0:
        got = recv_now(load(h + _H.fd), to, min(size, 1), MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT)
        if got < 0:
            got = told(h)
        else:
            # A sender that counts sets the bound before it sends, and the tail before it closes.  So look again: the
            # kernel's lock on the lifeline, which both of us took, has its words come before the FIN.
            if pass_bounds(rx, load(rx + _D.head)) == 0 or readable(rx, load(rx + _D.head), capacity) != 0:
                got = -CHANGED
            elif got > 0:
                got = recv_now(load(h + _H.fd), to, size, (flags & 0xFFFFFFFF) | MSG_DONTWAIT)
    unlock(rx + _D.rx_lock)
    return got
