"""The close of a socket that other threads wait in: as in the kernel, their calls go on, and the connection ends with them.

The descriptor's number is free at once.  A duplicate keeps the lifeline open meanwhile, and a thread looks every now and
then whether the calls have returned.
"""
from __future__ import annotations

import os
import socket
import struct
import threading
import time
from typing import Any

from shmstack import _native
from shmstack.stack.patience import lifeline_of
from shmstack.tcp.handle import HANDLE

_H = HANDLE.at
_LOOK_SECONDS = (0.001, 0.02)                               # between two looks, at first and later
_QUIET = 3                                                  # looks: a call is not seen on its way from the fast path
_parting: dict[Any, int] = {}                               # endpoint -> the duplicate


def _nobody() -> None:
    return None


def busy(end: Any) -> bool:
    """Return whether threads are inside of calls."""
    return bool(end.inside or _native.call.load(end.handle + _H.users))


def later(end: Any) -> None:
    """Give an endpoint up once its calls have returned; the caller closes the descriptor now."""
    end.unwatch()
    end.owner = _nobody                                       # the number is somebody else's in a moment
    _parting[end] = kept = os.dup(end.fd)
    _native.call.store(end.handle + _H.fd, kept)
    threading.Thread(target=_wait, args=(end,), name="shmstack-close", daemon=True).start()


def _wait(end: Any) -> None:
    quiet, pause = 0, _LOOK_SECONDS[0]
    while quiet < _QUIET:
        time.sleep(pause)
        quiet = 0 if busy(end) else quiet + 1
        pause = _LOOK_SECONDS[0] if quiet else min(2 * pause, _LOOK_SECONDS[1])
    _end(end)


def _end(end: Any) -> None:
    fd = _parting.pop(end, -1)
    if fd >= 0:
        end.close(lambda: _reset(fd))
        os.close(fd)
        end.closed()


def _reset(fd: int) -> None:
    with lifeline_of(fd) as sock:
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def after_fork_in_child() -> None:
    """Drop what only waits for threads of the parent."""
    for end in list(_parting):
        _end(end)
