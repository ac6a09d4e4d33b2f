"""Sends and receives off the fast path.

The fast path (`tcp.method`) answers from the ring or waits a moment; all else comes here: time-outs, signals, the
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
from typing import Any

from shmstack import _native
from shmstack.ring.bell import KERNEL
from shmstack.shm.layout import DIRECTION
from shmstack.stack.attachment import Attachment
from shmstack.tcp import lifeline
from shmstack.tcp.codes import FULL, LOCKED, LOOK, NO_MEMORY, OVERFLOW
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.state import Event

_H, _D = HANDLE.at, DIRECTION.at
_EAGAIN = errno.EAGAIN
_POLLIN, _POLLOUT = 1, 4
_SLICE_NS = 100_000_000                                     # longest time without a look at the lifeline
_ROOM_NS = 20_000_000                                       # a sender waits this long for the ring before it overflows
_PIECE = 1 << 18
_TRIES = 200                                                # at a lock, by a call that must not wait; each is 0.1 ms or more


def error(number: int) -> OSError:
    """Return the exception that the standard library raises for this errno."""
    return OSError(number, os.strerror(number))


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
        extra, tries = 0 if waits else OVERFLOW, 0
        while True:
            self.serve()
            self.look_at_peer()
            got = native.send_buffer(handle, view, sent, flags | extra)
            if got > 0:
                sent += got
                if not whole or sent >= len(view):
                    return sent
                extra = 0 if waits else OVERFLOW
            elif got == -LOCKED:
                self.break_lock(self.tx + _D.tx_lock)
                self.break_lock(self.tx + _D.rx_lock)
                tries = self._locked_out(end, waits, tries)
            elif got == -NO_MEMORY:
                self.back_tail()
            elif got not in (-FULL, -_EAGAIN, -errno.EINTR):
                raise self.sending_error(-got, flags)
            elif not waits:
                raise error(_EAGAIN)
            else:
                left = self._left(end)
                if got == -FULL:
                    extra = 0 if native.wait_room(handle, len(view) - sent, min(left, _ROOM_NS)) else OVERFLOW
                else:
                    native.wait_lifeline(handle, _POLLOUT, min(left, _SLICE_NS))

    def back_tail(self) -> None:
        """Put memory behind the ring where it is written to next, or have the stream go by the lifeline."""
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

    def _locked_out(self, end: int, waits: bool, tries: int) -> int:
        # A living process keeps the lock (it is stopped, say): wait for it no longer than for anything else.
        self._left(end)
        if not waits and tries >= _TRIES:
            raise error(_EAGAIN)
        return tries + 1

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
        got, ask, tries = 0, 0, 0
        while True:
            new: int = native.recv_buffer(handle, buffer, got, size - got, flags, ask)
            if new > 0:
                got, ask = got + new, 0
                if not whole or got >= size:
                    return got
                continue
            if new == 0:
                self.happened(Event.FIN)
                return got
            if new == -LOCKED:
                self.break_lock(self.rx + _D.rx_lock)
                tries = self._locked_out(end, waits, tries)
                continue
            if new == -LOOK and not ask and (not waits or native.load(self.rx + _D.fin)):
                ask = 1                                       # empty: the kernel says whether the stream ended
                continue
            if new not in (-LOOK, -_EAGAIN, -errno.EINTR):
                if got:
                    return got
                raise error(-new)
            if not waits:
                raise error(_EAGAIN)
            self.serve()
            try:
                left = self._left(end)
            except TimeoutError:
                if got:
                    return got
                raise
            self.exposed = False                              # whoever waits here doesn't poll
            ended = native.load(self.rx + _D.fin) and native.load(self.rx + _D.tail) == native.load(self.rx + _D.head)
            if ask and ended:                                 # the FIN itself is on its way, or others hold the descriptor
                native.wait_lifeline(handle, _POLLIN, min(left, _SLICE_NS))
            else:
                ask = 0 if native.wait_arrived(handle, min(left, _SLICE_NS)) else 1


class lifeline_of:
    """Context: a plain socket object on a descriptor, which stays open; None if it isn't a socket any more."""

    def __init__(self, fd: int) -> None:
        try:
            self.sock = lifeline.standard(fileno=fd) if fd >= 0 else None
        except OSError:
            self.sock = None

    def __enter__(self) -> Any:
        return self.sock

    def __exit__(self, *_: Any) -> None:
        if self.sock is not None:
            self.sock.detach()
