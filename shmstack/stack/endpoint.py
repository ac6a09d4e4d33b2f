"""An endpoint: one end of an accelerated connection as a Python object, and everything its calls do off the fast path.

The fast path (`tcp.entry`) answers from the ring or waits a moment; all else comes here: time-outs, signals, the
kernel lane, the end of the stream, a full ring, a lock whose holder died, a peer that was killed.

A blocking call here is a loop of bounded waits.  Between two of them the interpreter runs signal handlers, and the
lifeline is asked whether the peer still exists.
"""
from __future__ import annotations

import errno
import os
import signal
import socket
import time
import weakref
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from shmstack import _native
from shmstack.shm.layout import DIRECTION, PAIR, PROCESSES_MAX, TCB
from shmstack.stack import stack as stacks
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.state import Event, State, step

SYN_SENT = State.SYN_SENT
_H, _D, _P, _T = HANDLE.at, DIRECTION.at, PAIR.at, TCB.at
RING, FUTEX, KERNEL = 0, 1, 2                               # ring.doorbell, which needs numba to import
_EAGAIN = errno.EAGAIN
_LOCKED, _FULL, _LOOK, _NO_MEMORY, _OVERFLOW = 4096, 4097, 4098, 4099, 1 << 32      # tcp.loopback
_POLLIN, _POLLOUT = 1, 4
_SLICE_NS = 100_000_000                                     # longest time without a look at the lifeline
_ROOM_NS = 20_000_000                                       # a sender waits this long for the ring before it overflows
_HAND_BACK_SECONDS = 0.5
_STILL_SECONDS = 1.0                                        # longest wait for a lock that is held for one copy
_PIECE = 1 << 18

endpoints: weakref.WeakSet[Endpoint] = weakref.WeakSet()    # of this process
_graveyard: list[int] = []                                  # handles that a thread may still sleep in


def _nobody() -> None:
    return None


def error(number: int) -> OSError:
    """Return the exception that the standard library raises for this errno."""
    return OSError(number, os.strerror(number))


