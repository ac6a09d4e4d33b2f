"""Moving unread bytes from the ring to the kernel lane, and what is to be done for a process that died meanwhile.

Guarantee: each byte is read once, in its place, whenever the mover is killed.

Theory.  The move is announced before its first byte and finished after its last: `run_start` and `run_base`, the
`spilling` word, the bound at which the kernel lane begins; the bytes; then, if the kernel didn't take all, the bound at
which the ring goes on; `spilling` back to 0.  In between both locks of the direction are held.  So a `spilling` word that
is found under a lock says that its mover is dead, and a lane that is open, that the second bound is missing.  Where that
belongs the kernel knows: it counts what was written (at the sending end) and what came (at the receiving one, once nothing
more can come).

Therefore the `tx_lock` of the dead is never just broken: it is inherited, and before it is released the stream is mended.
Who sends after that finds it as if the mover had stopped there.  The heir may be killed too; the next one finds the same.

A receiver need not inherit anything to go on: it reads the open kernel lane to its end, and asks for the mending there
(-MEND).

Rejected: the bound after the bytes, in one go (a mover killed between leaves them in both lanes, and they are read twice);
to have the receiver take the rest from the ring without a bound (a living process that shares the sending end would not
know where it stands).
"""
from __future__ import annotations

from shmstack._jit import cas, fetch_add, kernel, load, load_acquire, store_release
from shmstack.ring.lock import take, unlock
from shmstack.ring.stream import drop_bound, last_bound, outstanding, pass_bounds, set_bound
from shmstack.shm.layout import COUNTERS, DIRECTION
from shmstack.tcp.codes import MSG_DONTWAIT, MSG_NOSIGNAL
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.lane import kernel_taken, kernel_written, queued, send_now

_D, _H = DIRECTION.at, HANDLE.at
_SPILLS = 8 * COUNTERS.index("spills")


@kernel
def push(h, position, tail):
    """Send the ring's bytes from `position` to `tail` by the kernel; return the position reached."""
    capacity, ring = load(h + _H.capacity), load(h + _H.tx_ring)
    while position < tail:
        index = position & (capacity - 1)
        size = min(tail - position, capacity - index)
        sent = send_now(load(h + _H.fd), ring + index, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent <= 0:
            break
        position += sent
    return position


@kernel
def spill(h, tx, behind):
    """Move unread bytes from the ring to the kernel lane, for a receiver that looks only there; return how many.

    The caller holds `tx_lock`.  A receiver that is reading at this moment can't be served: it looks again by itself.

    Parameters
    ----------
    behind : what to do for a receiver that has yet to come to where the ring's bytes begin.  0: nothing, it reads the
        lifeline and then the ring by itself.  1: take that bound back, so that they continue the kernel lane
    """
    if not take(tx + _D.rx_lock, load(h + _H.me)):
        return 0
    head, tail = load_acquire(tx + _D.head), load(tx + _D.tail)
    pass_bounds(tx, head)
    ahead = outstanding(tx) != 0
    first = last_bound(tx) if ahead else head
    position = first
    may = load(tx + _D.nb) & 1 and (behind or not ahead)
    if may and 0 <= head <= first < tail and tail - first <= load(h + _H.capacity):
        base = load(tx + _D.run_base) if ahead else kernel_written(h)
        if base >= 0:
            if not ahead:                                    # else the run goes on, and a receiver may look where it began
                store_release(tx + _D.run_start, first)
                store_release(tx + _D.run_base, base)
            store_release(tx + _D.spilling, tail)
            if ahead:
                drop_bound(tx)
            else:
                set_bound(tx, first)
            fetch_add(load(h + _H.counters) + _SPILLS, 1)
            position = push(h, first, tail)
            if position < tail:
                set_bound(tx, position)
            store_release(tx + _D.spilling, 0)
            pass_bounds(tx, head)                            # so nothing is outstanding if the kernel took nothing
    unlock(tx + _D.rx_lock)
    return position - first


@kernel
def mend(way, position):
    """Finish what a dead mover began: the kernel took what is before `position`.  The caller holds `tx_lock`."""
    if load(way + _D.nb) & 1 == 0 and position < load(way + _D.spilling):
        set_bound(way, position)
    store_release(way + _D.spilling, 0)
    return 0


@kernel
def inherit_sent(h, tx, holder, me):
    """Take over the `tx_lock` of the dead `holder` at the sending end, mend, release; return 1 if that was done."""
    lock = tx + _D.tx_lock
    if cas(lock, holder, me) != holder:
        return 0
    if load(tx + _D.spilling) != 0:
        written = kernel_written(h)
        if written < 0:
            store_release(lock, holder)
            return 0
        mend(tx, load(tx + _D.run_start) + written - load(tx + _D.run_base))
    unlock(lock)
    return 1


@kernel
def inherit_received(h, rx, holder, me):
    """The same at the receiving end, once nothing more is on its way there.

    After a reset the kernel's count is not known, but what is before the end of the kernel lane when that is empty.
    """
    if not take(rx + _D.rx_lock, me):
        return 0
    head, taken, there, done = load(rx + _D.head), kernel_taken(h), queued(h), 0
    known = taken >= 0 or there == 0 or load(rx + _D.nb) & 1
    if known and cas(rx + _D.tx_lock, holder, me) == holder:
        if taken >= 0:
            head = max(head, load(rx + _D.run_start) + taken + there - load(rx + _D.run_base))
        mend(rx, head)
        unlock(rx + _D.tx_lock)
        done = 1
    unlock(rx + _D.rx_lock)
    return done
