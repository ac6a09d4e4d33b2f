"""Which accelerated sockets are in an epoll set, and who looks after each.

A kernel epoll set has every descriptor, the lifelines too, so the kernel lane, the end of a stream, errors,
writability and all other descriptors are its to report.  What it can't see is bytes in a ring.  For those the set
has a waiter in each stack (`stack.watch`): the endpoint's bell names it, senders set a bit there, and send through the
lifeline as well while the set sleeps.

An endpoint has one bell, so one set can own it.  Where that can't be (no free waiter, the same connection in two sets
or in two processes, an offer that is not accepted yet, `fileno()` of the set was asked for, or of the socket and nothing was
received through us since: it may be read by `os.read`), the bell says KERNEL and the kernel set sees everything; such
members are the *others*, and so are one-shot entries, which only one thread may be told of.  When the kernel next
reports input of one, the set tries again to own it.

An owned member that leaves the set is only *parked* (`stack.parking`): it often comes back.

Registering may come before the connection is accelerated, and a descriptor may be closed and its number used again
while it is registered: `taken` asks the kernel's set whether it still knows the number.

After a fork the child's copy of the set owns nothing and changes no bell until it waits: the waiter is its parent's.
"""
from __future__ import annotations

import os
import select
import threading
from typing import Any

from shmstack import _native
from shmstack.shm.layout import DIRECTION
from shmstack.stack import watch
from shmstack.ring.bell import KERNEL
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.parking import Parking
from shmstack.stack.stack import Stack
from shmstack.stack.watch import Waiter, Waiters
from shmstack.tcp.handle import HANDLE

IN = select.EPOLLIN | select.EPOLLRDNORM
_BELL, _HOME, _TIMEOUT = DIRECTION.at.bell, HANDLE.at.bell, HANDLE.at.timeout_ns


