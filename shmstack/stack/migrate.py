"""Move a connection, in the middle of whatever it does, to another stack.

Guarantee: all or nothing.  Either both ends go on in the target, with every byte in its place, or both go on where
they are and the caller gets an error.  That holds when anybody is killed at any instruction, and neither side has to
do, or stop doing, anything.

    freeze    take the four locks of the pair: nobody copies bytes, nobody changes what is copied
    copy      to a fresh pair in the target, field by field as `shm.layout` says, and the ring's unread bytes
    forward   the old pair says where it went; its state MOVED is the one store that decides
    thaw      the locks stay taken for good by MOVED_LOCK, and whoever sleeps is woken

Theory.  The fast path pays nothing.  Whoever comes to the old pair fails to get its lock, goes the slow way, sees
MOVED and follows (`follow`).  The old pair is left as a decoy on which every wait ends at once: a byte seems to have
come, the ring seems to have room.  What changes outside of those locks is either changed under one of them
(`Endpoint.still`) or set again by whoever finds afterwards that the pair has moved.

# SYNC moved: the new pair, and the way to it, are complete before the old one says MOVED

Positions stay what they are, so sequence numbers, bounds, and bytes under way in the kernel lane need nothing.  A
receiver that looks in the kernel (asleep in poll, or looked after by a poller, whose numbers mean nothing in another
stack) is sent to in the kernel lane until it looks again.

Rejected: asking the other side to take part (it may be computing for an hour); a word on the fast path that says
"moved" (the lock is already there and says it for nothing); moving only idle connections, as Onload does.
"""
from __future__ import annotations

import os
import time
from typing import Iterator

from shmstack import _native, errors
from shmstack.shm.layout import COPY, DIRECTION, MOVED_LOCK, PAIR, TCB, Struct
from shmstack.stack import directory, follow
from shmstack.stack import stack as stacks
from shmstack.stack.attachment import living
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.stack import Stack

_D, _P, _T = DIRECTION.at, PAIR.at, TCB.at
_RING, _FUTEX, _KERNEL = 0, 1, 2      # ring.doorbell
_FREEZE_SECONDS = 1.0                 # a lock is held for one copy; longer is a stopped process
_PIECE = 1 << 18
_TRIES = 8


class _Overtaken(errors.NotMovable):
    """The other side moved the connection first."""


def _runs(struct: Struct) -> list[tuple[int, int]]:
    # (offset, bytes) of what is copied, neighbours together.
    found: list[tuple[int, int]] = []
    for field, (at, width, _) in struct.fields.items():
        if struct.moves[field] == COPY:
            if found and sum(found[-1]) == at:
                found[-1] = found[-1][0], found[-1][1] + width
            else:
                found.append((at, width))
    return found


_COPIED = {struct: _runs(struct) for struct in (PAIR, TCB, DIRECTION)}


# ---- moving --------------------------------------------------------------------------------------------------

def move(end: Endpoint, target: Stack) -> None:
    """Move both ends of a connection to another stack.

    Parameters
    ----------
    end : an end that this process holds
    target : a stack that it uses

    Raises
    ------
    NotMovable, StackFull
        It goes on where it is.
    """
    with follow.turn:
        for _ in range(_TRIES):
            end.follow()
            if end.stack is target:
                return
            try:
                return _move(end, target)
            except _Overtaken:
                continue
            except OSError:
                end.stack.count("moves_refused")
                raise
        raise errors.NotMovable("the connection for ourselves", "the other side moving it all the time")


def _move(end: Endpoint, target: Stack) -> None:
    source, index = end.stack, end.index
    pair = source.pair(index)
    _permit(end, target)
    new = target.take_pair()
    try:
        _transfer(end, target, new)
    except BaseException:
        if _decided(pair, target, new):
            end.follow()                                      # a signal came after the point of no return
        else:
            target.release_pair(new)
        raise
    _thaw(source, index, target, new)
    _native.call.fetch_add(target.tcb(new, end.side) + _T.arrived, 1)
    origin = source, index, end.generation
    short = _shorten(end, target, new)
    follow.point(end, target, new, short)
    end.origin = end.origin if short else origin
    target.count("moves")
    for other in living():                                    # the other end, duplicates: nobody else would wake them
        if other.pair == pair and other.open and other.pid == os.getpid():
            other.follow()
    end.serve()


