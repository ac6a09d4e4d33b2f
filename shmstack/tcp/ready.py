"""Readiness without a system call: who of many can be read, and a spin over all of them.

Two shapes of "many", both lists in private memory, made by `stack.watch` and `stack.crowd`:

    waiters   count | (address of a waiter, first word, last word + 1, members) ...     an epoll object's, one a stack
    members   (handle, mask) of each endpoint of the stack, 0 where it isn't in the set
    crowd     (handle, answer) ...                                       the sockets of one poll or select

Whoever made a crowd counts as a user of its handles, so that none is given back under a spinning thread; the pair of
a dead one may be another connection's already, and its bell is left alone.

A waiter's map is written by the senders (`loopback.mark`): one bit an endpoint, and `summary` says that some bit is
set.  Taking bits and looking at what they stand for may cross with a sender that sets them again:

# SYNC ready: (tail; set the bit; summary) against (clear the summary; take the bits; look at tail)

Both sides change the word by an atomic, so one comes after the other there: either the sender's bit is new and is
found next time, or the taker sees the sender's tail.  A sender may therefore never skip the bit for being set.

# SYNC doze: (asleep := 1; take the bits) against (set the bit; look at asleep)

Both change the word again, so this one needs no membarrier: a sender whose bit comes too late for the last look finds
`asleep`.  membarrier(2) costs little on an idle machine, but it interrupts every core that runs one of us: 15 us where
that means a virtual interrupt.

What is ready here is only what the ring holds.  The kernel lane, the end of a stream and errors are the kernel's to
report, so whoever calls this asks the kernel too, now and then.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import cas, extern, fetch_or, kernel, load, load_acquire, pause, scratch, store, store_release, swap
from shmstack.ring.bell import KERNEL
from shmstack.ring.doorbell import now_ns
from shmstack.ring.stream import lane_end
from shmstack.shm.layout import DIRECTION, MOVED_LOCK, WAITER
from shmstack.tcp.budget import give_way, quiet
from shmstack.tcp.codes import FOLLOW, LATER, READY
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.loopback import mark
from shmstack.tcp.spin import in_ring

_D, _H, _W = DIRECTION.at, HANDLE.at, WAITER.at
_MAP = WAITER.size
_ENTRY = 32                          # bytes of one waiter in its list
HELD_SPINS = 200                     # looks before the GIL is given up
POLLIN = 1
IN, EPOLLET = 0x041, 1 << 31           # EPOLLIN | EPOLLRDNORM

_save_thread = extern("PyEval_SaveThread", types.int64)
_restore_thread = extern("PyEval_RestoreThread", types.void, types.int64)
_poll = extern("poll", types.int32, types.int64, types.int64, types.int32)


@kernel
def ring_ready(h):
    """Return READY if a receive would get bytes from the ring, else 0, or why to look again.

    FOLLOW: the pair has moved.  LATER: the ring's bytes come after some in the kernel lane, and nobody will mark them
    again.
    """
    rx = load(h + _H.rx)
    if load(h + _H.dead) or load_acquire(rx + _D.tail) == load_acquire(rx + _D.head):
        return 0
    if load(rx + _D.rx_lock) == MOVED_LOCK:
        return FOLLOW
    if in_ring(h):
        return READY
    if lane_end(rx) >= 0:
        return LATER
    # They are being moved to the kernel lane, or their mover was killed: a receive knows.
    return READY if load_acquire(rx + _D.spilling) > load(rx + _D.head) else 0


# ---- waiters -------------------------------------------------------------------------------------------------

@kernel
def take_bits(word, place, out, room):
    """Move the bits of one word of a map to `out` as numbers from `place`; return how many, at most `room`."""
    bits = swap(word, 0)                                                         # SYNC ready
    found = 0
    for bit in range(64):
        if bits >> bit & 1:
            if found == room:
                fetch_or(word, 1 << bit)
            else:
                store(out + 8 * found, place + bit)
                found += 1
    return found


@kernel
def collect(waiters, out, room, thorough):
    """Write who was marked to `out`, each as index in the list << 32 | endpoint; return how many, at most `room`.

    Before a sleep it is `thorough`: it changes every word, so that each sender comes before or after that.
    """
    found = 0
    for i in range(load(waiters)):
        entry = waiters + 8 + _ENTRY * i
        waiter = load(entry)
        if load_acquire(waiter + _W.summary) == 0 and not thorough:
            continue
        swap(waiter + _W.summary, 0)
        for word in range(load(entry + 8), load(entry + 16)):
            at = waiter + _MAP + 8 * word
            if thorough or load_acquire(at) != 0:
                found += take_bits(at, i << 32 | word << 6, out + 8 * found, room - found)
        if found == room:
            store_release(waiter + _W.summary, 1)            # there may be more: look again
    return found


@kernel
def marked(waiters):
    """Return 1 if somebody was marked."""
    for i in range(load(waiters)):
        if load_acquire(load(waiters + 8 + _ENTRY * i) + _W.summary):
            return 1
    return 0


@kernel
def set_asleep(waiters, value):
    """Say that the poller sleeps in the kernel, or that it doesn't."""
    for i in range(load(waiters)):
        swap(load(waiters + 8 + _ENTRY * i) + _W.asleep, value)
    return 0