class Members:
    """What an epoll object knows besides the kernel's set.

    Parameters
    ----------
    kernel : select.epoll
    user_level : whether to own endpoints at all
    """

    def __init__(self, kernel: Any, user_level: bool) -> None:
        self.kernel, self._owns, self._orphan = kernel, user_level, False
        self.interests: dict[int, int] = {}                   # of every descriptor registered through us
        self._members: dict[int, Endpoint] = {}               # accelerated, and their input is wanted
        self._parked = Parking()                              # owned still, but not in the set
        self._others: set[int] = set()                        # members that we don't own
        self._blocking: set[int] = set()                      # those of them whose calls may wait
        self._echoes: dict[int, tuple[int, int]] = {}         # see Poller.exposing
        self._suspects: dict[int, None] = {}                  # members that may have bytes in the ring, in turn
        self._spent: set[int] = set()                         # one-shot, and reported
        self._waiters, self._list = dict[str, Waiter](), Waiters()
        self._sleepers, self._event = 0, -1
        self._dozes = False                                   # what our waiters say
        self.one_shot = self._edges = False                   # any such entries, one-shot or edge-triggered
        self._turn = threading.RLock()
        watch.pollers.add(self)

    # ---- the set

    def added(self, fd: int, mask: int) -> None:
        """Note that the kernel's set has `fd`, with this mask."""
        with self._turn:
            self.interests[fd] = mask
            self.one_shot |= bool(mask & select.EPOLLONESHOT)
            self._edges |= bool(mask & select.EPOLLET)
            end = watch.endpoint(fd)
            if end is not None:
                self._enter(fd, end, mask)

    def arming(self, fd: int) -> None:
        """Before the kernel's set gets another mask for `fd`: what it reports from then on is not stale."""
        self._spent.discard(fd)

    def removed(self, fd: int) -> None:
        """Note that the kernel's set doesn't have `fd` any more."""
        with self._turn:
            self.interests.pop(fd, None)
            self.arming(fd)
            self._park(fd)

    def taken(self, fd: int, end: Endpoint) -> None:
        """A socket is accelerated from now on: if it is in the set, look after it."""
        mask = self.interests.get(fd)
        if mask is None:
            return
        try:
            # A descriptor that was closed has left the kernel's set, which tells nobody; this number may be new.
            self.kernel.modify(fd, mask if fd not in self._spent else select.EPOLLONESHOT)
        except (OSError, ValueError) as error:
            if not mask & select.EPOLLEXCLUSIVE or isinstance(error, FileNotFoundError):
                self.removed(fd)
                return
        with self._turn:
            self._enter(fd, end, mask)

    def gone(self, end: Endpoint) -> None:
        """A socket is not accelerated any more, or about to be closed."""
        with self._turn:
            fd = end.fd
            if self._members.get(fd) is end or self._parked.has(fd, end):
                home = end.home
                self._leave(fd, relax=False)
                if home and not self._orphan:
                    _native.call.cas(end.rx + _BELL, home, KERNEL)

    def _enter(self, fd: int, end: Endpoint, mask: int) -> None:
        if not mask & IN:
            self._park(fd)
            return
        if self._parked.has(fd, end) and self._parked.back(fd, end):
            self._members[fd] = end
        if self._members.get(fd) is not end:
            self._leave(fd)
            self._members[fd] = end
            for other in end.watchers:
                other.leave_to_kernel(fd, end)
            end.watchers += (self,)
        if end.home and mask & select.EPOLLONESHOT:
            self.leave_to_kernel(fd, end)
        if not end.home and (mask & select.EPOLLONESHOT or not self._own(fd, end)):
            self._others.add(fd)
            end.relax()
            self.mode_changed(end)
        if end.home:
            self._waiters[end.stack.name].put(end.id, end.handle, mask)
        self._suspect(fd, end)

    def mode_changed(self, end: Endpoint) -> None:
        """After `settimeout`: a blocking receive may have input sent to the ring, so those are looked at each time."""
        fd = end.fd
        if fd in self._others and _native.call.load(end.handle + _TIMEOUT) != 0:
            self._blocking.add(fd)
        else:
            self._blocking.discard(fd)

    def _park(self, fd: int) -> None:
        end = self._members.get(fd)
        if end is None or not end.home or not end.open or self._orphan:
            if fd not in self._parked:
                self._leave(fd)
            return
        del self._members[fd]
        self._parked.add(fd, end)
        self._waiters[end.stack.name].put(end.id, 0, 0)
        self._suspects.pop(fd, None)
        self._echoes.pop(fd, None)

    def _leave(self, fd: int, relax: bool = True) -> None:
        end = self._parked.pop(fd)
        end = self._members.pop(fd, None) or end
        if end is not None:
            self._disown(fd, end)
            self._others.discard(fd)
            self._blocking.discard(fd)
            self._suspects.pop(fd, None)
            self._echoes.pop(fd, None)
            end.watchers = tuple(other for other in end.watchers if other is not self)
            if relax and end.open and not self._orphan:
                end.relax()

    # ---- who looks after it

    def _own(self, fd: int, end: Endpoint) -> bool:
        """Have the senders mark this endpoint for us, if that can be."""
        if not self._owns or len(end.watchers) != 1 or not end.joined or end.held_by_others() \
                or not end.read_by_us():
            return False
        waiter = self._waiter(end.stack)
        if waiter is None:
            return False
        waiter.fds[end.id] = fd
        self._list.widen(waiter, end.id)
        end.home = waiter.bell
        self._others.discard(fd)
        self._blocking.discard(fd)
        _native.call.watch(end.handle, waiter.bell)
        return True

    def _disown(self, fd: int, end: Endpoint) -> None:
        waiter = self._waiters.get(end.stack.name)
        if end.home and waiter is not None and waiter.fds.pop(end.id, None) is not None:
            end.home = 0
            waiter.put(end.id, 0, 0)
            if not waiter.fds:
                del self._waiters[end.stack.name]
                waiter.release()
                self._list = Waiters(tuple(self._waiters.values()))

    def _waiter(self, stack: Stack) -> Waiter | None:
        waiter = self._waiters.get(stack.name)
        if waiter is None:
            waiter = Waiter.claim(stack)
            if waiter is not None:
                self._waiters[stack.name] = waiter
                self._list = Waiters(tuple(self._waiters.values()))
                self._say()
        return waiter

    def _say(self) -> None:
        """Tell senders whether to wake us: by a few bytes, or by each message if edges are to be seen."""
        _native.call.set_asleep(self._list.address, (2 if self._edges else 1) if self._dozes else 0)

    def leave_to_kernel(self, fd: int, end: Endpoint) -> None:
        """Somebody else needs this endpoint's bell: from now on its input comes in the kernel lane."""
        with self._turn:
            if self._parked.has(fd, end):
                self._leave(fd)
                return
            self._disown(fd, end)
            self._others.add(fd)
            end.rest(KERNEL)
            self.mode_changed(end)

    def own_again(self, fd: int) -> None:
        """The kernel reported input of a member: if it came there for want of a bell of ours, try to have it."""
        with self._turn:
            end = self._members.get(fd)
            if end is None or end.sleepers or not end.open:
                return
            end.follow(must=False)
            if fd in self._others:
                self._enter(fd, end, self.interests.get(fd, 0))
            elif _native.call.load(end.rx + _BELL) == KERNEL and end.read_by_us():
                self.resume(end)                              # somebody had asked for its fileno()

    def resume(self, end: Endpoint) -> None:
        """Another thread is through with a sleep for which it had changed the bell."""
        if end.home and end.open and not end.sleepers:
            _native.call.watch(end.handle, end.home)
            fd = end.fd
            if self._members.get(fd) is end:
                self._suspect(fd, end)

    def expose(self) -> None:
        """Foreign code looks at the kernel's set: all input must come there, for good."""
        with self._turn:
            self._owns = False
            for fd, end in tuple(self._members.items()):
                if end.home:
                    self.leave_to_kernel(fd, end)
            for fd in self._parked:
                self._leave(fd)

    def _suspect(self, fd: int, end: Endpoint) -> None:
        if end.open and _native.call.ring_ready(end.handle):
            self._suspects[fd] = None
            self._wake()

    def _wake(self) -> None:
        if self._sleepers:
            if self._event < 0:
                self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self.kernel.register(self._event, select.EPOLLIN | select.EPOLLET)
            os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Let go of every socket."""
        with self._turn:
            watch.pollers.discard(self)
            for fd in (*self._members, *self._parked):
                self._leave(fd)
            if self._event >= 0:
                os.close(self._event)
                self._event = -1


def _after_fork_in_child() -> None:
    for members in tuple(watch.pollers):
        members._turn, members._orphan, members._owns, members._sleepers = threading.RLock(), True, False, 0
        members._dozes = False
        for fd, end in members._members.items():
            if end.home:
                end.home = 0
                members._others.add(fd)
                members._blocking.add(fd)
                _native.call.store(end.handle + _HOME, 0)
        members._parked.after_fork_in_child()
        members._waiters, members._list = {}, Waiters()


os.register_at_fork(after_in_child=_after_fork_in_child)
