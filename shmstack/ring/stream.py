"""One direction of a stream: a single-producer single-consumer byte ring whose positions are sequence numbers.

Guarantee: what is written at positions [tail, tail + n) is read at the same positions, once and in order, by
whatever process reads, however often either side is interrupted or killed between two instructions.

Theory.  The sender alone advances `tail`, the receiver alone `head`; both only grow, so full (tail - head ==
capacity) and empty (tail == head) need no spare byte, and a position never has two meanings.

# SYNC tail: bytes [old tail, new tail) are in the ring before the new tail is    (publish -> readable)
# SYNC head: bytes [old head, new head) were copied out before the new head is    (consume -> room)
# SYNC bound: the bound's position stands before the count that includes it       (set_bound -> lane_end)

Nothing that is read here is believed: differences are clamped to [0, capacity] by the caller's own capacity, an
index is masked, so the worst that garbage in the segment does is garbage in this one stream.  Positions are compared
before they are subtracted: the compiler takes it that a difference doesn't overflow, and would drop a later check.

Rejected: a sender that reads `head` for each message (the line bounces between the cores, 60 ns); it keeps its
last sight of it beside its lock and looks again only when the ring seems full.
"""
from __future__ import annotations

from shmstack._jit import copy, kernel, load, load_acquire, store, store_release
from shmstack.shm.layout import DIRECTION

_D = DIRECTION.at
BOUNDS = 4                           # places for bounds; more than that are never outstanding


@kernel
def window(direction, capacity):
    """Return how many bytes may be unread in the ring: its capacity, or less if the program wants small buffers."""
    most = load(direction + _D.window)
    return most if 0 < most < capacity else capacity


@kernel
def room(direction, tail, capacity):
    """Return how many bytes fit behind position `tail`, as the head stands now, or -1 for an impossible head."""
    head = load_acquire(direction + _D.head)                                     # SYNC head
    if head < 0 or head > tail:
        return -1
    known = load(direction + _D.head_cache)
    if head < known <= tail:
        head = known                                         # the ring is empty up to there, see `start_ring`
    store(direction + _D.head_cache, head)
    # More than a ring may be under way in the kernel lane: then nothing fits, and nothing is wrong.
    return max(0, capacity - (tail - head))


@kernel
def start_ring(direction):
    """Note that a run in the ring begins at the tail, and that all of earlier runs was read.

    What is under way in the kernel lane takes no room here, so a sender that is always ahead of its receiver there
    gets out of it all the same.
    """
    store(direction + _D.head_cache, load(direction + _D.tail))
    return 0


@kernel
def cached_room(direction, tail, capacity, wanted):
    """Return `room`, but look at the receiver's line only if its last known head leaves less than `wanted`."""
    head = load(direction + _D.head_cache)
    if 0 <= head <= tail and capacity - (tail - head) >= wanted:
        return capacity - (tail - head)
    return room(direction, tail, capacity)


@kernel
def put(ring, capacity, position, source, size):
    """Copy `size` <= capacity bytes from `source` to `position`, in two pieces where the ring ends between."""
    index = position & (capacity - 1)
    first = capacity - index
    if size <= first:
        copy(ring + index, source, size)
    else:
        copy(ring + index, source, first)
        copy(ring, source + first, size - first)
    return size


@kernel
def get(ring, capacity, position, to, size):
    """Copy `size` <= capacity bytes at `position` to address `to`."""
    index = position & (capacity - 1)
    first = capacity - index
    if size <= first:
        copy(to, ring + index, size)
    else:
        copy(to, ring + index, first)
        copy(to + first, ring, size - first)
    return size


@kernel
def publish(direction, tail):
    """Let the receiver see everything before `tail` (SYNC tail)."""
    store_release(direction + _D.tail, tail)
    return 0


@kernel
def consume(direction, head):
    """Give the room before `head` back to the sender (SYNC head)."""
    store_release(direction + _D.head, head)
    return 0


@kernel
def readable(direction, head, capacity):
    """Return how many bytes the ring holds from `head` to the tail or the next bound, or -1 for garbage."""
    # The tail first: a bound is set before the tail goes past it, so a tail that is seen shows all bounds before it.
    tail = load_acquire(direction + _D.tail)                                     # SYNC tail
    end = lane_end(direction)
    if end >= 0 and end < tail:
        tail = end
    if head < 0 or tail < head or tail - head > capacity:
        return -1
    return tail - head


@kernel
def set_bound(direction, position):
    """Let the lane change at `position`, the sender's tail (SYNC bound)."""
    bounds = load(direction + _D.nb)
    store_release(direction + _D.bound0 + 8 * (bounds & 3), position)
    store_release(direction + _D.nb, bounds + 1)
    return 0


@kernel
def last_bound(direction):
    """Return the position of the bound that was set last."""
    return load(direction + _D.bound0 + 8 * ((load(direction + _D.nb) - 1) & 3))


@kernel
def drop_bound(direction):
    """Take back the bound that was set last, before the receiver, which is locked out, came to it."""
    store_release(direction + _D.nb, load(direction + _D.nb) - 1)
    return 0


@kernel
def lane_end(direction):
    """Return the position at which the receiver's present lane ends, or -1 while it is open (SYNC bound)."""
    passed = load(direction + _D.passed)
    if load_acquire(direction + _D.nb) == passed:
        return -1
    return load_acquire(direction + _D.bound0 + 8 * (passed & 3))


@kernel
def pass_bounds(direction, head):
    """Step through every bound that stands at `head`; return the receiver's lane: 0 kernel, 1 ring."""
    for _ in range(BOUNDS):
        if lane_end(direction) != head:
            break
        store_release(direction + _D.passed, load(direction + _D.passed) + 1)
    return load(direction + _D.passed) & 1


@kernel
def lane_at(direction, head):
    """Return what `pass_bounds` would, without a step."""
    bounds, passed = load_acquire(direction + _D.nb), load(direction + _D.passed)
    for _ in range(BOUNDS):
        if bounds == passed or load_acquire(direction + _D.bound0 + 8 * (passed & 3)) != head:
            break
        passed += 1
    return passed & 1


@kernel
def outstanding(direction):
    """Return how many bounds the sender has set that the receiver has not gone through."""
    return load(direction + _D.nb) - load_acquire(direction + _D.passed)
