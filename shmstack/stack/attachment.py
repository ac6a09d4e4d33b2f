"""One end of a pair as a process holds it: where it is, where its input is looked for, and whose turn it is.

An `Attachment` is the Python half of a handle (`tcp.handle`).  It keeps the bell true, which tells the sender where
this end looks for its input; it does what the other end waits for; it breaks the lock of a dead holder, and follows
the pair when it is moved to another stack.
"""
from __future__ import annotations

import os
import time
import weakref
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Callable, Iterator, NamedTuple

from shmstack import _native
from shmstack.ring.bell import FUTEX, KERNEL, RING
from shmstack.shm.layout import DIRECTION, MOVED_LOCK, PAIR, PAIR_DIRECTION, PAIR_SIZE, PAIR_TCB, TCB
from shmstack.stack import stack as stacks
from shmstack.stack.inherit import inherit
from shmstack.stack.stack import Stack
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.state import Event, step

_H, _D, _P, _T = HANDLE.at, DIRECTION.at, PAIR.at, TCB.at
_STILL_SECONDS = 1.0                                        # longest wait for a lock that is held for one copy

# Of this process, by handle.  A WeakSet takes longer, and touches 40 pages, which a forked child has to copy.
endpoints: dict[int, weakref.ref[Any]] = {}


def living() -> list[Any]:
    """Return the endpoints of this process."""
    return [end for known in tuple(endpoints.values()) if (end := known()) is not None]


def _nobody() -> None:
    return None


class Spin(NamedTuple):
    """How a wait spins: at most `ns`, and whether it yields and learns."""

    ns: int
    adapts: bool


