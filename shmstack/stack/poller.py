"""epoll_wait over shared memory and the kernel.

Guarantee: `poll` returns what the kernel's call would if the bytes in the rings were in the sockets; no event is
lost between the two, and nothing is reported that isn't there; the cost does not grow with connections on which
nothing happens.

Theory.  Each look takes the bits that senders set; those endpoints are *suspects* until their ring is empty.
Level-triggered: a suspect is reported as long as its ring has bytes.  Edge-triggered: once for each bit.  One-shot:
what either side reports is switched off in the other.

The kernel is asked in each call, so all that it has to report comes as it would.  Only a spin ends without asking
again: the kernel had nothing a moment ago, and what comes meanwhile is found by the next call, as if it had come then.

Before it sleeps in the kernel the poller says so, orders that before one more look, and only then sleeps:

# SYNC doze: (asleep := 1; take the bits) against (set the bit; look at asleep), see tcp.ready

A thread that changes the set while another sleeps in it wakes that one by an eventfd, if there is something to see.
"""
from __future__ import annotations

import select
import time
from select import poll as _kernel_poll
from typing import Any

from shmstack import _native
from shmstack.shm.layout import DIRECTION
from shmstack.stack.crowd import MOST_SLICE, SLICE, Crowd
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.members import IN, Members
from shmstack.stack.spin import Spin
from shmstack.tcp.codes import FOLLOW, LATER, READY

_TURN_NS = 1_000_000                  # longest spin without a look at signals
_TAKEN = 32 * 8                       # bytes of a full answer of `collect`
_DEFAULT_MOST = 1023                  # what the standard library takes for maxevents=-1
_TAIL = DIRECTION.at.tail
Events = list[tuple[int, int]]


def _has(fd: int, event: int) -> bool:
    """Return whether the kernel has this event, an error or a hang-up for the descriptor."""
    asked = _kernel_poll()
    asked.register(fd, event)
    return bool(asked.poll(0))