@kernel
def kernel_ready(fd):
    """Return 1 if the descriptor (of a kernel epoll set) is readable."""
    entry = scratch()
    store(entry, (fd & 0xFFFFFFFF) | POLLIN << 32)
    return 1 if _poll(entry, 1, 0) > 0 else 0


@kernel
def spin_marked(waiters, fd, limit_ns, ask_ns, polite):
    """Look for somebody marked, at most `limit_ns`, and ask the kernel set `fd` every `ask_ns`.

    Call with the GIL; it is released while this spins.  Returns 1 if somebody was marked, 2 if the kernel has
    something, 0 at the limit.  The `polite` let others have the core between two looks.
    """
    for _ in range(HELD_SPINS):
        if marked(waiters):
            return 1
    if polite and quiet():
        return 0
    state = _save_thread()
    came = 0
    now = now_ns()
    end, ask = now + limit_ns, now + ask_ns
    while came == 0 and now < end:
        for _ in range(32):
            if came == 0:
                came = marked(waiters)
        if came == 0 and polite:
            now = give_way(now)
        else:
            pause()
            now = now_ns()
        if came == 0 and now >= ask:
            came = 2 * kernel_ready(fd)
            ask = now + ask_ns
    _restore_thread(state)
    return came


@kernel
def mark_again(waiters, out, found):
    """Give back marks that were collected."""
    for i in range(found):
        taken = load(out + 8 * i)
        mark(load(waiters + 8 + _ENTRY * (taken >> 32)), taken & 0xFFFFFFFF)
    return 0


@kernel
def collect_all(waiters, out, room):
    """As `collect`, or give all back and return -1 if there are more than `room`."""
    found = collect(waiters, out, room + 1, 0)
    if found > room:
        mark_again(waiters, out, found)
        return -1
    return found


@kernel
def sift(waiters, out, found):
    """Turn marks into events, descriptor | bits << 32, of those that are ready; return how many.

    The level-triggered are marked again: they are looked at until they have been drained.
    """
    kept = 0
    for i in range(found):
        taken = load(out + 8 * i)
        entry = waiters + 8 + _ENTRY * (taken >> 32)
        member = load(entry + 24) + 16 * (taken & 0xFFFFFFFF)
        h, mask = load(member), load(member + 8)
        ready = ring_ready(h) if h != 0 else 0
        if ready == LATER or (ready and mask & EPOLLET == 0):
            mark(load(entry), taken & 0xFFFFFFFF)
        if ready in (READY, FOLLOW):
            store(out + 8 * kept, (load(h + _H.fd) & 0xFFFFFFFF) | (mask & IN) << 32)
            kept += 1
    return kept


@kernel
def await_ready(waiters, fd, limit_ns, ask_ns, polite, out, room):  # noqa: PLR0913 - one call in place of three
    """Find events of members, and spin for them; the kernel set `fd` is asked as well.

    Returns how many were written to `out` (0: nothing came within `limit_ns`), or -1 with all marks as they were: the
    kernel has something too, or there are more than `room`.
    """
    found = collect_all(waiters, out, room)
    if found < 0:
        return -1
    if kernel_ready(fd):
        mark_again(waiters, out, found)
        return -1
    found = sift(waiters, out, found)
    if found > 0 or limit_ns <= 0:
        return found
    came = spin_marked(waiters, fd, limit_ns, ask_ns, polite)
    if came != 1:
        return -1 if came else 0
    found = collect_all(waiters, out, room)
    return sift(waiters, out, found) if found >= 0 else -1


# ---- crowds --------------------------------------------------------------------------------------------------

@kernel
def look(crowd, count):
    """Note for each of the crowd whether it is ready; return how many are."""
    found = 0
    for i in range(count):
        ready = ring_ready(load(crowd + 16 * i))
        store(crowd + 16 * i + 8, ready if ready != LATER else 0)
        found += 1 if ready in (READY, FOLLOW) else 0
    return found


@kernel
def listen_to(crowd, count, old, new):
    """Change every bell that says `old` to `new`; return how many were changed."""
    changed = 0
    for i in range(count):
        h = load(crowd + 16 * i)
        bell = load(h + _H.rx) + _D.bell
        if load(h + _H.dead) == 0 and load_acquire(bell) == old and cas(bell, old, new) == old:
            changed += 1
    return changed


@kernel
def expect_kernel(crowd, count):
    """Before a sleep in the kernel: have every one's input come there; return how many bells were changed."""
    changed = 0
    for i in range(count):
        h = load(crowd + 16 * i)
        bell = load(h + _H.rx) + _D.bell
        if load(h + _H.dead) == 0 and load_acquire(bell) != KERNEL:
            swap(bell, KERNEL)
            changed += 1
    return changed


@kernel
def spin_look(crowd, count, limit_ns, polite):
    """Look at the crowd again and again, at most `limit_ns`; return how many are ready.

    Call with the GIL; it is released while this spins.
    """
    state = _save_thread()
    found = 0
    now = now_ns()
    end = now + limit_ns if not (polite and quiet()) else now
    while found == 0 and now < end:
        for _ in range(8):
            if found == 0:
                found = look(crowd, count)
        now = give_way(now) if found == 0 and polite else now_ns()
    _restore_thread(state)
    return found
