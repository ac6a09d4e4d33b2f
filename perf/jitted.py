"""The jitted program: its loops, and the channel that runs them.

Everything between two looks at the clock is one compiled function on each side; a user's own code would stand where
the message is answered.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy
from numba import njit

from perf.ceilings import TIMED_TOGETHER, now_ns
from perf.channels import Channel
from shmstack import jit


@njit("int64(int64, uint8[::1])", cache=True)
def fill(handle: int, data: Any) -> int:
    """Receive until `data` is full; return what was received last."""
    got = jit.recv(handle, data)
    done = got
    while got > 0 and done < data.size:
        got = jit.recv(handle, data[done:])
        done += got
    return got


@njit("int64(int64, uint8[::1], int64[::1])", cache=True)
def ask(handle: int, data: Any, times: Any) -> int:
    """Make TIMED_TOGETHER round trips for each of `times` but the last two, which are scratch."""
    scratch = times.ctypes.data + 8 * (times.size - 2)
    began = now_ns(scratch)
    for batch in range(times.size - 2):
        for _ in range(TIMED_TOGETHER):
            sent = jit.send(handle, data)
            if sent <= 0:
                return sent
            got = fill(handle, data)
            if got <= 0:
                return got
        ended = now_ns(scratch)
        times[batch] = (ended - began) // TIMED_TOGETHER
        began = ended
    return 1


@njit("int64(int64, uint8[::1], int64)", cache=True)
def echo(handle: int, data: Any, count: int) -> int:
    """Answer `count` messages."""
    for _ in range(count):
        got = fill(handle, data)
        if got <= 0:
            return got
        sent = jit.send(handle, data)
        if sent <= 0:
            return sent
    return 1


class JitChannel(Channel):
    """A socket in compiled loops; times are means of ten round trips, as those of two cache lines."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock.sendall, sock.recv, sock.recv_into, sock.close)
        self._handle = jit.handle(sock)

    def ask(self, size: int, count: int) -> array[int]:
        """Make about `count` round trips (a multiple of ten); return batch means in ns."""
        times = numpy.zeros(-(-count // TIMED_TOGETHER) + 2, numpy.int64)
        _good(ask(self._handle, numpy.zeros(size, numpy.uint8), times))
        return array("q", times[:-2].tobytes())

    def echo(self, size: int, count: int) -> None:
        """Answer them."""
        whole = -(-count // TIMED_TOGETHER) * TIMED_TOGETHER
        _good(echo(self._handle, numpy.zeros(size, numpy.uint8), whole))


def _good(answer: int) -> None:
    if answer <= 0:
        raise OSError(-answer, "the connection ended")