class Attachment:
    """One end of a pair in a stack, held by one socket object of one process.

    Parameters
    ----------
    stack, index, side : where it lives; side 0 is the active opener
    fd : descriptor of the lifeline
    timeout : as `socket.gettimeout` returns it
    spin : how a wait spins
    handle : one that is set up already, and counted; its end is nobody else's yet
    """

    open = True                                             # not closed or handed back yet
    home = 0                                                # bell of the poller's waiter that looks after it, if any
    views: Any = None                                       # what `shmstack.nocopy` has of it
    exposed = False                                         # somebody may poll the descriptor in the kernel
    exposed_at = 0                                          # and had received so many bytes when he was given it
    watchers: tuple[Any, ...] = ()                          # pollers that it is registered with
    origin: Any = None                                      # the pair where others may be that follow us, see migrate
    following = 0                                           # the thread that takes it to another stack
    written = 0                                             # a pair in whose ring the program writes in place; see nocopy
    lent = False                                            # somebody was given the descriptor, and may set its modes
    declared = -1                                           # the socket object's time-out, as in the handle
    limits = (0, 0)                                         # SO_RCVTIMEO and SO_SNDTIMEO in ns, 0: none
    sleepers = 0                                            # threads that sleep in the kernel for its input
    offer: str | None = None                                # the record of our offer
    board: Stack | None = None                              # or where it stands
    owner: Callable[[], Any] = staticmethod(_nobody)        # the socket object, or None
    shut = free_after = ask_after = False

    def __init__(self, stack: Stack, index: int, side: int, fd: int,  # noqa: PLR0913 - made in three places
                 timeout: float | None, spin: Spin, handle: int = 0) -> None:
        native = _native.call
        self.stack, self.index, self.side, self.pid = stack, index, side, os.getpid()
        self.inside: set[int] = set()                         # threads in slow calls
        self.counted, self.declared = handle != 0, -1 if timeout is None else int(timeout * 1e9)
        self.handle = handle or native.enter(stack.facts, index, side, fd, spin.ns, spin.adapts)
        self._note()
        self.cookie = native.load(self.tcb + _T.cookie)       # of the lifeline
        if not handle:
            with self.still():
                native.fetch_add(self.tcb + _T.holders, 1)
                native.fetch_add(self.tcb + _T.arrived, 1)
                self.counted = True
            self.set_timeout(timeout)
        endpoints[self.handle] = weakref.ref(self)

    def _note(self) -> None:
        # The addresses of the handle, from numbers that were checked at attach.
        stack, index, side = self.stack, self.index, self.side
        stack.segment.handles.add(self.handle)
        self.pair = pair = stack.pair(index)
        self.tcb, ways = pair + PAIR_TCB + side * TCB.size, pair + PAIR_DIRECTION
        self.tx, self.rx = ways + side * DIRECTION.size, ways + (1 - side) * DIRECTION.size
        self.generation = _native.call.load(self.pair + _P.generation)

    def _point(self) -> None:
        self._note()
        _native.call.point(self.stack.facts, self.handle, self.index, self.side)

    # ---- moves

    def follow(self, must: bool = True) -> bool:
        """If the pair was moved to another stack, go there; return whether it was.

        Parameters
        ----------
        must : wait for a thread that is moving something at this moment, and raise ConnectionResetError if the pair
            went where this process can't follow; else the caller may hold what that thread waits for
        """
        if _native.call.load(self.pair + _P.state) != stacks.MOVED or self.following == get_ident():
            return False
        from shmstack.stack import follow
        try:
            return follow.follow(self, must)  # type: ignore[arg-type]  # every attachment is an endpoint's
        except OSError:
            if must:
                raise
            return False

    def ready(self) -> bool:
        """Return whether a receive would not wait for the ring, wherever the pair is now."""
        try:
            self.follow()
        except OSError:
            return True                                       # for the receive to say
        return bool(_native.call.ring_ready(self.handle) == 1)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Context in which the pair does not move, for changes that a copy must not miss."""
        native, stop, lock = _native.call, time.monotonic() + _STILL_SECONDS, 0
        while not lock and time.monotonic() < stop:
            lock = self.tx + _D.tx_lock
            if not native.take(lock, self.stack.holder):
                try:
                    self.break_lock(lock)
                except OSError:
                    break                                     # it went where we can't: what we change is nobody's
                finally:
                    lock = 0
        try:
            yield
        finally:
            if lock:
                native.unlock(lock)

    # ---- what it is

    @property
    def id(self) -> int:
        """Endpoint number in its stack."""
        return 2 * self.index + self.side

    @property
    def fd(self) -> int:
        """Descriptor of the lifeline."""
        return int(_native.call.load(self.handle + _H.fd))

    @property
    def joined(self) -> bool:
        """Whether the other end has accepted the offer."""
        return bool(_native.call.load(self.pair + _P.offer) == 0)

    @property
    def state(self) -> int:
        """RFC 9293 state."""
        return int(_native.call.load(self.tcb + _T.state))

    def happened(self, event: Event, mine: bool = True) -> None:
        """Move this end's state (or the other end's)."""
        tcb = self.tcb
        where = (tcb if mine else self.stack.tcb(self.index, 1 - self.side)) + _T.state
        _native.call.store(where, step(_native.call.load(where), event))
        if self.follow(must=False) or self.tcb != tcb:        # the copy may have missed it; a second time is no harm
            self.happened(event, mine)

    def lanes(self) -> tuple[str, str]:
        """Return (tx, rx): the lane that the next byte takes as far as both sides know now."""
        native = _native.call
        names = []
        for direction in (self.tx, self.rx):
            in_ring = native.load(direction + _D.nb) & 1
            wish = native.load(direction + _D.bell) != KERNEL and not native.load(direction + _D.kernel)
            names.append("ring" if in_ring or (wish and self.joined) else "kernel")
        return names[0], names[1]

    # ---- modes

    def set_timeout(self, timeout: float | None) -> None:
        """Follow `settimeout`.  Who doesn't block polls, so his input must be where the kernel sees it."""
        self.declared = -1 if timeout is None else int(timeout * 1e9)
        self.wait_at_most(self.declared)
        self.relax()
        for poller in self.watchers:
            poller.mode_changed(self)

    def set_limits(self, limits: tuple[int, int]) -> None:
        """Follow SO_RCVTIMEO and SO_SNDTIMEO: (receive, send) in ns, 0 for none."""
        self.limits = limits
        self.wait_at_most(_native.call.load(self.handle + _H.timeout_ns))

    def wait_at_most(self, timeout: int) -> None:
        """Tell the fast path how long a call may wait, and a receive in particular."""
        native, handle = _native.call, self.handle
        native.store(handle + _H.timeout_ns, timeout)
        native.store(handle + _H.receive_ns, self.limits[0] or -1 if timeout < 0 else timeout)

    def relax(self) -> None:
        """Rest where input is expected while no call waits."""
        timeout = _native.call.load(self.handle + _H.timeout_ns)
        self.rest(self.home or (KERNEL if timeout == 0 or self.exposed or self.watchers else RING))

    def rest(self, bell: int) -> None:
        """Say where input is looked for while no call waits: RING, KERNEL, or a waiter's number."""
        native = _native.call
        native.store(self.handle + _H.bell, self.home)        # where a wait goes back to
        rx = self.rx
        before = native.swap(rx + _D.bell, bell)
        if before == FUTEX:
            native.wake(rx + _D.bell)                         # a thread of ours sleeps there
        if bell == KERNEL and before != KERNEL and self.joined:
            native.after_bell(rx)                                                # SYNC asleep
            self.ask_spill()
        if self.follow(must=False) or self.rx != rx:          # it was said where nobody looks any more
            self.rest(bell if bell in (RING, KERNEL) else KERNEL)

    def read_by_us(self) -> bool:
        """Return whether the program receives through us, or did since its last `fileno()`."""
        if self.exposed and _native.call.load(self.rx + _D.head) != self.exposed_at:
            self.exposed = False
        return not self.exposed

    def ask_spill(self) -> bool:
        """Have unread ring bytes moved to the lifeline by their sender; return whether none are left."""
        native = _native.call
        for _ in range(2):
            self._through(self.rx + _D.tx_lock)               # whoever was sending saw the old bell
            if native.in_ring(self.handle) == 0 or native.load(self.rx + _D.tail) == native.load(self.rx + _D.head):
                return True
            twin = self.twin()
            if twin is None:
                break
            native.announce(twin.handle, twin.tx)
        native.ring_bell(self.tx + _D.bell, FUTEX, RING)      # a sleeping peer wakes, and finds the wish
        return False

    def held_by_others(self) -> bool:
        """Return whether other processes or duplicates have this end too: there is one bell for all."""
        return bool(_native.call.load(self.tcb + _T.holders) != 1)

    def unwatch(self) -> None:
        """Before the end of this object: no poller looks after it any more."""
        for poller in self.watchers:
            poller.gone(self)

    def twin(self) -> Any:
        """Return the other end if it is in this process too."""
        for other in living():
            if other.pair == self.pair and other.side != self.side and other.pid == os.getpid():
                return other
        return None

    def serve(self) -> None:
        """Do what the peer waits for: move what it hasn't read to the kernel lane, if it looks there now."""
        native = _native.call
        if native.load(self.tx + _D.bell) == KERNEL and native.load(self.tx + _D.nb) & 1:
            native.announce(self.handle, self.tx)

    def _through(self, lock: int) -> None:
        # Take and release a lock: whoever held it when we came is through.
        native = _native.call
        if native.take(lock, self.stack.holder):
            native.unlock(lock)
        else:
            self.break_lock(lock, must=False)

    def break_lock(self, lock: int, must: bool = True) -> None:
        """A lock was held for long: inherit it if its holder is dead; if the pair has moved, follow (see `follow`)."""
        native, stack, pair = _native.call, self.stack, self.pair
        holder = native.load(lock)
        if self.follow(must) or holder in (0, MOVED_LOCK) or native.load(pair + _P.state) == stacks.MOVED:
            return
        living = stack.holds(holder)
        # Another thread may have followed since: then the lock, or the number, is not what we take it for.
        ours = self.stack is stack and self.pair == pair and 0 <= lock - pair < PAIR_SIZE
        if not living and ours and inherit(self, pair, lock, holder):
            stack.count("locks_broken")
