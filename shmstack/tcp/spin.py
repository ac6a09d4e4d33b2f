"""Looking again and again, before a wait sleeps (`tcp.wait`): for input, and for room.

Who didn't ask to spin lets others run between two looks: the peer itself may be waiting for this very core.
"""
from __future__ import annotations

from shmstack._jit import kernel, load, load_acquire, pause, prefetch, store
from shmstack.ring.doorbell import now_ns, unfence
from shmstack.ring.stream import lane_at, room, window
from shmstack.shm.layout import DIRECTION
from shmstack.tcp.budget import give_way
from shmstack.tcp.handle import HANDLE

_D, _H = DIRECTION.at, HANDLE.at
WAITS_AWAKE = 64                     # so many without a sleep take the senders' fences away; a power of two
MOST_VAIN, TRY_VAIN = 8, 16          # after so many spins with the GIL in vain only each so manieth wait tries it


@kernel
def arrived(h):
    """Return 1 if a receive would find something new: bytes, a bound, the end, or a dead handle."""
    rx = load(h + _H.rx)
    if load_acquire(rx + _D.tail) != load(rx + _D.head):                         # SYNC tail
        return 1
    if load_acquire(rx + _D.nb) != load(rx + _D.passed) or load_acquire(rx + _D.fin):
        return 1
    return load(h + _H.dead)


@kernel
def in_ring(h):
    """Return 1 if the next byte to be received comes by the ring, as far as is known now."""
    rx = load(h + _H.rx)
    return lane_at(rx, load(rx + _D.head))


@kernel
def spin_arrived(h, spins):
    """Look `spins` times; return 1 as soon as something arrived."""
    next_byte = load(h + _H.rx_ring) + (load(load(h + _H.rx) + _D.head) & (load(h + _H.capacity) - 1))
    for _ in range(spins):
        if arrived(h):
            return 1
        prefetch(next_byte)
    return 0


@kernel
def spin_held(h):
    """Look for as long as an answer from another core takes, with the GIL; return 1 if something arrived.

    Where that was in vain again and again the peer waits for this very core.
    """
    vain = load(h + _H.held_vain)
    if spin_arrived(h, 1 + load(h + _H.held_spin) if vain < MOST_VAIN or vain % TRY_VAIN == 0 else 1):
        if vain < MOST_VAIN or vain % TRY_VAIN == 0:
            store(h + _H.held_vain, 0)
        stays_awake(h)
        return 1
    store(h + _H.held_vain, vain + 1)
    return 0


@kernel
def stays_awake(h):
    """After a wait without a sleep: who has not slept for many of them takes the fences off its senders' way."""
    awake = load(h + _H.awake) + 1
    store(h + _H.awake, awake)
    if awake & (WAITS_AWAKE - 1) == 0:
        unfence(load(h + _H.rx))
    return 0


@kernel
def spin_arrived_ns(h, limit_ns):
    """Look for `limit_ns`; return 1 as soon as something arrived."""
    now, polite = now_ns(), load(h + _H.adapts)
    end = now + limit_ns
    while now < end:
        for _ in range(64):
            if arrived(h):
                return 1
        if polite:
            now = give_way(now)
        else:
            pause()
            now = now_ns()
    return arrived(h)


@kernel
def has_room(h, size):
    """Return 1 if the ring that this end sends has room for `size` bytes, or the handle is dead."""
    tx = load(h + _H.tx)
    free = room(tx, load(tx + _D.tail), window(tx, load(h + _H.capacity)))
    return 1 if free >= size or load(h + _H.dead) else 0


@kernel
def spin_room(h, size, limit_ns, hasty):
    """Look for room for `limit_ns`; return 1 as soon as there is room for `size` bytes.

    Who is `hasty` has no time for that when there is input: its peer may wait for it to be read, and not read either.
    """
    now, polite = now_ns(), load(h + _H.adapts)
    end = now + limit_ns
    while now < end:
        for _ in range(16):
            if has_room(h, size):
                return 1
            if hasty and load_acquire(load(h + _H.rx) + _D.tail) != load(load(h + _H.rx) + _D.head):
                return 0
            pause()
        now = give_way(now) if polite else now_ns()
    return 0
