"""How long one call may wait, and how it says that it waited long enough.

Who decides is the socket object first: with a time-out the call waits so long, whatever its flags and the descriptor say,
and raises TimeoutError.  Without one the call is the kernel's, which asks MSG_DONTWAIT, the descriptor's O_NONBLOCK and
SO_RCVTIMEO or SO_SNDTIMEO, and says EAGAIN.  Whoever has the descriptor may set those past us, so they are asked for
when a call is about to wait, and the fast path is told.
"""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from typing import Any

from shmstack import _native
from shmstack.tcp import lifeline
from shmstack.tcp.handle import HANDLE

RECEIVE, SEND = 0, 1
SLICE_NS = 100_000_000                                      # longest time without a look at the lifeline
DEEP_NS = 10_000_000_000                                    # longest sleep on the lifeline, which tells of all that may come
DEEP_AMONG_NS = 800_000_000                                 # where another thread may send, close or move meanwhile
MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
_TIMEOUT = HANDLE.at.timeout_ns


def error(number: int) -> OSError:
    """Return the exception that the standard library raises for this errno."""
    return OSError(number, os.strerror(number))


class Patience:
    """That of one call.

    Parameters
    ----------
    end : the endpoint
    flags : MSG_ flags
    which : RECEIVE or SEND

    Attributes
    ----------
    blocks : the call is the kernel's to end: it moves all it was asked to, unless a signal or SO_SNDTIMEO ends it
    """

    def __init__(self, end: Any, flags: int, which: int) -> None:
        self._end, self._which, self._dontwait = end, which, bool(flags & MSG_DONTWAIT)
        self._timeout = timeout = end.declared
        self._asked = False
        self._stop = time.monotonic_ns() + timeout if timeout > 0 else 0
        self._waits = timeout > 0 or _native.call.load(end.handle + _TIMEOUT) < 0 and not self._dontwait
        self.blocks = timeout <= 0 and self._waits

    def waits(self) -> bool:
        """Return whether the call waits, as far as is known without a system call."""
        return self._waits

    def may_wait(self) -> bool:
        """Return whether the call waits; ask the descriptor, once."""
        if not self._asked and self._timeout <= 0 and (self._timeout < 0 or self._end.lent):
            self._ask()
        self._asked = True
        return self._waits

    def _ask(self) -> None:
        end = self._end
        try:
            blocking = not fcntl.fcntl(end.fd, fcntl.F_GETFL) & os.O_NONBLOCK
        except (OSError, ValueError):                         # it isn't open any more: the call says so
            return
        if end.lent:
            with lifeline_of(end.fd) as sock:
                if sock is not None:
                    end.set_limits(lifeline.limits(sock))
        timeout = -1 if blocking else 0
        if _native.call.load(end.handle + _TIMEOUT) != timeout:
            end.wait_at_most(timeout)
        self._waits = self.blocks = blocking and not self._dontwait
        self.renew()

    def renew(self) -> None:
        """Begin to count SO_RCVTIMEO or SO_SNDTIMEO."""
        limit = self._end.limits[self._which] if self.blocks else 0
        if self._timeout <= 0:
            self._stop = time.monotonic_ns() + limit if limit else 0

    def left(self, most: int = SLICE_NS) -> int:
        """Return how many ns to wait now, at most `most`; raise if the call must not wait (longer)."""
        if not self.may_wait():
            raise error(errno.EAGAIN)
        if not self._stop:
            return most
        left = self._stop - time.monotonic_ns()
        if left <= 0:
            raise TimeoutError("timed out") if self._timeout > 0 else error(errno.EAGAIN)
        return min(left, most)


class lifeline_of:
    """Context: a plain socket object on a descriptor, which stays as it is; None if it isn't a socket any more."""

    def __init__(self, fd: int) -> None:
        try:
            # A new socket object makes its descriptor non-blocking if there is a default time-out.
            blocks = socket.getdefaulttimeout() is not None and os.get_blocking(fd)
            self.sock = lifeline.standard(fileno=fd) if fd >= 0 else None
            if blocks:
                os.set_blocking(fd, True)
        except OSError:
            self.sock = None

    def __enter__(self) -> Any:
        return self.sock

    def __exit__(self, *_: Any) -> None:
        if self.sock is not None:
            self.sock.detach()