class Endpoint:
    """One end of a pair in a stack, held by one socket object of one process.

    Parameters
    ----------
    stack, index, side : where it lives; side 0 is the active opener
    fd : descriptor of the lifeline
    timeout : as `socket.gettimeout` returns it
    spin_ns : how long a wait spins
    """

    home = 0                                                # bell of the poller's waiter that looks after it, if any
    watchers: tuple[Any, ...] = ()                          # pollers that it is registered with
    following = False                                       # on its way to another stack
    sleepers = 0                                            # threads that sleep in the kernel for its input

    def __init__(self, stack: Stack, index: int, side: int, fd: int, timeout: float | None, spin_ns: int) -> None:
        native = _native.call
        self.stack, self.index, self.side, self.pid = stack, index, side, os.getpid()
        self.offer: str | None = None
        self.owner: Callable[[], Any] = _nobody               # the socket object, or None
        self.cookie = 0
        self.shut = self.free_after = self.counted = False
        self.handle = handle = native.allocate(HANDLE.size)
        self._point()
        for field, value in ((_H.fd, fd), (_H.side, side), (_H.spin_ns, spin_ns), (_H.held_spin, 1000 if spin_ns else 0)):
            native.store(handle + field, value)
        with self.still():
            native.fetch_add(self.tcb + _T.holders, 1)
            self.counted = True
        self.set_timeout(timeout)
        endpoints.add(self)

    def _point(self) -> None:
        # All addresses of the handle, from numbers that were checked at attach; first what belongs to the locks, which
        # are found by the last two: a thread that sees the new ones sees all of it.
        native, stack, handle = _native.call, self.stack, self.handle
        base = stack.segment.base
        self.pair, self.tcb = stack.pair(self.index), stack.tcb(self.index, self.side)
        self.tx, self.rx = (stack.direction(self.index, side) for side in (self.side, 1 - self.side))
        self.generation = native.load(self.pair + _P.generation)
        mine, theirs = (stack.ring_offset(self.index, side) for side in (self.side, 1 - self.side))
        for field, value in (
                (_H.pair, self.pair), (_H.tx_ring, base + mine), (_H.rx_ring, base + theirs), (_H.capacity, stack.capacity),
                (_H.me, stack.holder), (_H.memory_fd, stack.segment.fd), (_H.tx_offset, mine), (_H.pair_index, self.index),
                (_H.generation, self.generation), (_H.waiters, stack.waiters), (_H.waiter_size, stack.waiter_size),
                (_H.tx, self.tx), (_H.rx, self.rx)):
            native.store(handle + field, value)

    # ---- moves

    def follow(self, must: bool = True) -> bool:
        """If the pair was moved to another stack, go there; return whether it was.

        Parameters
        ----------
        must : raise ConnectionResetError if it went where this process can't follow
        """
        if _native.call.load(self.pair + _P.state) != stacks.MOVED or self.following:
            return False
        from shmstack.stack import follow
        try:
            follow.follow(self)
        except OSError:
            if must:
                raise
            return False
        return True

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
    def joined(self) -> bool:
        """Whether the other end has accepted the offer."""
        return bool(_native.call.load(self.pair + _P.state) in (stacks.ESTABLISHED, stacks.MOVED))

    @property
    def state(self) -> int:
        """RFC 9293 state."""
        return int(_native.call.load(self.tcb + _T.state))

    def happened(self, event: Event, mine: bool = True) -> None:
        """Move this end's state (or the other end's)."""
        where = (self.tcb if mine else self.stack.tcb(self.index, 1 - self.side)) + _T.state
        _native.call.store(where, step(_native.call.load(where), event))
        if self.follow(must=False):                           # the copy may have missed it; a second time is no harm
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
        native = _native.call
        native.store(self.handle + _H.timeout_ns, -1 if timeout is None else int(timeout * 1e9))
        self.relax()

    def relax(self) -> None:
        """Rest where input is expected while no call waits."""
        timeout = _native.call.load(self.handle + _H.timeout_ns)
        self.rest(self.home or (KERNEL if timeout == 0 or not self.joined else RING))

    def rest(self, bell: int) -> None:
        """Say where input is looked for while no call waits: RING, KERNEL, or a waiter's number."""
        native = _native.call
        native.store(self.handle + _H.bell, self.home)        # where a wait goes back to
        before = native.swap(self.rx + _D.bell, bell)
        if before == FUTEX:
            native.wake(self.rx + _D.bell)                    # a thread of ours sleeps there
        if bell == KERNEL and before != KERNEL and self.joined:
            native.barrier()
            self.ask_spill()
        if self.follow(must=False):
            self.rest(bell if bell in (RING, KERNEL) else KERNEL)

    def expose(self) -> None:
        """Somebody is given the descriptor: from now on the kernel must see the input, until a call waits again."""
        self.rest(KERNEL)

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

    def twin(self) -> Endpoint | None:
        """Return the other end if it is in this process too."""
        for other in list(endpoints):
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
            try:
                self.break_lock(lock)
            except ConnectionResetError:
                pass                                          # for the next send or recv to say

    def break_lock(self, lock: int) -> None:
        """A lock was held for long: release it if its holder is dead; if the pair has moved, follow."""
        native = _native.call
        holder = native.load(lock)
        if self.follow() or not holder:
            return
        living = 0 < holder <= PROCESSES_MAX and self.stack.segment.alive(holder - 1)
        if not living and native.break_lock(lock, holder):
            self.stack.count("locks_broken")

    # ---- sending

    def send(self, data: Any, flags: int = 0, sent: int = 0, whole: bool = False) -> int:
        """Send `data` from byte `sent` on; return the position reached.

        Parameters
        ----------
        data : contiguous buffer
        flags : MSG_ flags
        whole : wait until all is sent (sendall, and send on a blocking socket, as Linux does)
        """
        with memoryview(data) as whole_view, whole_view.cast("B") as view:    # released even if a traceback stays
            if self.shut:
                raise self.sending_error(errno.EPIPE, flags)
            return self._send(view, flags, sent, whole) if view else sent

    def _send(self, view: memoryview, flags: int, sent: int, whole: bool) -> int:
        native, handle = _native.call, self.handle
        timeout = native.load(handle + _H.timeout_ns)
        waits = timeout != 0 and not flags & socket.MSG_DONTWAIT
        whole = whole or (waits and timeout < 0)
        end = time.monotonic_ns() + timeout if timeout > 0 else 0
        extra = 0 if waits else _OVERFLOW
        while True:
            self.serve()
            self.look_at_peer()
            got = native.send_buffer(handle, view, sent, flags | extra)
            if got > 0:
                sent += got
                if not whole or sent >= len(view):
                    return sent
                extra = 0 if waits else _OVERFLOW
            elif got == -_LOCKED:
                self.break_lock(self.tx + _D.tx_lock)
                self.break_lock(self.tx + _D.rx_lock)
            elif got == -_NO_MEMORY:
                self._extend()
            elif got not in (-_FULL, -_EAGAIN, -errno.EINTR):
                raise self.sending_error(-got, flags)
            elif not waits:
                raise error(_EAGAIN)
            else:
                left = self._left(end)
                if got == -_FULL:
                    extra = 0 if native.wait_room(handle, len(view) - sent, min(left, _ROOM_NS)) else _OVERFLOW
                else:
                    native.wait_lifeline(handle, _POLLOUT, min(left, _SLICE_NS))

    def _extend(self) -> None:
        native = _native.call
        capacity = self.stack.capacity
        index = native.load(self.tx + _D.tail) & (capacity - 1)
        if self.stack.back(self.index, self.side, index):
            self.stack.count("not_no_memory")
            native.store(self.tx + _D.kernel, 1)              # /dev/shm is full: the lifeline has memory of its own

    def sending_error(self, number: int, flags: int) -> OSError:
        """Return the exception for a failed send, after SIGPIPE if the caller is due one."""
        if number == errno.EPIPE and not flags & socket.MSG_NOSIGNAL:
            signal.raise_signal(signal.SIGPIPE)
        return error(number)

    def look_at_peer(self) -> None:
        """If the peer takes nothing from the ring, ask the kernel whether any process still holds its end."""
        native, handle = _native.call, self.handle
        head, tail = native.load(self.tx + _D.head), native.load(self.tx + _D.tail)
        if head >= native.load(handle + _H.checked_at) or not native.load(self.tx + _D.nb) & 1:
            native.store(handle + _H.checked_at, tail)
        elif self.peer_gone():
            # On behalf of the dead, who left bytes, bounds and perhaps a lock: the kernel knows what to say.
            self.break_lock(self.tx + _D.rx_lock)
            native.store(self.tx + _D.passed, native.load(self.tx + _D.nb))
            native.store(self.tx + _D.head, tail)
            native.store(self.tx + _D.bell, KERNEL)
        native.touch(handle)

    def peer_gone(self) -> bool:
        """Return whether no process holds the other end any more."""
        with lifeline_of(self.fd) as sock:
            if sock is None:
                return True
            try:
                local, remote = sock.getsockname(), sock.getpeername()
            except OSError:
                return True
            found = lifeline.peer(sock.family, local[:2], remote[:2], self.stack.netns)
            return found is not None and not found.held

    @property
    def fd(self) -> int:
        """Descriptor of the lifeline."""
        return int(_native.call.load(self.handle + _H.fd))

    def _left(self, end: int) -> int:
        if not end:
            return _SLICE_NS
        left = end - time.monotonic_ns()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    # ---- receiving

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive up to `size` bytes."""
        room = bytearray(min(size, _PIECE) if not flags & socket.MSG_WAITALL else size)
        got = self.recv_into(room, len(room), flags)
        del room[got:]
        return bytes(room)

    def recv_into(self, buffer: Any, size: int, flags: int = 0) -> int:
        """Receive up to `size` (> 0) bytes into `buffer`; return the count, 0 at the end of the stream."""
        native, handle = _native.call, self.handle
        timeout = native.load(handle + _H.timeout_ns)
        waits = timeout != 0 and not flags & socket.MSG_DONTWAIT
        whole = flags & socket.MSG_WAITALL and waits and not flags & socket.MSG_PEEK
        flags &= ~socket.MSG_WAITALL
        end = time.monotonic_ns() + timeout if timeout > 0 else 0
        got, ask = 0, 0
        while True:
            new = native.recv_buffer(handle, buffer, got, size - got, flags, ask)
            if new > 0:
                got, ask = got + new, 0
                if not whole or got >= size:
                    return got
                continue
            if new == 0:
                self.happened(Event.FIN)
                return got
            if new == -_LOCKED:
                self.break_lock(self.rx + _D.rx_lock)
                continue
            if new == -_LOOK and not ask and (not waits or native.load(self.rx + _D.fin)):
                ask = 1                                       # empty: the kernel says whether the stream ended
                continue
            if new not in (-_LOOK, -_EAGAIN, -errno.EINTR):
                if got:
                    return got
                raise error(-new)
            if ask and native.load(self.rx + _D.fin) and native.in_ring(handle) \
                    and native.load(self.rx + _D.tail) == native.load(self.rx + _D.head):
                return got                                    # the FIN segment itself may still be on its way
            if not waits:
                raise error(_EAGAIN)
            self.serve()
            try:
                left = self._left(end)
            except TimeoutError:
                if got:
                    return got
                raise
            ask = 0 if native.wait_arrived(handle, min(left, _SLICE_NS)) else 1

    # ---- ending

    def shutdown_send(self) -> None:
        """Mark the end of what this end sends; the caller then shuts the lifeline down."""
        native = _native.call
        if not self.shut:
            self.shut = True
            self.serve()
            with self.still():
                native.store(self.tx + _D.fin, 1)
                self.happened(Event.CLOSE)
                self.happened(Event.ACK_OF_FIN)
            native.store(self.handle + _H.shut, 1)
            native.announce(self.handle, self.tx)

    def shutdown_receive(self) -> None:
        """After the lifeline was shut for reading: wake whoever waits for input; it gets what is there, then EOF."""
        with self.still():
            _native.call.store(self.rx + _D.fin, 1)
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
        self.serve()
        with self.still():
            last = native.fetch_add(self.tcb + _T.holders, -1) <= 1
            native.store(self.handle + _H.dead, 1)
            if last:
                self.withdraw()
                if self.unread() and abort is not None:
                    abort()
                elif not self.shut:
                    native.store(self.tx + _D.fin, 1)
                    self.happened(Event.CLOSE)
                native.store(self.rx + _D.bell, KERNEL)       # what still comes is the kernel's to answer
                native.ring_bell(self.rx + _D.stalled, 1, 0)
                self._done()
        endpoints.discard(self)

    def closed(self) -> None:
        """After the descriptor was closed: let a sleeping peer look."""
        native = _native.call
        native.ring_bell(self.tx + _D.bell, FUTEX, RING)
        native.wake(self.rx + _D.bell)                        # threads of our own that wait on this handle
        native.wake(self.tx + _D.stalled)
        self._bury()

    def _done(self) -> None:
        # The second end that is done with the pair frees it.
        native = _native.call
        before = native.fetch_or(self.pair + _P.closed, 1 << self.side)
        self.free_after = before | 1 << self.side == 3 or not self.joined

    def _bury(self) -> None:
        native = _native.call
        if self.free_after:
            self.free_after = False
            self.stack.release_pair(self.index)
        if self.handle:
            _graveyard.append(self.handle)
            self.handle = 0
            if len(_graveyard) > 64:
                for handle in _graveyard[:32]:
                    if native.load(handle + _H.users) == 0:
                        native.free(handle)
                        _graveyard.remove(handle)

    def withdraw(self) -> bool:
        """Take the offer back if nobody has accepted it yet; return whether nobody can any more."""
        if self.offer is not None:
            _remove(self.offer)
            self.offer = None
            _native.call.cas(self.pair + _P.state, stacks.OFFERED, stacks.WITHDRAWN)
        return not self.joined

    def hand_back(self) -> None:
        """Leave both directions to the kernel for good, and the pair: the descriptor is somebody else's now.

        What the peer has not read yet stays in the ring for it.  What we have not read its process moves to the
        lifeline, at its next call at the latest; this waits for that, for a while.
        """
        native = _native.call
        self.unwatch()
        self.withdraw()
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
        self.stack.count("handed_back")
        with self.still():
            native.fetch_add(self.tcb + _T.holders, -1)
            native.store(self.handle + _H.dead, 1)
            self._done()
        native.ring_bell(self.tx + _D.bell, FUTEX, RING)
        self._bury()
        endpoints.discard(self)

    # ---- fork

    def shared(self) -> None:
        """Before a fork: the child will hold this end too."""
        with self.still():
            _native.call.fetch_add(self.tcb + _T.holders, 1)

    def adopt_in_child(self) -> None:
        """In the child: act under the child's own slot, and drop what threads of the parent were doing."""
        self.pid = os.getpid()
        _native.call.store(self.handle + _H.me, self.stack.holder)
        _native.call.store(self.handle + _H.users, 0)

    def __del__(self) -> None:
        if getattr(self, "handle", 0) and self.pid == os.getpid():
            self.close()
            self.closed()


def _remove(path: str) -> None:
    """Remove a record of ours; the accepting side may have been quicker."""
    try:
        os.unlink(path)
    except OSError:
        pass


class lifeline_of:
    """Context: a plain socket object on a descriptor, which stays open; None if it isn't a socket any more."""

    def __init__(self, fd: int) -> None:
        try:
            self.sock = lifeline._plain(fileno=fd) if fd >= 0 else None
        except OSError:
            self.sock = None

    def __enter__(self) -> Any:
        return self.sock

    def __exit__(self, *_: Any) -> None:
        if self.sock is not None:
            self.sock.detach()
