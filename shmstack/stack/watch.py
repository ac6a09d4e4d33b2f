"""Who looks after which socket: descriptors of accelerated connections, and the waiters of a stack.

A poller knows descriptors, a stack knows endpoints.  `endpoint(fd)` leads from one to the other, for sockets of this
process that live; `taken`, `dropped` and `Endpoint.close` keep it true, so a number that the kernel gives out again
never finds the connection that had it before.  Sockets often become accelerated after they were registered (a connect
that is under way): `taken` tells every open poller.

A *waiter* is one row of a stack's table: a word that says whether its poller sleeps in the kernel, and a bit for each
endpoint of the stack.  It belongs to one poller of one process, named by the process' slot, so the rows of a killed
process can be told and are used again.  64 pollers of a stack have one; what comes later uses the kernel lane.

Rejected: a queue of records that senders push to.  It can be full, and then has to be scanned after all; a bit an
endpoint can't, holds each endpoint at most once, and 4,096 connections are a kilobyte.
"""
from __future__ import annotations

import weakref
from typing import Any

from shmstack import _native
from shmstack.ring.bell import WAITER as WAITER_BELL
from shmstack.shm.layout import WAITER, WAITERS_MAX
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.stack import Stack

_W = WAITER.at
_MEMBER, _ENTRY = 16, 32             # tcp.ready

# Weak: a socket that is never closed ends when nobody has it.  A WeakValueDictionary takes longer than the rest of `taken`.
_by_fd: dict[int, weakref.ref[Endpoint]] = {}
_by_cookie: dict[int, weakref.ref[Endpoint]] = {}
pollers: set[Any] = set()             # the open ones of this process


def endpoint(fd: int) -> Endpoint | None:
    """Return the endpoint of this process whose lifeline has descriptor `fd`."""
    known = _by_fd.get(fd)
    end = known() if known is not None else None
    return end if end is not None and end.open and end.owner() is not None else None


def with_cookie(cookie: int) -> Endpoint | None:
    """Return an endpoint of this process whose lifeline the kernel knows by this SO_COOKIE; duplicates share one."""
    known = _by_cookie.get(cookie)
    return known() if known is not None else None


def some() -> bool:
    """Return whether this process may have any accelerated socket."""
    return bool(_by_fd)


def taken(end: Endpoint) -> None:
    """Note that a socket is accelerated from now on."""
    fd = end.fd
    _by_fd[fd] = _by_cookie[end.cookie] = weakref.ref(end, _lost)
    if pollers:
        _make_room_for(end)
        for poller in tuple(pollers):
            poller.taken(fd, end)


def dropped(end: Endpoint) -> None:
    """Note that a socket is not accelerated any more."""
    fd = end.fd
    known = _by_fd.get(fd)
    if known is not None and known() is end:
        del _by_fd[fd]
    known = _by_cookie.get(end.cookie)
    if known is not None and known() is end:
        del _by_cookie[end.cookie]


def _lost(ref: weakref.ref[Endpoint]) -> None:
    # A socket that was never closed is gone.
    for table in (_by_fd, _by_cookie):
        for key, known in tuple(table.items()):
            if known is ref:
                del table[key]


def _make_room_for(end: Endpoint) -> None:
    # A duplicate: there is one bell for both, so whoever had it looks in the kernel from now on.
    for known in tuple(_by_fd.values()) if end.held_by_others() else ():
        other = known()
        if other is not None and other is not end and other.home and other.pair == end.pair and other.side == end.side:
            for poller in tuple(other.watchers):
                poller.leave_to_kernel(other.fd, other)


class Waiter:
    """A row in the table of waiters of a stack, held by one poller.

    Attributes
    ----------
    bell : int
        What an endpoint's bell says to have this waiter marked.
    fds : dict
        endpoint number -> descriptor, of those that do.
    """

    def __init__(self, stack: Stack, number: int, address: int) -> None:
        self.stack, self.address, self.bell = stack, address, WAITER_BELL + number
        self.fds: dict[int, int] = {}
        self.members = _native.call.allocate(_MEMBER * 2 * stack.pairs_max)       # pages come as they are written to
        stack.segment.handles.add(self.members)

    def put(self, number: int, handle: int, mask: int) -> None:
        """Note what kernels need of a member; handle 0: it is none any more."""
        _native.call.store(self.members + _MEMBER * number, 0)
        _native.call.store(self.members + _MEMBER * number + 8, mask)
        _native.call.store(self.members + _MEMBER * number, handle)

    def __del__(self) -> None:
        self.stack.segment.let_go(self.members)
        _native.call.free(self.members)

    @classmethod
    def claim(cls, stack: Stack) -> Waiter | None:
        """Return a free row, or None if all are taken."""
        native = _native.call
        for number in range(WAITERS_MAX):
            address = stack.waiters + number * stack.waiter_size
            owner = native.load(address + _W.owner)
            if owner and stack.holds(owner):
                continue
            if native.cas(address + _W.owner, owner, stack.holder) == owner:
                native.fetch_add(address + _W.uses, 1)
                native.store(address + _W.asleep, 0)
                native.write(address + WAITER.size, bytes(stack.waiter_size - WAITER.size))
                return cls(stack, number, address)
        return None

    def release(self) -> None:
        """Give the row back."""
        _native.call.store(self.address + _W.asleep, 0)
        _native.call.cas(self.address + _W.owner, self.stack.holder, 0)


class Waiters:
    """A poller's waiters as the list that kernels read.

    It never loses an entry: another list takes its place, and this one, with the stacks in it, lives for as long as a
    thread spins over it.
    """

    def __init__(self, waiters: tuple[Waiter, ...] = ()) -> None:
        self.all = waiters
        self.address = 0
        if waiters:
            native = _native.call
            self.address = native.allocate(8 + _ENTRY * len(waiters))
            for index, waiter in enumerate(waiters):
                native.store(self.address + 8 + _ENTRY * index, waiter.address)
                numbers = [number >> 6 for number in waiter.fds]
                native.store(self.address + 16 + _ENTRY * index, min(numbers, default=0))
                native.store(self.address + 24 + _ENTRY * index, max(numbers, default=-1) + 1)
                native.store(self.address + 32 + _ENTRY * index, waiter.members)
            native.store(self.address, len(waiters))

    def widen(self, waiter: Waiter, number: int) -> None:
        """Include an endpoint's number in the part of the waiter's map that is looked at."""
        native, entry = _native.call, self.address + 16 + _ENTRY * self.all.index(waiter)
        first, end = native.load(entry), native.load(entry + 8)
        native.store(entry + 8, max(end, (number >> 6) + 1))
        native.store(entry, min(first, number >> 6) if end else number >> 6)

    def __del__(self) -> None:
        if self.address:
            _native.call.free(self.address)
