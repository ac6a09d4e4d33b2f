"""Follow a connection that was moved to another stack, and leave the place where it was.

Guarantee: an end finds its connection wherever and however often the other side, or a process that shares the end,
moved it; it goes nowhere that the kernel doesn't vouch for; the old pair is freed when the last has left it.

Theory.  What a moved pair says is written by those who share the stack, so it is only a hint where to look.  The
target must belong to ourselves, to root, or to the user that the kernel says owns the socket at the other end, and
the TCB there must carry the number of our own kernel socket.

The `holders` of each end of the old pair count who has yet to follow.  Until all have, a record in the directory says
that the target is owed to them: it then outlives its last user.  So a mover may end, or be killed, right after it
sent something, and the other side finds that whenever it looks.

A thread may be inside a wait on the old pair while another one follows.  Its wait ends at once, but the pair must not
be used again before it is out, hence `_left`.  It may also be between reading an address and using it, so the old
stack stays mapped for a while, hence `_parted`.
"""
from __future__ import annotations

import atexit
import errno
import os
import struct
import sys
import threading
import time
import weakref
from typing import NamedTuple

from shmstack import _native, errors
from shmstack.shm.layout import DIRECTION, MOVED_LOCK, PAIR, TCB
from shmstack.stack import directory
from shmstack.stack import stack as stacks
from shmstack.ring.bell import FUTEX, KERNEL, RING
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.patience import lifeline_of
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline
from shmstack.tcp.handle import HANDLE

_H, _D, _P, _T = HANDLE.at, DIRECTION.at, PAIR.at, TCB.at
_GRACE_NS = 1_000_000_000             # no wait lasts that long without looking at its handle anew
_HOLD_SECONDS = 1.0
_FORWARD = struct.Struct("<qq32s")


class Left(NamedTuple):
    """A pair that an endpoint of ours points away from since `since`; `last`: nobody else is there."""

    stack: Stack
    pair: int
    side: int
    last: bool
    whose: weakref.ref[Endpoint]
    since: int


turn = threading.RLock()              # moves and follows of this process, one at a time
_parted: list[tuple[Stack, int]] = []
_left: list[Left] = []


def _renew() -> None:
    global turn
    turn = threading.RLock()
    _left.clear()                     # they are the parent's to leave: the child counts for itself


os.register_at_fork(after_in_child=_renew)


def peer(end: Endpoint) -> lifeline.Holder | None:
    """Return what the kernel says of the socket at the other end."""
    with lifeline_of(end.fd) as sock:
        try:
            local, remote = sock.getsockname(), sock.getpeername()
        except (OSError, AttributeError):
            return None
        return lifeline.peer(sock.family, local[:2], remote[:2], end.stack.netns)


def follow(end: Endpoint, wait: bool = True) -> bool:
    """Go where the pair went, if nobody was quicker; ConnectionResetError if that can't be reached any more.

    Parameters
    ----------
    end : whose
    wait : for other moves and follows of this process; else return False if there are any
    """
    mine = turn
    if not mine.acquire(blocking=wait):
        return False
    try:
        native = _native.call
        while native.load(end.pair + _P.state) == stacks.MOVED:                  # SYNC moved
            lock = hold(end.stack, end.index)
            try:
                new, generation, name = forward(end.pair)
                target = _reach(end, name, new, generation)
                native.fetch_add(target.tcb(new, end.side) + _T.arrived, 1)
            except OSError as error:
                end.stack.count("not_permitted" if isinstance(error, errors.StackDenied) else "corrupt")
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
            finally:
                let_go(lock, end.stack.holder)
            end.origin = None
            point(end, target, new)
        return True
    finally:
        mine.release()


# ---- the way that a moved pair shows -------------------------------------------------------------------------

def forward(pair: int) -> tuple[int, int, str]:
    """Return (pair number, its generation, name of its stack) of where a pair says it was moved to."""
    native = _native.call
    where = pair + (_P.forward1 if native.load(pair + _P.forward) & 1 else _P.forward0)
    at, generation, name = _FORWARD.unpack(native.read(where, _FORWARD.size))
    return at, generation, name.split(b"\0")[0].decode("ascii", "replace")


def set_forward(pair: int, target: Stack, new: int) -> None:
    """Say where a pair was moved to; whoever is killed in between leaves what it said before."""
    native = _native.call
    other = 1 - (native.load(pair + _P.forward) & 1)
    generation = native.load(target.pair(new) + _P.generation)
    native.write(pair + (_P.forward1 if other else _P.forward0), _FORWARD.pack(new, generation, target.name.encode()))
    native.store(pair + _P.forward, other)