class Poller(Members):
    """An epoll set that can wait.

    Parameters
    ----------
    kernel : select.epoll
    user_level : whether to own endpoints at all
    spin : how long to spin
    ask_ns : ask the kernel this often meanwhile
    """

    def __init__(self, kernel: Any, user_level: bool, spin: Spin, ask_ns: int) -> None:
        super().__init__(kernel, user_level)
        self._spin, self._ask_ns, self._kernel_first = spin, ask_ns, False
        self._fd = kernel.fileno()

    def poll(self, timeout: float | None, most: int) -> Events:
        """Return up to `most` (-1: the usual number) events, after at most `timeout` seconds (None: for ever)."""
        if timeout is not None and timeout < 0:
            timeout = None
        end = None if timeout is None else time.monotonic() + timeout
        if timeout == 0 and (self._members or self._parked):
            return self._look(most)
        limit = self._spin.limit() if self._waiters and self._members and not self._sleepers else 0
        if limit:
            events = self._spin_for(limit, end, most)
            if events:
                return events
        started, piece = time.monotonic_ns(), SLICE
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            events = self._sleep(left, piece, most)
            piece = min(2 * piece, MOST_SLICE)
            if events:
                self._spin.slept(limit + time.monotonic_ns() - started)
            if events or left == 0:
                return events

    # ---- the rings

    def _ready(self, thorough: bool = False) -> list[int]:
        """Return the members whose ring has something to report."""
        native = _native.call
        if self._waiters:
            waiters = self._list
            taken = native.collect(waiters.address, thorough)
            while taken:
                for mark in memoryview(taken).cast("q"):
                    fd = waiters.all[mark >> 32].fds.get(mark & 0xFFFFFFFF)
                    if fd is not None:
                        self._suspects[fd] = None
                taken = native.collect(waiters.address, thorough) if len(taken) == _TAKEN else b""
        if self._blocking:
            ends = self._blocking_now()
            self._suspects.update(dict.fromkeys(ends[end] for end in Crowd(ends).ready()))
        return [fd for fd in tuple(self._suspects) if self._still(fd)] if self._suspects else []

    def _blocking_now(self) -> dict[Endpoint, int]:
        return {end: fd for fd in tuple(self._blocking) if (end := self._members.get(fd)) is not None}

    def _still(self, fd: int) -> bool:
        end = self._members.get(fd)
        if end is not None and end.open and fd not in self._spent:
            ready = _native.call.ring_ready(end.handle)
            if ready == READY or (ready == FOLLOW and end.ready()):
                return True
            if ready == LATER:
                return False
        self._suspects.pop(fd, None)
        return False

    def _report(self, fd: int) -> int:
        """Return what to report of a member with bytes in its ring, having done what its mode asks for."""
        mask = self.interests.get(fd, 0)
        if fd in self._spent:
            return 0                                          # another thread reported it
        self._suspects.pop(fd, None)
        if mask & select.EPOLLONESHOT:
            self._spent.add(fd)
            self.kernel.modify(fd, select.EPOLLONESHOT)
        elif not mask & select.EPOLLET:
            self._suspects[fd] = None                         # behind the others
        return mask & IN

    # ---- the rings and the kernel

    def _look(self, most: int, wait: float | None = 0, thorough: bool = False) -> Events:
        """Return what is ready in the rings, and what the kernel has, which may wait if there is nothing else."""
        ready = self._ready(thorough)
        if not ready:
            return self._from_kernel(self.kernel.poll(wait, most))
        room = most if most > 0 else _DEFAULT_MOST
        found: dict[int, int] = {}
        crowded = len(ready) >= room
        if crowded:
            self._kernel_first = not self._kernel_first       # neither may keep the other out
            if self._kernel_first:
                found.update(self._from_kernel(self.kernel.poll(0, room)))
        for fd in ready:
            if len(found) < room or fd in found:
                bits = self._report(fd)
                if bits:
                    found[fd] = found.get(fd, 0) | bits
        if not crowded:
            for fd, bits in self._from_kernel(self.kernel.poll(0, room - len(found))):
                found[fd] = found.get(fd, 0) | bits
        if self._sleepers and crowded:
            self._wake()                                      # there is more, for another thread
        return list(found.items())

    def _from_kernel(self, events: Events) -> Events:
        """Return the kernel's events without those that are ours or were reported from a ring."""
        if not events or not (self._members or self._event >= 0 or self.one_shot):
            return events
        kept = []
        for fd, bits in events:
            if fd in self._spent and fd in self._members or fd == self._event:
                continue
            if fd in self._echoes and self._is_echo(fd):
                continue
            if self.interests.get(fd, 0) & select.EPOLLONESHOT:
                self._spent.add(fd)
            if fd in self._members and bits & IN:
                self.own_again(fd)
            kept.append((fd, bits))
        return kept

    # ---- edges that are none

    def exposing(self, end: Endpoint) -> None:
        """Before `fileno()` has the ring's bytes moved to the lifeline: their arrival there is no news.

        That holds if all was reported that there was: bytes, the kernel's events, and that the socket is writable.
        """
        fd, native = end.fd, _native.call
        if self.interests.get(fd, 0) & select.EPOLLET and self._members.get(fd) is end and end.unread():
            self._ready()
            if fd not in self._suspects and not _has(self._fd, select.POLLIN) and _has(fd, select.POLLOUT):
                self._echoes[fd] = native.load(end.rx + _TAIL), native.load(end.tx + _TAIL)

    def _is_echo(self, fd: int) -> bool:
        tails, end, native = self._echoes.pop(fd), self._members.get(fd), _native.call
        return end is not None and end.open and not _has(fd, select.POLLRDHUP) \
            and tails == (native.load(end.rx + _TAIL), native.load(end.tx + _TAIL))

    # ---- waiting

    def _spin_for(self, limit: int, end: float | None, most: int) -> Events:
        """As `_look`, and if there is nothing go on for `limit` ns, asking the kernel now and then."""
        now = time.monotonic_ns
        start = now()
        stop = start + limit
        if end is not None:
            stop = min(stop, int(end * 1e9))
        left, usual = limit, limit <= self._spin.usual
        while left > 0:
            events, spun = self._quick(min(left, _TURN_NS), most)
            if events:
                if spun:
                    self._spin.came(True, 0 if usual else now() - start)
                return events
            left = stop - now()
        self._spin.came(False)
        return []

    def _quick(self, limit: int, most: int) -> tuple[Events, bool]:
        # The usual case is one call: it looks, asks the kernel and spins.
        waiters = self._list                                  # what is looked at lives until we are back
        if self._blocking or self._suspects or not waiters.all:
            events = self._look(most)
            if events:
                return events, False
        found = _native.call.poll_marks(waiters.address, self._fd, limit, self._ask_ns, self._spin.adapts, most)
        return (self._look(most), False) if found == -1 else (found, True)

    def _sleep(self, left: float | None, piece: float, most: int) -> Events:
        with self._turn:
            self._parked.let_be()
            self._sleepers += 1
            thorough = not self._dozes
            if thorough:
                self._doze(True)
        try:
            if self._members:
                if self._blocking:
                    piece = min(piece, Crowd(self._blocking_now()).lead_to_kernel())
                left = piece if left is None else min(left, piece)
            return self._look(most, left, thorough)
        finally:
            with self._turn:
                self._sleepers -= 1
                if not self._sleepers:
                    self._doze(False)

    def _doze(self, asleep: bool) -> None:
        self._dozes = asleep
        if self._waiters:
            self._say()
