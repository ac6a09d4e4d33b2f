"""The kernel lane: the lifeline as one of the two ways that bytes of a stream take.

In this lane the kernel does the counting (TCP_INFO, SIOCOUTQ, SIOCINQ): whoever has the descriptor may write or read
there past us, by os.sendfile for one, and at the next bound both ends still agree where they are.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import extern, kernel, load, load32, load_acquire, scratch, store, store_release
from shmstack.ring.stream import consume, lane_end, publish, set_bound
from shmstack.shm.layout import DIRECTION
from shmstack.tcp.codes import CHANGED, ECONNRESET, ETIMEDOUT, MEND, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK
from shmstack.tcp.handle import HANDLE

_D, _H = DIRECTION.at, HANDLE.at
TCP_INFO, INFO_BYTES, BYTES_ACKED, BYTES_RECEIVED = 11, 136, 120, 128      # linux/tcp.h
TCP_QUICKACK, TCP_NOTSENT_LOWAT = 12, 25
LOWAT_BYTES = 1 << 15                # what may wait to be sent in the kernel lane beside a full ring
SIOCINQ, SIOCOUTQ = 0x541B, 0x5411
TCP_TIME_WAIT, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING = 6, 7, 8, 9, 11      # net/tcp_states.h
COUNTS = 1000                        # tries to count while segments come and go

send_now = extern("send", types.int64, types.int32, types.int64, types.int64, types.int32)
recv_now = extern("recv", types.int64, types.int32, types.int64, types.int64, types.int32)
_getsockopt = extern("getsockopt", types.int32, types.int32, types.int32, types.int32, types.int64, types.int64)
_setsockopt = extern("setsockopt", types.int32, types.int32, types.int32, types.int32, types.int64, types.int32)
_ioctl = extern("ioctl", types.int32, types.int32, types.int64, types.int64)
_errno = extern("__errno_location", types.int64)


@kernel
def failure():
    """Return the negative of the C library's errno."""
    return -load32(_errno())


@kernel
def counted(h, field, queue):
    """Return a byte count of TCP_INFO, what is in one of the queues, and the state; -1, 0, 0 if the kernel won't say.

    Both are of one moment: a segment or an ACK in between would be counted twice or not at all, so what the count was
    before and after must be the same.
    """
    info, extra = scratch(), scratch()
    before = -1
    for _ in range(COUNTS):
        store(extra, INFO_BYTES)
        if _getsockopt(load(h + _H.fd), 6, TCP_INFO, info, extra) < 0:
            return -1, 0, 0
        if load(info + field) == before:
            return before, load(extra + 8), load(info) & 0xFF
        before = load(info + field)
        store(extra + 8, 0)
        if _ioctl(load(h + _H.fd), queue, extra + 8) < 0:
            return -1, 0, 0
    return -1, 0, 0


@kernel
def queued(h):
    """Return how many bytes wait in the lifeline at this end."""
    there = scratch()
    store(there, 0)
    return load(there) if _ioctl(load(h + _H.fd), SIOCINQ, there) == 0 else 0


@kernel
def closed_by_peer(h):
    """Return 1 if the kernel has a FIN or a reset from the other end of the lifeline."""
    info, size = scratch(), scratch()
    store(info, 0)
    store(size, 8)
    if _getsockopt(load(h + _H.fd), 6, TCP_INFO, info, size) < 0:
        return 0
    state = load(info) & 0xFF
    return 1 if state in (TCP_TIME_WAIT, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING) else 0


@kernel
def kernel_written(h):
    """Return how many bytes were ever written to the lifeline at this end, by anybody; -1: unknown."""
    acknowledged, queued, _ = counted(h, BYTES_ACKED, SIOCOUTQ)
    if acknowledged > 0 and load(h + _H.side) == 0:
        acknowledged -= 1                                        # the active opener's SYN is counted too
    return acknowledged + queued


@kernel
def kernel_taken(h):
    """Return how many bytes were ever read from the lifeline at this end, by anybody; -1: unknown."""
    received, queued, state = counted(h, BYTES_RECEIVED, SIOCINQ)
    if state == TCP_CLOSE:
        return -1
    if state in (TCP_TIME_WAIT, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING):
        received -= 1                                            # the peer's FIN is counted too, and queued nowhere
    return received - queued


@kernel
def begin_run(h, tx, position):
    """Set the bound at which the kernel lane begins."""
    store_release(tx + _D.run_start, position)
    store_release(tx + _D.run_base, kernel_written(h))
    set_bound(tx, position)
    return 0