def hold(stack: Stack, index: int) -> int:
    """Take the lock under which a moved pair's way is read and changed; return its address, 0 if it can't be had.

    It is the first of the pair's own locks, which a move leaves at MOVED_LOCK.
    """
    native, stop = _native.call, time.monotonic() + _HOLD_SECONDS
    lock: int = stack.direction(index, 0) + _D.tx_lock
    if not stack.in_use:
        return 0
    while native.cas(lock, MOVED_LOCK, stack.holder) != MOVED_LOCK:
        holder = native.load(lock)
        if holder == stack.holder:
            return lock                                       # our own, from before a signal
        if holder != MOVED_LOCK and not stack.holds(holder):
            native.cas(lock, holder, MOVED_LOCK)
        elif time.monotonic() > stop:
            return 0
        time.sleep(0)
    return lock


def let_go(lock: int, holder: int) -> None:
    """Give the lock of a moved pair's way back."""
    if lock:
        _native.call.cas(lock, holder, MOVED_LOCK)


def _reach(end: Endpoint, name: str, new: int, generation: int) -> Stack:
    """Attach the stack of a forward, after holding it against what the kernel says of the socket."""
    if not directory.NAME.fullmatch(name):
        raise errors.StackNotFound(f"stack {name!r}", "no such name")
    other = peer(end)
    owners = {os.fstat(end.fd).st_uid} | ({other.uid} if other is not None and other.held else set())
    target, native = Stack.attach(name, tuple(owners)), _native.call
    if not 0 <= new < target.pairs_max or native.load(target.pair(new) + _P.generation) != generation:
        raise errors.StackDied(f"pair {new}.{generation} in stack {name!r}", "another one")
    with lifeline_of(end.fd) as sock:
        if native.load(target.tcb(new, end.side) + _T.cookie) != lifeline.cookie(sock):
            raise errors.StackDied("the pair of our own socket", "another socket's")
    return target


def point(end: Endpoint, target: Stack, new: int, last: bool = False) -> None:
    """Have the endpoint mean the new pair, and leave the old one.

    Parameters
    ----------
    end, target, new : whose, and where it is now
    last : nobody else was ever in the old one or will come there
    """
    native = _native.call
    watchers = tuple(end.watchers)
    old, counted = Left(end.stack, end.index, end.side, last, weakref.ref(end), time.monotonic_ns()), end.counted
    end.following = threading.get_ident()
    try:
        for poller in watchers:
            poller.leave_to_kernel(end.fd, end)              # its numbers are the old stack's
        native.store(end.handle + _H.bell, 0)
        bell = end.rx + _D.bell
        end.home, end.stack, end.index = 0, target, new
        end._point()
        if old.stack is not target:
            old.stack.segment.let_go(end.handle)
        if native.load(bell) not in (RING, FUTEX):
            native.cas(end.rx + _D.bell, RING, KERNEL)       # another thread said so just now
        if counted:
            _left.append(old)
        tidy()
        if watchers:
            end.rest(KERNEL)
        elif native.load(end.rx + _D.bell) == KERNEL and end.unread():
            end.ask_spill()
    finally:
        end.following = 0


def tidy(grace_ns: int = _GRACE_NS) -> None:
    """Leave old pairs that no thread of ours is inside of any more; the last that leaves one frees it."""
    native, now = _native.call, time.monotonic_ns()
    _parted[:] = [(stack, since) for stack, since in _parted if now - since < grace_ns]
    for item in list(_left):
        stack, index, side, last, whose, since = item
        end = whose()
        if end is not None and end.open and end.written == stack.pair(index):
            continue                                          # a program's own time: it must not write to another connection
        if (end is None or not end.open or native.load(end.handle + _H.users)) and now - since < grace_ns:
            continue
        _left.remove(item)
        if len(sys._current_frames()) > 1:
            _parted.append((stack, now))
        if native.fetch_add(stack.tcb(index, side) + _T.holders, -1) > 1 and not last:
            continue
        pair = stack.pair(index)
        if last or native.fetch_or(pair + _P.closed, 1 << side) | 1 << side == 3:
            record = directory.forward_path(forward(pair)[2], stack.name, index, native.load(pair + _P.generation))
            stack.release_pair(index)
            directory.remove(record)


atexit.register(tidy, 0)
