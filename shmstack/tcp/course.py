"""Which lane the next bytes of a direction take, as its sender decides; see `tcp.loopback` for the rules.

Where the receiver looks (`bell`) decides, with two exceptions.  What a receiver has not read yet keeps it from falling
asleep, so a poller is woken by a few bytes and gets the rest by the ring.  And what stands unread in the ring when its
receiver turns to the kernel is moved there after it (`spill`).
"""
from __future__ import annotations

from shmstack._jit import kernel, load, load_acquire, store
from shmstack.ring.bell import DEEP, KERNEL, WAITER
from shmstack.ring.stream import outstanding, room, start_ring
from shmstack.shm.layout import DIRECTION, WAITER as WAITER_STRUCT
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.lane import begin_run, end_run
from shmstack.tcp.spill import spill

_D, _H, _W = DIRECTION.at, HANDLE.at, WAITER_STRUCT.at
KERNEL_LANE, RING_LANE, WAKE = 0, 1, 2
WAKE_WHOLE, WAKE_BYTES = 1 << 14, 256    # up to so many bytes wake a poller whole; else so many of them do
WAKE_MORE, WAKE_MOST = 8, 1 << 17        # how the latter grows, should they be read before any others are sent
ASLEEP = 1                               # what a waiter says; 2: asleep, and every message must be an event of its own


@kernel
def waiter_of(h, bell):
    """Return the address of the waiter that a bell names."""
    return load(h + _H.waiters) + ((bell - WAITER) & 63) * load(h + _H.waiter_size)


@kernel
def looks_in_kernel(h, tx):
    """Return 0 if the receiver looks at the ring; 1: at the lifeline only; 2: only until something is there."""
    if load(tx + _D.kernel) != 0:
        return 1
    bell = load_acquire(tx + _D.bell)
    if bell < WAITER:
        return 1 if bell in (KERNEL, DEEP) else 0
    asleep = load_acquire(waiter_of(h, bell) + _W.asleep)
    if asleep == 0:
        return 0
    return 2 if asleep == ASLEEP else 1


@kernel
def wake_part(h, size):
    """Return how many of `size` bytes wake a poller.

    A poller on our own core runs as soon as it is woken, takes these few and is asleep again before we go on.  So they
    are more each time, until the ring is used again.
    """
    if size <= WAKE_WHOLE:
        return size
    part = max(WAKE_BYTES, load(h + _H.wake))
    store(h + _H.wake, min(part * WAKE_MORE, WAKE_MOST))
    return min(part, size)


@kernel
def to_ring(h, tx):
    """Set the bound behind which the ring is used."""
    end_run(h, tx)
    store(h + _H.wake, 0)
    return 0


@kernel
def choose_lane(h, tx, size):
    """Return the lane for the next `size` bytes, after setting a bound if it changes: KERNEL_LANE, RING_LANE or WAKE.

    WAKE is the kernel lane for a few bytes: they wake a poller, and as long as they are unread it can't fall asleep
    again, so the rest may take the ring.
    """
    tail = load(tx + _D.tail)
    wish = looks_in_kernel(h, tx)
    if load(tx + _D.nb) & 1:
        if wish == 0:
            return RING_LANE
        spill(h, tx, 0)
        if load(tx + _D.nb) & 1:
            if outstanding(tx) != 0 or load_acquire(tx + _D.head) != tail:
                return RING_LANE
            begin_run(h, tx, tail)
    if wish == 1:
        return KERNEL_LANE
    if wish == 2 and load_acquire(tx + _D.head) == tail:
        return WAKE
    if outstanding(tx) <= 1:
        if outstanding(tx) == 0:
            to_ring(h, tx)
            start_ring(tx)
            return RING_LANE
        capacity = load(h + _H.capacity)
        free = room(tx, tail, capacity)
        if free >= size or free >= capacity // 2:
            to_ring(h, tx)
            return RING_LANE
    return KERNEL_LANE