def _decided(pair: int, target: Stack, new: int) -> bool:
    moved = _native.call.load(pair + _P.state) == stacks.MOVED
    return bool(moved and follow.forward(pair) == (new, _native.call.load(target.pair(new) + _P.generation), target.name))


def _permit(end: Endpoint, target: Stack) -> None:
    """Raise NotMovable unless the other end's process may use the target and would believe a record of ours."""
    native, here = _native.call, os.fstat(end.fd).st_uid
    if native.load(end.pair + _P.state) != stacks.ESTABLISHED:
        raise errors.NotMovable("a connection that both sides have joined", "one that was not accepted yet")
    if target.netns != end.stack.netns:
        raise errors.NotMovable("a stack of the socket's network namespace", f"{target.name!r}")
    peer = follow.peer(end)
    if peer is None or not peer.held or native.load(end.pair + _P.closed):
        raise errors.NotMovable("a connection that both sides hold", "the other one has closed it")
    said = native.load(end.stack.tcb(end.index, 1 - end.side) + _T.uid)
    for uid in (peer.uid, said):
        if uid not in (0, target.owner) and (target.share_with not in (-1, uid) or target.share_with == 0):
            raise errors.NotMovable(f"uid {uid} at the other end to have access to stack {target.shown!r}",
                                    f"owner={target.owner} EF_SHARE_WITH={target.share_with}")
    if target.owner not in (0, peer.uid, here):
        raise errors.NotMovable("a stack of one of the two users", f"one of uid {target.owner}")


def _transfer(end: Endpoint, target: Stack, new: int) -> None:
    native, source, index = _native.call, end.stack, end.index
    locks = [source.direction(index, side) + at for side in range(2) for at in (_D.tx_lock, _D.rx_lock)]
    taken: list[int] = []
    record = None
    try:
        _freeze(end, locks, taken)
        _copy(source, index, target, new)
        target.owes()
        record = directory.forward(target.name, source.name, index, end.generation)
        follow.set_forward(source.pair(index), target, new)
        native.store(source.pair(index) + _P.state, stacks.MOVED)                # SYNC moved
    except BaseException:
        if not _decided(source.pair(index), target, new):
            for lock in taken:
                native.unlock(lock)
            if record is not None:
                directory.remove(record)
        raise


def _shorten(end: Endpoint, target: Stack, new: int) -> bool:
    """Show those that have yet to follow us the way past the pair that we leave now; return whether that was done.

    Else an idle end would leave a trail of pairs behind it, as long as the other one moves.  Whoever follows counts
    himself in where he goes, under the same lock: so nobody is, or comes, where only we were counted.
    """
    if end.origin is None:
        return False
    native, (stack, index, generation), between = _native.call, end.origin, end.stack
    pair, arrived = stack.pair(index), [between.tcb(end.index, side) + _T.arrived for side in range(2)]
    if native.load(pair + _P.state) != stacks.MOVED or sum(map(native.load, arrived)) != 1:
        return False
    lock = follow.hold(stack, index)
    try:
        if not lock or sum(map(native.load, arrived)) != 1 or native.load(pair + _P.generation) != generation \
                or follow.forward(pair) != (end.index, end.generation, between.name):
            return False
        target.owes()
        directory.forward(target.name, stack.name, index, generation)
        follow.set_forward(pair, target, new)
        directory.remove(directory.forward_path(between.name, stack.name, index, generation))
        return True
    except OSError:
        return False                                          # no room for a record: the trail stays
    finally:
        follow.let_go(lock, stack.holder)


def _freeze(end: Endpoint, locks: list[int], taken: list[int]) -> None:
    """Take the locks, always in the same order, and note them in `taken`."""
    native, stop = _native.call, time.monotonic() + _FREEZE_SECONDS
    for lock in locks:
        while not native.take(lock, end.stack.holder):
            if native.load(end.pair + _P.state) == stacks.MOVED:
                raise _Overtaken("the connection for ourselves", "the other side moved it")
            end.break_lock(lock)
            if time.monotonic() > stop:
                raise errors.NotMovable("the connection to stand still", f"a lock held by {native.load(lock)}")
            time.sleep(0)
        taken.append(lock)
    if native.load(end.pair + _P.state) != stacks.ESTABLISHED or native.load(end.pair + _P.closed):
        raise errors.NotMovable("a connection that both sides hold", "the other one has just closed it")


