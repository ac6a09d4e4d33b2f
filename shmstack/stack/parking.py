"""Sockets that left an epoll set and may be back in a moment.

asyncio takes a reader out of its set while the program is behind, and puts one in for each `sock_recv`.  To end what the set
does for such a socket, and begin it anew, takes longer than the receive: unread bytes would move to the kernel lane, and a
fence, a row of the stack's table and a look at all holders be needed.  So the senders go on as if it were in the set, whose
waiter then knows nobody of that number; before the set sleeps they are told that the receiver is awake, as nobody there has
to be woken for it.

Guarantee: what is parked is reported by nobody, and keeps no socket alive.
"""
from __future__ import annotations

import weakref
from collections.abc import Iterator

from shmstack import _native
from shmstack.ring.bell import RING
from shmstack.shm.layout import DIRECTION
from shmstack.stack.endpoint import Endpoint
from shmstack.tcp.handle import HANDLE

_BELL, _HOME = DIRECTION.at.bell, HANDLE.at.bell


class Parking:
    """The parked endpoints of one epoll object, by descriptor."""

    def __init__(self) -> None:
        self._ends: dict[int, weakref.ref[Endpoint]] = {}

    def __bool__(self) -> bool:
        return bool(self._ends)

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._ends))

    def __contains__(self, fd: int) -> bool:
        return fd in self._ends

    def add(self, fd: int, end: Endpoint) -> None:
        """Park an endpoint that the set owns."""
        self._ends[fd] = weakref.ref(end)

    def has(self, fd: int, end: Endpoint) -> bool:
        """Return whether the endpoint of descriptor `fd` is parked; one that is being collected can't be told any more."""
        known = self._ends.get(fd)
        return known is not None and known() in (end, None)

    def pop(self, fd: int) -> Endpoint | None:
        """Take out what is parked under `fd`, if it lives."""
        known = self._ends.pop(fd, None)
        return known() if known is not None else None

    def back(self, fd: int, end: Endpoint) -> bool:
        """Take `end` out for its set, which then looks whether anything came; return False if it must enter anew."""
        bell = _native.call.load(end.rx + _BELL)
        if end.held_by_others() or not end.read_by_us() or bell not in (end.home, RING):
            return False
        del self._ends[fd]
        if bell == RING:
            _native.call.watch(end.handle, end.home)
        return True

    def let_be(self) -> None:
        """Before a sleep of the set: nobody is to wake it for these."""
        for known in self._ends.values():
            end = known()
            if end is not None and end.open:
                _native.call.cas(end.rx + _BELL, end.home, RING)

    def after_fork_in_child(self) -> None:
        """The set that owned them is the parent's."""
        for fd in self:
            end = self.pop(fd)
            if end is not None:
                end.home, end.watchers = 0, ()
                _native.call.store(end.handle + _HOME, 0)