@kernel
def end_run(h, tx):
    """Set the bound at which the kernel lane ends: after all that was written there, also by others."""
    written, base = kernel_written(h), load(tx + _D.run_base)
    if written >= 0 and base >= 0:
        tail = load(tx + _D.run_start) + written - base
        if tail > load(tx + _D.tail):
            publish(tx, tail)
    set_bound(tx, load(tx + _D.tail))
    acknowledge(h)
    return 0


@kernel
def acknowledge(h):
    """Have the kernel acknowledge what was received: no segment of ours will carry that now.

    Else the other side's next small message waits 40 ms for it in the kernel lane (Nagle's algorithm, RFC 1122 section
    4.2.3.4, against the delayed acknowledgement).
    """
    yes = scratch()
    store(yes, 1)
    return _setsockopt(load(h + _H.fd), 6, TCP_QUICKACK, yes, 4)


@kernel
def keep_short(h):
    """Have the kernel lane take little more than its receiver's window: what follows can go by the ring again.

    Else it takes megabytes at once, and a sender that must not wait is never told that the ring has room.
    """
    if load(h + _H.lowat):
        return 0
    store(h + _H.lowat, 1)
    return set_lowat(h, LOWAT_BYTES)


@kernel
def keep_long(h):
    """Take that back."""
    if load(h + _H.lowat) == 0:
        return 0
    store(h + _H.lowat, 0)
    return set_lowat(h, 0)


@kernel
def set_lowat(h, count):
    """Set TCP_NOTSENT_LOWAT of the lifeline; 0: as without us."""
    option = scratch()
    store(option, count)
    return _setsockopt(load(h + _H.fd), 6, TCP_NOTSENT_LOWAT, option, 4)


@kernel
def told(h):
    """Return the negative of the errno of a call on the lifeline; keep one that the kernel won't tell again."""
    number = failure()
    if number in (-ECONNRESET, -ETIMEDOUT):
        store(h + _H.lost, -number)
    return number


@kernel
def send_kernel(h, tx, source, size, flags):
    """Send in the kernel lane what it takes without waiting; return the count or -errno."""
    sent = send_now(load(h + _H.fd), source, size, (flags & 0xFFFFFFFF) | MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        return told(h)
    publish(tx, load(tx + _D.tail) + sent)
    return sent


@kernel
def read_by_others(h, rx):
    """Return the position that the lifeline's reader reached in this run, by the kernel's count; -1: unknown."""
    taken, base = kernel_taken(h), load_acquire(rx + _D.run_base)
    if taken < 0 or base < 0:
        return -1
    return load_acquire(rx + _D.run_start) + taken - base


@kernel
def under_way(h):
    """Return 1 if bytes that were sent in the kernel lane, which is the present one, have not come here yet.

    A segment may wait a moment on its way, where another thread has the socket; and bytes that were in the ring when
    their arrival was told may have been moved since.
    """
    rx = load(h + _H.rx)
    if lane_end(rx) >= 0 or load(rx + _D.passed) & 1:
        return 0
    return 1 if 0 <= read_by_others(h, rx) < load_acquire(rx + _D.tail) and queued(h) == 0 else 0


@kernel
def nothing_more(rx, head, got):
    """The open kernel lane ends here, or is empty: return `got`, or why that isn't all.

    The sender may have gone on in the ring, and closed, since the receiver looked for a bound.  The lock first: who
    finishes for the dead sets the bound, then `spilling`, then the lock.
    """
    if load_acquire(rx + _D.tx_lock) != 0 and load_acquire(rx + _D.spilling) > head:
        return -MEND
    return -CHANGED if lane_end(rx) >= 0 else got


@kernel
def recv_kernel(h, rx, to, size, flags):
    """Receive from the kernel lane, not past its end; return the count (0: end of stream), -CHANGED, -MEND or -errno."""
    head, end = load(rx + _D.head), lane_end(rx)
    if end >= 0:
        head = max(head, min(end, read_by_others(h, rx)))
        consume(rx, head)
        if head < 0 or end <= head:                          # the bound was set just now, or one is garbage
            return -CHANGED if end == head else -ECONNRESET
        size = min(size, end - head)
    got = recv_now(load(h + _H.fd), to, size, (flags & 0xFFFFFFFF) | MSG_DONTWAIT)
    if got < 0:
        got = told(h)
    if got <= 0:
        return nothing_more(rx, head, got) if end < 0 else got
    if flags & MSG_PEEK == 0:
        consume(rx, head + got)
        if load(load(h + _H.tx) + _D.nb) & 1:
            acknowledge(h)
    return got
