"""Sends and receives off the fast path.

The fast path (`tcp.method`) answers from the ring or waits a moment; all else comes here: time-outs, signals, the
kernel lane, the end of the stream, a full ring, a lock whose holder died, a peer that was killed.

A blocking call here is a loop of bounded waits.  Between two of them the interpreter runs signal handlers, and the
lifeline is asked whether the peer still exists.  A signal that comes just there doesn't end a send that took a part of
its bytes, as one in a wait does; one whose handler raises always does.  A receive that waited in vain for a while sleeps
on the lifeline itself.
"""
from __future__ import annotations

import errno
import signal
import socket
import sys
import time
from threading import get_ident
from typing import Any, Callable

from shmstack import _native
from shmstack.ring.bell import KERNEL
from shmstack.shm.layout import DIRECTION
from shmstack.stack.attachment import Attachment
from shmstack.stack.inherit import all_came
from shmstack.stack.patience import DEEP_AMONG_NS, DEEP_NS, RECEIVE, SEND, SLICE_NS, Patience, error, lifeline_of
from shmstack.tcp import lifeline
from shmstack.tcp.codes import CHANGED, FULL, LOCKED, LOOK, MEND, NO_MEMORY, OVERFLOW
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.state import Event

MSG_NOSIGNAL, MSG_PEEK, MSG_WAITALL = (
    int(flag) for flag in (socket.MSG_NOSIGNAL, socket.MSG_PEEK, socket.MSG_WAITALL))     # an IntFlag is slow
_H, _D = HANDLE.at, DIRECTION.at
_EAGAIN = errno.EAGAIN
_POLLIN, _POLLOUT, _POLLRDHUP = 1, 4, 0x2000
_MOMENT_NS = 1_000_000
_ROOM_NS = 20_000_000                                       # a sender waits this long for the ring before it overflows
_PIECE = 1 << 18
_TRIES = 200                                                # at a lock, by a call that must not wait; each is 0.1 ms or more


