"""How a thread waits: spin, then say that it sleeps, look once more, sleep.

Every wait is bounded: `limit_ns` at most, after which the caller looks at the lifeline, the time-out and pending
signals, and comes back.  So a killed peer is noticed within one slice, whatever it left in shared memory.

Who waits for longer than such a slice sleeps in the kernel, on the lifeline: the message that comes takes the kernel lane
and wakes him, as does the peer's death, and so he needn't wake up for any of that.  A wake-up every 100 ms takes 0.1 to
0.2 ms of CPU (caches are cold, a virtual core has to be started), 4 ms a second for a blocked pair; now it is nothing.
Rejected: a thread that watches the lifelines of those who sleep on bells (fork warns of threads, and it wakes twice).

How long a spin is, and when it yields the core, is told in `tcp.budget`.  The GIL is kept for the first looks (an answer
from the other core is there in less time than giving it up and taking it back) and released for everything longer.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import cas, extern, fetch_add, kernel, load, load_acquire, scratch, store, store_release, swap
from shmstack.ring.bell import DEEP, FUTEX, KERNEL, RING, WAITER
from shmstack.ring.doorbell import after_bell, barrier, now_ns, sleep
from shmstack.ring.stream import window
from shmstack.shm.layout import DIRECTION, PAIR
from shmstack.tcp.budget import RECV, SEND, join_budget, learn, learn_join, room_budget, spin_budget
from shmstack.tcp.codes import EINTR, FULL, LARGE, OVERFLOW, PIECE
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.lane import failure
from shmstack.tcp.loopback import send_pieces, send_some
from shmstack.tcp.loopback import mark
from shmstack.tcp.spin import arrived, has_room, in_ring, spin_arrived_ns, spin_held, spin_room, stays_awake

_D, _H, _P = DIRECTION.at, HANDLE.at, PAIR.at
F_GETFL, O_NONBLOCK = 3, 0x800
ESTABLISHED = 2                      # PAIR.state
POLLIN, POLLOUT = 1, 4
MOST_ROOM_SPIN_NS = 200_000
MOST_ON_BELL_NS = 100_000_000        # longest sleep in which the lifeline is not looked at
HASTY_BYTES = 1 << 22                # of one send that must not wait, as the kernel's buffers have it (tcp_wmem)


_save_thread = extern("PyEval_SaveThread", types.int64)
_restore_thread = extern("PyEval_RestoreThread", types.void, types.int64)
_poll = extern("poll", types.int32, types.int64, types.int64, types.int32)
_fcntl = extern("fcntl", types.int32, types.int32, types.int32, types.int64)


@kernel
def nonblocking(h):
    """Return 1 if the descriptor is non-blocking, which others may make it by fcntl or FIONBIO."""
    return 1 if _fcntl(load(h + _H.fd), F_GETFL, 0) & O_NONBLOCK else 0


@kernel
def interrupted(result):
    """Return 1 if a C function that slept came back for a signal."""
    return 1 if result == -1 and failure() == -EINTR else 0


@kernel
def poll_lifeline(h, events, limit_ns):
    """Sleep until the lifeline is readable or writable; return its events, -EINTR at a signal."""
    entry = scratch()
    store(entry, (load(h + _H.fd) & 0xFFFFFFFF) | events << 32)
    if interrupted(_poll(entry, 1, (limit_ns + 999_999) // 1_000_000)):
        return -EINTR
    return load(entry) >> 48


@kernel
def joined(h):
    """Return 1 once both ends may write to their rings."""
    return 1 if load_acquire(load(h + _H.pair) + _P.state) == ESTABLISHED else 0


@kernel
def by_ring(h, both):
    """Return 1 if the ring is where to look for input: it comes there, or will, as nothing is under way elsewhere.

    Parameters
    ----------
    both : whether the ends have joined
    """
    rx = load(h + _H.rx)
    return 1 if in_ring(h) or (both and load_acquire(rx + _D.tail) == load(rx + _D.head)) else 0


@kernel
def sleep_arrived(h, limit_ns):
    """Sleep on the bell (ring) or in the kernel (for long, before the peer has joined, or bytes are in the lifeline).

    Returns 1 if something came, 0 at the limit, -EINTR at a signal.
    """
    rx = load(h + _H.rx)
    bell, ring = rx + _D.bell, by_ring(h, joined(h))
    if ring and limit_ns <= MOST_ON_BELL_NS and load(h + _H.deep) == 0:
        store(h + _H.awake, 0)
        swap(bell, FUTEX)
        after_bell(rx)                                                           # SYNC asleep
        signal = 0
        if not arrived(h):
            signal = interrupted(sleep(bell, FUTEX, limit_ns))
        cas(bell, FUTEX, RING)
        if arrived(h):
            return 1
        return -EINTR if signal else 0
    fetch_add(h + _H.deep, 1)
    where = DEEP if ring else KERNEL
    swap(bell, where)
    after_bell(rx)
    if in_ring(h) and arrived(h):
        events = 1
    else:
        events = poll_lifeline(h, POLLIN, limit_ns)
    last = fetch_add(h + _H.deep, -1) == 1
    if last and load(h + _H.rx) == rx:                        # if it has moved, this may be another's by now
        cas(bell, where, RING)
    return min(events, 1)


@kernel
def watch(h, bell):
    """Have the endpoint looked after by the poller that `bell` names, from now on; a sleeper keeps its turn.

    The caller then looks whether anything is there (SYNC asleep).
    """
    store(h + _H.bell, bell)
    rx = load(h + _H.rx)
    while True:
        old = load_acquire(rx + _D.bell)
        if old in (FUTEX, DEEP) or cas(rx + _D.bell, old, bell) == old:
            break
    if old != KERNEL:                                        # who saw that sends there
        after_bell(rx)
    return old


@kernel
def settle(h):
    """After a wait: the poller that looks after this endpoint takes over again, and looks once."""
    bell = load(h + _H.bell)
    store_release(load(h + _H.rx) + _D.bell, bell)
    after_bell(load(h + _H.rx))                                                  # SYNC asleep
    waiter = load(h + _H.waiters) + (bell - WAITER & 63) * load(h + _H.waiter_size)
    mark(waiter, 2 * load(h + _H.pair_index) + load(h + _H.side))
    return 0


@kernel
def wait_arrived(h, limit_ns):
    """Wait until a receive would find something, at most `limit_ns`; return 1, 0 at the limit, -EINTR at a signal.

    A descriptor that isn't blocking any more isn't slept on: returns 0 before the limit.
    Call with the GIL; it is released while this waits.
    """
    rx = load(h + _H.rx)
    both = joined(h)
    if both and load(rx + _D.bell) in (KERNEL, DEEP) and load(h + _H.deep) == 0:
        store_release(rx + _D.bell, load(h + _H.bell) if load(h + _H.bell) >= WAITER else RING)
    # Before the peer has joined too: its first answer then comes by the ring, and need not wake us.
    lane = not both or by_ring(h, both)
    if lane and spin_held(h):
        return 1
    fetch_add(h + _H.users, 1)
    state = _save_thread()
    came = 0
    spin = min(spin_budget(h, RECV) if both else join_budget(h), limit_ns) if lane else 0
    began = now_ns()
    if spin > 0:
        came = spin_arrived_ns(h, spin)
    if not came and limit_ns > spin and not (load(h + _H.timeout_ns) < 0 and nonblocking(h)):
        before = now_ns()
        came = sleep_arrived(h, limit_ns - spin)
        learn(h, now_ns() - before < load(h + _H.spin_ns))
    elif came:
        learn(h, 1)
        stays_awake(h)
    if not both:
        learn_join(came, now_ns() - began)
    _restore_thread(state)
    if load(h + _H.bell) >= WAITER and not load(h + _H.dead):
        settle(h)
    fetch_add(h + _H.users, -1)
    return came


@kernel
def look_for_room(h, size):
    """Spin while the ring is full; return 1 if there is room for the next piece of `size` bytes then.

    Who must not wait does so too, for as long as the kernel's way would take: what goes there once goes there for
    megabytes, and its receiver copies it from there at half the speed.
    """
    if load(h + _H.timeout_ns) != 0:
        return spin_room(h, min(size, PIECE), min(spin_budget(h, SEND), MOST_ROOM_SPIN_NS), 0)
    return spin_room(h, min(size, PIECE), room_budget(h, size), 1)


@kernel
def send_spinning(h, source, size, flags):
    """Do what `send_all` does, without regard to the GIL."""
    sent, more = 0, 1
    while sent < size and more > 0:
        more = send_pieces(h, source + sent, size - sent, flags)
        if more > 0:
            sent += more
        elif more == -FULL:
            more = look_for_room(h, size - sent)
    return sent if sent > 0 or more == 0 else more


@kernel
def send_all(h, source, size, flags):
    """Send a large message, spinning while the ring is full; return the count, or as `send_some` if it is none.

    More than a ringful that is left then of what must not wait goes by the kernel: an event loop copies, at each send, what
    the last one didn't take.  With OVERFLOW what finds the ring full after that goes on in the kernel lane.
    Call with the GIL; it is released meanwhile.
    """
    hasty = load(h + _H.timeout_ns) == 0
    if hasty:
        size = min(size, HASTY_BYTES)
    fetch_add(h + _H.users, 1)
    state = _save_thread()
    sent = send_spinning(h, source, size, flags & ~OVERFLOW)
    done = 0 if sent == -FULL else sent
    if hasty and done >= 0 and size - done > load(h + _H.capacity):
        sent = done + max(0, send_some(h, source + done, size - done, flags | LARGE))
    if (sent == 0 or sent == -FULL) and flags & OVERFLOW:
        sent = send_pieces(h, source, size, flags)
    _restore_thread(state)
    fetch_add(h + _H.users, -1)
    return sent


@kernel
def wait_room(h, size, limit_ns):
    """Wait until the ring has room for `size` bytes, at most `limit_ns`; return 1, 0 at the limit, -EINTR at a signal.

    The receiver wakes a sleeping sender when a quarter of the ring is free, so `size` is at most that.
    """
    tx = load(h + _H.tx)
    quarter = max(1, window(tx, load(h + _H.capacity)) // 4)
    size = min(size, quarter)
    fetch_add(h + _H.users, 1)
    state = _save_thread()
    came = 0
    came = spin_room(h, size, min(spin_budget(h, SEND), limit_ns), 0)
    if not came:
        swap(tx + _D.stalled, 1)
        barrier()                                                                # SYNC stalled
        signal = 0
        if not has_room(h, quarter):
            signal = interrupted(sleep(tx + _D.stalled, 1, limit_ns))
        swap(tx + _D.stalled, 0)
        came = has_room(h, size)
        if signal and not came:
            came = -EINTR
    _restore_thread(state)
    fetch_add(h + _H.users, -1)
    return came


@kernel
def wait_lifeline(h, events, limit_ns):
    """Sleep, without the GIL, until the lifeline has one of `events`; return what it has, -EINTR at a signal."""
    fetch_add(h + _H.users, 1)
    state = _save_thread()
    there = poll_lifeline(h, events, limit_ns)
    _restore_thread(state)
    fetch_add(h + _H.users, -1)
    return there
