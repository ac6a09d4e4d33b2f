"""An endpoint: one end of an accelerated connection, from the moment it is taken to its end.

What ends a connection is done twice: in shared memory, so that the peer learns of it at once, and on the lifeline, so
that the kernel tells it to everybody who only knows the kernel.
"""
from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import Any

from shmstack import _native
from shmstack.ring.bell import FUTEX, KERNEL, RING
from shmstack.shm.layout import DIRECTION, PAIR, TCB
from shmstack.shm.segment import Segment
from shmstack.stack import plans, reaping, spares
from shmstack.stack.attachment import endpoints
from shmstack.stack.transfer import Transfer
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.state import Event, State

SYN_SENT = State.SYN_SENT
_H, _D, _P, _T = HANDLE.at, DIRECTION.at, PAIR.at, TCB.at
_HAND_BACK_SECONDS = 1.0            # a peer sleeps no longer than 0.8 beside threads that may have sent
_LEND_TRIES = 100                                           # locks are held for one copy
_RCVBUF = 1 << 17                                           # what Linux starts with (tcp_rmem)

_GRACE_NS = 100_000_000
_graveyard: deque[tuple[int, int, Segment]] = deque()       # handles that a thread may still be inside of, since when


class Endpoint(Transfer):
    """One end of a pair in a stack, held by one socket object of one process; see `Attachment` for its parameters."""

    # ---- ending

    def shutdown_send(self) -> None:
        """Mark the end of what this end sends; the caller then shuts the lifeline down."""
        native = _native.call
        if not self.shut:
            self.shut = True
            self.serve()
            self._leave_no_bytes()
            with self.still():
                native.fetch_or(self.tx + _D.fin, 1)
                self.happened(Event.CLOSE)
                self.happened(Event.ACK_OF_FIN)
            native.store(self.handle + _H.shut, 1)
            native.announce(self.handle, self.tx)

    def _leave_no_bytes(self) -> None:
        # Once the lifeline is shut nothing can be moved there, should the receiver give its end to TLS or a program of C.
        native = _native.call
        self._through(self.tx + _D.tx_lock)
        if native.take(self.tx + _D.tx_lock, self.stack.holder):
            if native.load(self.tx + _D.nb) & 1 and self.joined:
                native.spill(self.handle, self.tx, 1)
            native.unlock(self.tx + _D.tx_lock)

    def shutdown_receive(self) -> None:
        """After the lifeline was shut for reading: wake whoever waits for input; it gets what is there, then EOF."""
        with self.still():
            _native.call.fetch_or(self.rx + _D.fin, 2)
            _native.call.ring_bell(self.rx + _D.bell, FUTEX, RING)

    def unread(self) -> bool:
        """Return whether bytes for this end wait in the ring."""
        native = _native.call
        return bool(native.in_ring(self.handle) and native.load(self.rx + _D.tail) != native.load(self.rx + _D.head))

    def close(self, abort: Any = None) -> None:
        """Give this end up, before the descriptor is closed.

        Parameters
        ----------
        abort : called if Linux would send a reset: the last holder leaves with bytes unread
        """
        native = _native.call
        if native.load(self.handle + _H.dead) or self.pid != os.getpid():
            return
        self.unwatch()
        if self.offer is None:
            done = native.finish(self.handle)
            if done >= 0:
                self.free_after, self.ask_after = done == 1, done == 2
                endpoints.pop(self.handle, None)
                return
        self.serve()
        if not self.shut and not self.unread() and not self.held_by_others():
            self._leave_no_bytes()
        with self.still():
            last = native.fetch_add(self.tcb + _T.holders, -1) <= 1
            native.store(self.handle + _H.dead, 1)
            if last:
                self.withdraw()
                if self.unread() and abort is not None and not self.exposed:
                    abort()
                elif not self.shut:
                    native.fetch_or(self.tx + _D.fin, 1)
                    self.happened(Event.CLOSE)
                self._take_no_more()
                native.ring_bell(self.rx + _D.stalled, 1, 0)
                self._done()
        self.ask_after = not self.free_after and bool(native.silent(self.handle, last))
        endpoints.pop(self.handle, None)

    def _take_no_more(self) -> None:
        # What still comes is the kernel's to answer.  A sender leaves the ring for that when all of it was read, bounds too.
        native, rx = _native.call, self.rx
        locked = native.take(rx + _D.tx_lock, self.stack.holder)
        native.store(rx + _D.bell, KERNEL)
        if not self.exposed:
            native.store(rx + _D.passed, native.load(rx + _D.nb))
            native.store(rx + _D.head, native.load(rx + _D.tail))
        if locked:
            native.unlock(rx + _D.tx_lock)

    def closed(self) -> None:
        """After the descriptor was closed: let a sleeping peer look."""
        _native.call.ended(self.handle)
        self._done_with()

    def _done(self) -> None:
        # The second end that is done with the pair frees it, and nobody a second time.  Whether there is another end
        # is asked first: once ours is noted the other may free the pair, and somebody take it anew.
        native, mine, joined = _native.call, 1 << self.side, self.joined
        before = native.fetch_or(self.pair + _P.closed, mine)
        self.free_after = not before & mine and (before | mine == 3 or not joined)

    def _done_with(self) -> None:
        if self.free_after:
            self.free_after = False
            self.stack.release_pair(self.index)
        elif self.ask_after:
            self.ask_after = False
            reaping.reap_pair(self.stack, self.index, self.generation)
        if self.stack.pairs_max > spares.PAIRS:
            plans.drop_if_alone(self.stack)
        else:
            spares.done(self.stack)
        self.open = False

    def withdraw(self) -> bool:
        """Take the offer back if nobody has accepted it yet; return whether nobody can any more."""
        if self.offer is not None:
            _remove(self.offer)
            self.offer = None
        return bool(_native.call.withdraw(self.handle))

    def hand_back(self) -> None:
        """Leave both directions to the kernel for good, and the pair: the descriptor is somebody else's now.

        What the peer has not read yet moves to the lifeline, as far as there is room: the peer may leave too, and then
        nobody would move it.  What we have not read its process moves there, at its next call at the latest; this waits
        for that, for a while.
        """
        native = _native.call
        self.unwatch()
        self.withdraw()
        self._leave_no_bytes()
        with self.still():
            if native.load(self.tx + _D.nb) & 1:
                self._through(self.tx + _D.rx_lock)
                native.set_bound(self.tx, native.load(self.tx + _D.tail))
                self._through(self.tx + _D.rx_lock)
            native.store(self.tx + _D.kernel, 1)
        self.rest(KERNEL)
        end = time.monotonic() + _HAND_BACK_SECONDS
        while self.unread() and time.monotonic() < end and not self.ask_spill():
            time.sleep(0.0005)
        if native.load(self.handle + _H.lowat):
            native.set_lowat(self.handle, 0)
        self.stack.count("handed_back")
        with self.still():
            last = native.fetch_add(self.tcb + _T.holders, -1) <= 1
            native.store(self.handle + _H.dead, 1)
            if last:                                          # duplicates and other processes may hold this end still
                self._done()
        native.ring_bell(self.tx + _D.bell, FUTEX, RING)
        self._done_with()
        endpoints.pop(self.handle, None)

    # ---- somebody else with the descriptor

    def expose(self) -> None:
        """Somebody is given the descriptor: from now on the kernel must see the input, until a call waits again."""
        for poller in self.watchers:
            poller.exposing(self)
        self.lent = self.exposed = True
        self.exposed_at = _native.call.load(self.rx + _D.head)
        self.rest(KERNEL)
        if self.joined:
            self.lend()

    def lend(self) -> None:
        """Somebody may write to the descriptor: all that was sent goes before that, if the lifeline has room for it."""
        for _ in range(_LEND_TRIES):
            if _native.call.lend(self.handle):
                break
            self._through(self.tx + _D.tx_lock)               # others send or receive now, or a dead process has a lock
            self._through(self.tx + _D.rx_lock)

    # ---- buffers

    def set_buffers(self, send: int, receive: int) -> None:
        """Follow SO_SNDBUF and SO_RCVBUF: what is under way is at most what one end and the other want.

        Parameters
        ----------
        send, receive : bytes, as the kernel counts them; 0 if the program said nothing
        """
        native, stack = _native.call, self.stack
        with self.still():
            native.store(self.tcb + _T.sndbuf, send)
            native.store(self.tcb + _T.rcvbuf, receive)
            for side in range(2):
                out = native.load(stack.tcb(self.index, side) + _T.sndbuf)
                into = native.load(stack.tcb(self.index, 1 - side) + _T.rcvbuf) or _RCVBUF
                native.store(stack.direction(self.index, side) + _D.window, out and out + into)

    # ---- fork

    def shared(self) -> None:
        """Before a fork: the child will hold this end too."""
        with self.still():
            _native.call.fetch_add(self.tcb + _T.holders, 1)
            _native.call.fetch_add(self.tcb + _T.arrived, 1)

    def adopt_in_child(self) -> None:
        """In the child: act under the child's own slot, and drop what threads of the parent were doing."""
        self.pid = os.getpid()
        _native.call.store(self.handle + _H.me, self.stack.holder)
        _native.call.store(self.handle + _H.users, 0)
        _native.call.store(self.handle + _H.deep, 0)

    def leave(self) -> None:
        """Before `os._exit`: who else holds this end has it to himself; if nobody does the kernel ends the connection."""
        native, holders = _native.call, self.tcb + _T.holders
        if self.open and self.pid == os.getpid() and not native.load(self.handle + _H.dead) and native.load(holders) > 1:
            native.fetch_add(holders, -1)

    def __del__(self) -> None:
        if getattr(self, "handle", 0) and os is not None and os.getpid is not None:      # else the interpreter is at its end
            endpoints.pop(self.handle, None)
            if self.open and self.pid == os.getpid():
                self.unwatch()
                if self.owner() is None:                      # nobody closed the socket, and its number may be another's
                    _native.call.store(self.handle + _H.fd, -1)
                self.close()
                self.closed()
            _bury(self.handle, self.stack.segment)


def _bury(handle: int, where: Segment) -> None:
    # A thread may be asleep in a call on the socket, which has let go of its endpoint, or have found it a moment ago.
    alone, load = _alone(), _native.call.load
    if not _graveyard and alone and not load(handle + _H.users):
        where.let_go(handle)
        _native.call.free(handle)
        return
    now = time.monotonic_ns()
    _graveyard.append((now, handle, where))
    for _ in range(len(_graveyard)):
        try:
            since, old, segment = _graveyard.popleft()
        except IndexError:
            break
        if now - since < _GRACE_NS and not alone:
            _graveyard.appendleft((since, old, segment))      # all others are younger
            break
        if load(old + _H.users):
            _graveyard.append((now, old, segment))
        else:
            segment.let_go(old)
            _native.call.free(old)


def _alone() -> bool:
    return len(sys._current_frames()) == 1


def _remove(path: str) -> None:
    """Remove a record of ours; the accepting side may have been quicker."""
    try:
        os.unlink(path)
    except OSError:
        pass