class Transfer(Attachment):
    """An attachment that moves bytes."""

    # ---- sending

    def send(self, data: Any, flags: int = 0, sent: int = 0, whole: bool = False) -> int:
        """Send `data` from byte `sent` on; return the position reached.

        Parameters
        ----------
        data : contiguous buffer
        flags : MSG_ flags
        whole : wait until all is sent (sendall, and send on a blocking socket, as Linux does)
        """
        with memoryview(data) as view:                        # released even if a traceback stays
            if self.shut:
                raise self.sending_error(errno.EPIPE, flags)
            return self._within(self._send, view, flags, sent, whole) if view.nbytes else sent

    def _within(self, call: Callable[..., int], *args: Any) -> int:
        me = get_ident()
        self.inside.add(me)
        try:
            return call(*args)
        finally:
            self.inside.discard(me)

    def _send(self, view: memoryview, flags: int, sent: int, whole: bool) -> int:
        native, handle, size, wait = _native.call, self.handle, view.nbytes, Patience(self, flags, SEND)
        extra, tries, renewed = 0 if wait.waits() else OVERFLOW, 0, sent
        while True:
            self.serve()
            self.look_at_peer()
            got = native.send_buffer(handle, view, sent, flags | extra)
            if got > 0:
                sent += got
                if sent >= size or not (whole or wait.blocks):
                    return sent
                extra = 0 if wait.waits() else OVERFLOW
                continue
            if got == -LOCKED:
                self.break_lock(self.tx + _D.tx_lock)
                self.break_lock(self.tx + _D.rx_lock)
                tries = self._locked_out(wait, tries)
            elif got == -NO_MEMORY:
                self._extend()
            elif got not in (-FULL, -_EAGAIN, -errno.EINTR):
                raise self.sending_error(self._told() or -got, flags)    # also after a part
            elif got == -FULL and not wait.may_wait():
                extra = OVERFLOW                              # the descriptor doesn't wait, although the socket would
            else:
                try:
                    extra = OVERFLOW if self._wait_to_send(got == -FULL, size - sent, wait.left()) else 0
                except InterruptedError:
                    if sent and wait.blocks and not whole:
                        return sent                           # as Linux does; sendall goes on
                except BlockingIOError:
                    if sent and not whole:
                        return sent
                    if not wait.blocks or sent == renewed:
                        raise
                    wait.renew()                              # SO_SNDTIMEO is that of each send that makes up sendall
                    renewed = sent

    def _wait_to_send(self, full: bool, size: int, limit_ns: int) -> bool:
        """Wait for room in a full ring, or else in the kernel; return whether there still is none in the ring.

        Raises InterruptedError at a signal.
        """
        native = _native.call
        if full:
            came = native.wait_room(self.handle, size, min(limit_ns, _ROOM_NS))
        else:
            came = native.wait_lifeline(self.handle, _POLLOUT, limit_ns)
        if came == -errno.EINTR:
            raise InterruptedError
        return full and not came

    def _extend(self) -> None:
        native = _native.call
        capacity = self.stack.capacity
        index = native.load(self.tx + _D.tail) & (capacity - 1)
        if self.stack.back(self.index, self.side, index):
            self.stack.count("not_no_memory")
            native.store(self.tx + _D.kernel, 1)              # /dev/shm is full: the lifeline has memory of its own

    def sending_error(self, number: int, flags: int) -> OSError:
        """Return the exception for a failed send, after SIGPIPE if the caller is due one."""
        if number == errno.EPIPE and not flags & MSG_NOSIGNAL:
            signal.raise_signal(signal.SIGPIPE)
        return error(number)

    def look_at_peer(self) -> None:
        """If the peer takes nothing from the ring, ask the kernel whether any process still holds its end."""
        native, handle = _native.call, self.handle
        head, tail = native.load(self.tx + _D.head), native.load(self.tx + _D.tail)
        if head >= native.load(handle + _H.checked_at) or not native.load(self.tx + _D.nb) & 1:
            native.store(handle + _H.checked_at, tail)
        elif self.peer_gone():
            self.stack.count("peer_died")
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

    def _locked_out(self, wait: Patience, tries: int) -> int:
        # A living process keeps the lock (it is stopped, say): wait for it no longer than for anything else.
        if wait.waits():
            wait.left()
        elif tries >= _TRIES:
            raise error(_EAGAIN)
        return tries + 1

    # ---- receiving

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive up to `size` bytes."""
        room = bytearray(min(size, _PIECE) if not flags & MSG_WAITALL else size)
        got = self.recv_into(room, len(room), flags)
        del room[got:]
        return bytes(room)

    def recv_into(self, buffer: Any, size: int, flags: int = 0) -> int:
        """Receive up to `size` (> 0) bytes into `buffer`; return the count, 0 at the end of the stream."""
        return self._within(self._recv_into, buffer, size, flags)

    def _recv_into(self, buffer: Any, size: int, flags: int) -> int:
        native, handle, wait = _native.call, self.handle, Patience(self, flags, RECEIVE)
        whole = flags & MSG_WAITALL and wait.blocks
        flags &= ~MSG_WAITALL
        if whole and flags & MSG_PEEK:
            return self._peek_all(buffer, size, flags)
        got, ask, tries, most = 0, 0, 0, SLICE_NS
        while True:
            new: int = native.recv_buffer(handle, buffer, got, size - got, flags, ask)
            if new > 0:
                got, ask = got + new, 0
                if not whole or got >= size:
                    return got
                continue
            if new == 0:
                self.happened(Event.FIN)
                if not got and (lost := self._told()):
                    raise error(lost)
                return got
            if new == -CHANGED:
                ask = 0
                continue
            if new == -LOCKED or (new == -MEND and all_came(self)):
                self.break_lock(self.rx + (_D.rx_lock if new == -LOCKED else _D.tx_lock))
                tries = self._locked_out(wait, tries)
                continue
            if new == -LOOK and not ask and (native.load(self.rx + _D.fin) or not wait.may_wait()):
                ask = 1                                       # empty: the kernel says whether the stream ended
                continue
            if new == -_EAGAIN and tries < _TRIES // 10 and not wait.may_wait() and native.under_way(handle):
                tries += 1                                    # its arrival was told already, perhaps
                native.wait_lifeline(handle, _POLLIN, _MOMENT_NS)
                continue
            try:
                if new not in (-LOOK, -MEND, -_EAGAIN, -errno.EINTR):
                    raise error(not got and self._told() or -new)
                left = wait.left(most)
                self.serve()
                ask = self._wait_to_receive(ask, left)
                most = self._may_sleep() if ask else SLICE_NS
            except OSError as over:
                if got:
                    return got
                if not isinstance(over, InterruptedError):
                    raise

    def _told(self) -> int:
        """Return the errno that the kernel told already, as it does once, and no call has raised yet; 0 if there is none."""
        return int(_native.call.swap(self.handle + _H.lost, 0))

    def _peek_all(self, buffer: Any, size: int, flags: int) -> int:
        """Look at `size` bytes once there are as many (MSG_PEEK | MSG_WAITALL), or the stream ends, or the time-out is over.

        They may lie in both lanes, so from the first one on all are sent to the kernel's; and as nothing wakes who waits for
        more of what is there already, this looks again now and then.
        """
        wait, pause = Patience(self, flags, RECEIVE), 0.0005
        got = self._recv_into(buffer, size, flags)
        try:
            while 0 < got < size:
                wait.left()
                self.rest(KERNEL)
                ended = _native.call.wait_lifeline(self.handle, _POLLRDHUP, 0)
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
                got = max(got, _native.call.recv_buffer(self.handle, buffer, 0, size, flags, 0))
                if ended:
                    break
        except OSError:
            pass                                              # SO_RCVTIMEO: what there is
        finally:
            self.relax()
        return got

    def _in_ring(self) -> bool:
        native = _native.call
        return bool(native.in_ring(self.handle) and native.load(self.rx + _D.tail) != native.load(self.rx + _D.head))

    def _may_sleep(self) -> int:
        """Return how many ns the next wait may sleep, after one in vain.

        Nobody can wake who sleeps on the lifeline for a favour: so not while the peer may need bytes moved there.  Nor
        where another process may wait for the same input, and have it come by the ring.
        """
        native = _native.call
        if self.held_by_others() or native.load(self.tx + _D.head) != native.load(self.tx + _D.tail):
            return SLICE_NS
        return DEEP_NS if len(sys._current_frames()) == 1 else DEEP_AMONG_NS

    def _wait_to_receive(self, ask: int, limit_ns: int) -> int:
        """Wait for input; return whether to ask the kernel for it next.  Raises InterruptedError at a signal."""
        native, handle = _native.call, self.handle
        self.exposed = False                                  # whoever waits here doesn't poll
        ended = native.load(self.rx + _D.fin) and native.load(self.rx + _D.tail) == native.load(self.rx + _D.head)
        if ask and ended:                                     # the FIN itself is on its way, or others hold the descriptor
            came = native.wait_lifeline(handle, _POLLIN, limit_ns)
        else:
            came = native.wait_arrived(handle, limit_ns)
            # After a sleep on the lifeline it is that which may have something, the end for one; but the ring comes first.
            ask = 0 if came > 0 and (limit_ns <= SLICE_NS or self._in_ring()) else 1
        if came == -errno.EINTR:
            raise InterruptedError
        return ask
