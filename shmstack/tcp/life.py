"""The life of an endpoint in a few native calls: its pair is taken, a handle points there, and both are given up.

What a connection costs before its first byte and after its last one is many small writes to its pair.  From Python
each is a call; here they are one call for each step of `stack.endpoint`, which says why a step is done, while here
stands only how.  What doesn't go the usual way is left to Python: every kernel here either does all of its step or
nothing, and says so.

`facts` is what this process knows of a stack (`tcp.handle.FACTS`); as with a handle, no address and no bound comes
from the segment.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import (
    cas, extern, fetch_add, fetch_or, kernel, load, load_acquire, scratch, store, store_release, swap)
from shmstack.ring.bell import FUTEX, KERNEL, RING
from shmstack.ring.doorbell import BY_SENDERS, ring_bell, wake
from shmstack.ring.lock import take, unlock
from shmstack.ring.memory import back
from shmstack.ring.stream import outstanding
from shmstack.shm.layout import DIRECTION, HEADER, OFFER, PAIR, PAIR_DIRECTION, PAIR_SIZE, PAIR_TCB, TCB
from shmstack.tcp.handle import FACTS, HANDLE
from shmstack.tcp.lane import closed_by_peer
from shmstack.tcp.spin import in_ring
from shmstack.tcp.state import Event, after

_D, _F, _H, _HD, _O, _P, _T = DIRECTION.at, FACTS.at, HANDLE.at, HEADER.at, OFFER.at, PAIR.at, TCB.at
_WAY, _TCB, _HANDLE = DIRECTION.size, TCB.size, HANDLE.size
_i, _i32 = types.int64, types.int32

FREE, WITHDRAWN = 0, 4                # PAIR.state
ENFILE = 23
LOW = 0xFFFFFFFF
F_WRLCK, F_UNLCK, LOCKS = 1, 2, 1 << 40
_AFTER_CLOSE = after(Event.CLOSE)

_calloc = extern("calloc", _i, _i, _i)
_fcntl = extern("fcntl", _i32, _i32, _i32, _i)
_clock = extern("clock_gettime", _i32, _i32, _i)


# ---- pairs ---------------------------------------------------------------------------------------------------

@kernel
def pair_at(facts, index):
    """Return the address of a pair."""
    return load(facts + _F.pairs) + index * PAIR_SIZE


@kernel
def pop(facts):
    """Take a pair from the free list; return its number, -1 if there is none."""
    free = load(facts + _F.base) + _HD.free
    while True:
        top = load_acquire(free)
        index = (top & LOW) - 1
        if index < 0 or index >= load(facts + _F.pairs_max):
            return -1
        follower = load_acquire(pair_at(facts, index) + _P.next) & LOW
        if cas(free, top, ((top >> 32) + 1) << 32 | follower) == top:
            return index


@kernel
def clear(pair):
    """Make every field as it begins, 0 mostly, but what outlives a connection: generation, memory behind the rings."""
    generation = load(pair + _P.generation) + 1
    for at in range(0, PAIR_SIZE, 8):
        backed = at == PAIR_DIRECTION + _D.backed or at == PAIR_DIRECTION + _WAY + _D.backed
        if not backed and at != _P.generation:
            store(pair + at, 0)
    for side in range(2):                                     # many connections end before they sleep twice
        store(pair + PAIR_DIRECTION + side * _WAY + _D.fenced, BY_SENDERS)
    now = scratch()
    _clock(0, now)
    store(pair + _P.created_ns, load(now) * 1_000_000_000 + load(now + 8))
    store(pair + _P.offer, generation)
    store_release(pair + _P.generation, generation)
    return generation


@kernel
def take_pair(facts):
    """Take a pair for a new connection, its fields cleared; return its number, -ENFILE if there is none, or -errno."""
    base, index = load(facts + _F.base), pop(facts)
    if index < 0:
        index = fetch_add(base + _HD.fresh, 1)
        if index < 0 or index >= load(facts + _F.pairs_max):
            fetch_add(base + _HD.fresh, -1)
            return -ENFILE
        offset = pair_at(facts, index) - base
        failed = back(base, load(facts + _F.memory_fd), offset, PAIR_SIZE)
        if failed:
            return failed
    clear(pair_at(facts, index))
    fetch_add(base + _HD.used, 1)
    return index


@kernel
def release_pair(facts, index):
    """Put a pair that both ends are done with on the free list."""
    free, pair = load(facts + _F.base) + _HD.free, pair_at(facts, index)
    store_release(pair + _P.state, FREE)
    while True:
        top = load_acquire(free)
        store_release(pair + _P.next, top & LOW)
        if cas(free, top, ((top >> 32) + 1) << 32 | (index + 1)) == top:
            break
    return fetch_add(load(facts + _F.base) + _HD.used, -1)


# ---- handles -------------------------------------------------------------------------------------------------

@kernel
def point(facts, h, index, side):
    """Have a handle mean one side of a pair.

    First what belongs to the locks, which are found by the last two: a thread that sees the new ones sees all of it.
    """
    base, pair, capacity = load(facts + _F.base), pair_at(facts, index), load(facts + _F.capacity)
    rings = load(facts + _F.rings) + 2 * index * capacity
    mine, theirs = rings + side * capacity, rings + (1 - side) * capacity
    store(h + _H.pair, pair)
    store(h + _H.tx_ring, base + mine)
    store(h + _H.rx_ring, base + theirs)
    store(h + _H.capacity, capacity)
    store(h + _H.me, load(facts + _F.me))
    store(h + _H.memory_fd, load(facts + _F.memory_fd))
    store(h + _H.counters, base + _HD.counters)
    store(h + _H.tx_offset, mine)
    store(h + _H.pair_index, index)
    store(h + _H.generation, load_acquire(pair + _P.generation))
    store(h + _H.waiters, load(facts + _F.waiters))
    store(h + _H.waiter_size, load(facts + _F.waiter_size))
    store_release(h + _H.tx, pair + PAIR_DIRECTION + side * _WAY)
    store_release(h + _H.rx, pair + PAIR_DIRECTION + (1 - side) * _WAY)
    return 0


@kernel
def enter(facts, index, side, fd, spin_ns, adapts):
    """Make a handle for one side of a pair; return its address."""
    h = _calloc(1, _HANDLE)
    store(h + _H.fd, fd)
    store(h + _H.side, side)
    store(h + _H.spin_ns, spin_ns)
    store(h + _H.spin_now, spin_ns)
    store(h + _H.adapts, adapts)
    store(h + _H.held_spin, 1000 if spin_ns else 0)
    point(facts, h, index, side)
    return h


@kernel
def share(h):
    """Before a fork: count one more holder of this end; return 0 if that must wait, as the pair may be moving."""
    lock, tcb = load(h + _H.tx) + _D.tx_lock, load(h + _H.pair) + PAIR_TCB + load(h + _H.side) * _TCB
    if not take(lock, load(h + _H.me)):
        return 0
    fetch_add(tcb + _T.holders, 1)
    fetch_add(tcb + _T.arrived, 1)
    unlock(lock)
    return 1


@kernel
def in_use(fd, slots, test):
    """Return 1 if another process holds a slot of the object, by F_GETLK or F_OFD_GETLK, see `shm.objects`."""
    request = scratch()
    store(request, F_WRLCK)
    store(request + 8, LOCKS)
    store(request + 16, slots)
    store(request + 24, 0)
    _fcntl(fd, test, request)
    return 1 if load(request) & 0xFFFF != F_UNLCK else 0


@kernel
def take_slot(fd, slots, command):
    """Lock the first free slot of the object, by F_SETLK or F_OFD_SETLK; return its number, -1 if all are taken."""
    request = scratch()
    for slot in range(slots):
        store(request, F_WRLCK)
        store(request + 8, LOCKS + slot)
        store(request + 16, 1)
        store(request + 24, 0)
        if _fcntl(fd, command, request) == 0:
            return slot
    return -1


# ---- the end -------------------------------------------------------------------------------------------------

@kernel
def unpost(entry, cookie):
    """Take an offer off its board, if it is still there."""
    return cas(entry + _O.cookie, cookie, 0)


@kernel
def withdraw(h):
    """Take our offer back if nobody has accepted it yet; return 1 if nobody can any more."""
    pair, entry, generation = load(h + _H.pair), load(h + _H.offer), load(h + _H.generation)
    if entry:
        unpost(entry, load(pair + PAIR_TCB + _T.cookie))
        store(h + _H.offer, 0)
    if load(h + _H.side) == 0 and cas(pair + _P.offer, generation, -1) == generation:
        store_release(pair + _P.state, WITHDRAWN)
    return 1 if load_acquire(pair + _P.offer) else 0


@kernel
def silent(h, last):
    """Return 1 if somebody closed an end, or may have, without saying so: then the kernel is asked, see `stack.reaping`.

    Parameters
    ----------
    last : whether this end has no other holder, as far as is known
    """
    pair, theirs = load(h + _H.pair), 2 - load(h + _H.side)               # the other side's bit
    if load_acquire(pair + _P.closed) & theirs:
        return 0 if last else 1
    return 1 if load_acquire(load(h + _H.rx) + _D.fin) & 1 == 0 and closed_by_peer(h) else 0


@kernel
def finish(h):
    """Give up an end with nothing left to read on either side; return 1 if the pair is free then, 0 if not.

    2: the other end was closed, by somebody who didn't say so.
    -1: nothing was done, it must be done step by step (a lock is taken, the pair was moved, bytes or bounds are unread).
    """
    pair, tx, rx, side = load(h + _H.pair), load(h + _H.tx), load(h + _H.rx), load(h + _H.side)
    if load_acquire(pair + _P.generation) != load(h + _H.generation):
        swap(h + _H.dead, 1)
        return 0                                              # it was reaped, and is another connection's
    if not take(tx + _D.tx_lock, load(h + _H.me)):
        return -1
    busy = load(tx + _D.nb) & 1 != 0 and load_acquire(tx + _D.head) != load(tx + _D.tail)
    if busy or ((in_ring(h) or outstanding(rx) != 0) and load_acquire(rx + _D.tail) != load(rx + _D.head)):
        unlock(tx + _D.tx_lock)
        return -1
    tcb, free = pair + PAIR_TCB + side * _TCB, 0
    last = fetch_add(tcb + _T.holders, -1) <= 1
    swap(h + _H.dead, 1)
    if last:
        withdraw(h)
        if load(h + _H.shut) == 0:
            fetch_or(tx + _D.fin, 1)
            store_release(tcb + _T.state, _AFTER_CLOSE >> 4 * (load(tcb + _T.state) & 15) & 15)
        store_release(rx + _D.bell, KERNEL)                   # what still comes is the kernel's to answer
        ring_bell(rx + _D.stalled, 1, 0)
        alone = load_acquire(pair + _P.offer) != 0            # asked before we are done: then the other may free the pair
        before = fetch_or(pair + _P.closed, 1 << side)
        free = 1 if before & 1 << side == 0 and (before | 1 << side == 3 or alone) else 0
    if free == 0 and silent(h, last):
        free = 2
    unlock(tx + _D.tx_lock)
    return free


@kernel
def ended(h):
    """The descriptor is closed: wake a sleeping peer, and threads of our own that wait on this handle."""
    ring_bell(load(h + _H.tx) + _D.bell, FUTEX, RING)
    if load_acquire(h + _H.users):
        wake(load(h + _H.rx) + _D.bell)
        wake(load(h + _H.tx) + _D.stalled)
    return 0