def _copy(source: Stack, index: int, target: Stack, new: int) -> None:
    """Fill the new pair."""
    native = _native.call
    _take_over(PAIR, source.pair(index), target.pair(new))
    for side in range(2):
        _take_over(TCB, source.tcb(index, side), target.tcb(new, side))
        native.store(target.tcb(new, side) + _T.moves, native.load(source.tcb(index, side) + _T.moves) + 1)
        old, way = source.direction(index, side), target.direction(new, side)
        _take_over(DIRECTION, old, way)
        bell = native.load(old + _D.bell)
        native.store(way + _D.bell, _RING if bell in (_RING, _FUTEX) else _KERNEL)
        native.store(way + _D.head_cache, native.load(way + _D.head))
        parts = list(_ring_parts(way, source.capacity))
        if parts and parts[-1][1] - parts[0][0] > target.capacity:
            raise errors.NotMovable(f"room for unread bytes in rings of {target.capacity}",
                                    f"{parts[-1][1] - parts[0][0]}", "read first, or move to a stack with larger rings")
        for start, end in parts:
            _copy_bytes(source, target, (index, new, side), start, end)
    native.store(target.pair(new) + _P.offer, 0)
    native.store(target.pair(new) + _P.state, stacks.ESTABLISHED)


def _take_over(struct: Struct, old: int, new: int) -> None:
    native = _native.call
    for at, size in _COPIED[struct]:
        native.write(new + at, native.read(old + at, size))


def _ring_parts(way: int, capacity: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of the unread positions that travelled in the ring; NotMovable for garbage."""
    native = _native.call
    at, tail = native.load(way + _D.head), native.load(way + _D.tail)
    passed, bounds = native.load(way + _D.passed), native.load(way + _D.nb)
    if not 0 <= bounds - passed <= 4:
        raise errors.NotMovable("a stream with at most 4 bounds ahead", f"{bounds - passed}")
    ends = [native.load(way + _D.bound0 + 8 * (number & 3)) for number in range(passed, bounds)]
    for lane, end in enumerate([*ends, tail], passed & 1):
        if lane & 1 and end > at:
            if end - at > capacity:
                raise errors.NotMovable(f"at most {capacity} bytes in the ring", f"{end - at}")
            yield at, end
        at = max(at, end)


def _copy_bytes(source: Stack, target: Stack, numbers: tuple[int, int, int], start: int, end: int) -> None:
    """Copy positions [start, end) from ring to ring; `numbers` are old pair, new pair, side."""
    native, (index, new, side) = _native.call, numbers
    old_ring = source.segment.base + source.ring_offset(index, side)
    ring = target.segment.base + target.ring_offset(new, side)
    backed = target.direction(new, side) + _D.backed
    while start < end:
        here, there = start & source.capacity - 1, start & target.capacity - 1
        size = min(end - start, source.capacity - here, target.capacity - there, _PIECE)
        if there + size > native.load(backed) and target.back(new, side, there + size - 1):
            raise errors.StackFull(f"memory for unread bytes in stack {target.shown!r}", "none", "is /dev/shm full?")
        native.write(ring + there, native.read(old_ring + here, size))
        start += size


def _thaw(source: Stack, index: int, target: Stack, new: int) -> None:
    """Leave the old pair as a decoy, locked for good, and wake all that sleep on it."""
    native = _native.call
    for side in range(2):
        old = source.direction(index, side)
        native.store(old + _D.tail, native.load(old + _D.head) + 1)
        for field, value in ((_D.fin, 0), (_D.passed, 1), (_D.nb, 1), (_D.tx_lock, MOVED_LOCK), (_D.rx_lock, MOVED_LOCK)):
            native.store(old + field, value)
    native.barrier()                                                             # SYNC asleep, SYNC stalled
    for side in range(2):
        old, way = source.direction(index, side), target.direction(new, side)
        if native.load(old + _D.bell) not in (_RING, _FUTEX):
            native.cas(way + _D.bell, _RING, _KERNEL)        # it was about to sleep when the bell was copied
        native.ring_bell(old + _D.bell, _FUTEX, _RING)
        native.ring_bell(old + _D.stalled, 1, 0)
