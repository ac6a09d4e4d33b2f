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
import sys
import threading
import time
import weakref

from shmstack import _native, errors
from shmstack.shm.layout import DIRECTION, PAIR, TCB
from shmstack.stack import directory
from shmstack.stack import stack as stacks
from shmstack.ring.bell import KERNEL
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.transfer import lifeline_of
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline
from shmstack.tcp.handle import HANDLE

_H, _D, _P, _T = HANDLE.at, DIRECTION.at, PAIR.at, TCB.at
_GRACE_NS = 1_000_000_000             # no wait lasts that long without looking at its handle anew
turn = threading.RLock()              # moves and follows of this process, one at a time
_parted: list[tuple[Stack, int]] = []
_left: list[tuple[Stack, int, int, weakref.ref[Endpoint], int]] = []      # stack, pair, side, whose, since when


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


def follow(end: Endpoint) -> None:
    """Go where the pair went; ConnectionResetError if that can't be reached any more."""
    with turn:
        native = _native.call
        while native.load(end.pair + _P.state) == stacks.MOVED:                  # SYNC moved
            name = forward(end.pair)
            new, generation = (native.load(end.pair + at) for at in (_P.forward_at, _P.forward_generation))
            try:
                target = _reach(end, name, new, generation)
            except OSError as error:
                end.stack.count("not_permitted" if isinstance(error, errors.StackDenied) else "corrupt")
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
            point(end, target, new)


def forward(pair: int) -> str:
    """Return the name of the stack that a pair says it was moved to."""
    name: bytes = _native.call.read(pair + _P.forward, PAIR.fields["forward"][1])
    return name.split(b"\0")[0].decode("ascii", "replace")


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


def point(end: Endpoint, target: Stack, new: int) -> None:
    """Have the endpoint mean the new pair, and leave the old one."""
    native = _native.call
    watchers = tuple(end.watchers)
    old, counted = (end.stack, end.index, end.side, weakref.ref(end), time.monotonic_ns()), end.counted
    end.following = threading.get_ident()
    try:
        for poller in watchers:
            poller.leave_to_kernel(end.fd, end)              # its numbers are the old stack's
        native.store(end.handle + _H.bell, 0)
        end.home, end.stack, end.index = 0, target, new
        end._point()
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
        stack, index, side, whose, since = item
        end = whose()
        if (end is None or not end.handle or native.load(end.handle + _H.users)) and now - since < grace_ns:
            continue
        _left.remove(item)
        if len(sys._current_frames()) > 1:
            _parted.append((stack, now))
        if native.fetch_add(stack.tcb(index, side) + _T.holders, -1) > 1:
            continue
        pair = stack.pair(index)
        if native.fetch_or(pair + _P.closed, 1 << side) | 1 << side == 3:
            record = directory.forward_path(forward(pair), stack.name, index, native.load(pair + _P.generation))
            stack.release_pair(index)
            directory.remove(record)


atexit.register(tidy, 0)
