"""The accelerated sockets among the descriptors of one `poll` or `select` call.

Guarantee: the call returns what the kernel's would, with the ring's bytes taken for readable too; it never sleeps
while there is something to report.

Theory.  Both calls name their descriptors each time, so work that grows with their number is theirs anyway: look at
every ring, spin over all of them with the peers sending there, then turn every bell to the kernel lane, look once
more, and sleep in the kernel, where the message that comes is the wake-up call.

# SYNC asleep: (bell := KERNEL; membarrier; look) against (tail; look at bell)

Bells are left alone that somebody else in this process relies on: a poller that looks after the socket, or another
thread that sleeps in the kernel.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from shmstack import _native
from shmstack.ring.bell import KERNEL, RING
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.spin import Spin
from shmstack.tcp.handle import HANDLE

_USERS = HANDLE.at.users
Answer = TypeVar("Answer")
SLICE, MOST_SLICE = 1.0, 16.0         # the first and the longest sleep, should a peer's wake-up ever fail
SHORT_SLICE = 0.001                   # where there is no membarrier
_TURN_NS = 1_000_000                  # longest spin without a look at signals


class Crowd:
    """Some endpoints of this process.

    Parameters
    ----------
    ends : iterable of Endpoint
    """

    def __init__(self, ends: Iterable[Endpoint]) -> None:
        native = _native.call
        self.ends: list[Endpoint] = []
        ends = tuple(ends)
        self.address = native.allocate(16 * (len(ends) or 1))
        for end in ends:
            if end.open:
                native.fetch_add(end.handle + _USERS, 1)      # threads that move it see that somebody looks
                native.store(self.address + 16 * len(self.ends), end.handle)
                self.ends.append(end)
        self.count = len(self.ends)

    def __del__(self) -> None:
        native = _native.call
        for index in range(len(self.ends)):
            native.fetch_add(native.load(self.address + 16 * index) + _USERS, -1)
        native.free(self.address)

    def ready(self) -> list[Endpoint]:
        """Return those whose ring holds bytes to be received."""
        native = _native.call
        if not native.look(self.address, self.count):
            return []
        return [end for index, end in enumerate(self.ends)
                if (ready := native.load(self.address + 16 * index + 8)) == 1 or (ready and end.ready())]

    def lead_to_kernel(self) -> float:
        """Have all input come in the kernel lane; return how long a sleep may last."""
        native = _native.call
        if not native.expect_kernel(self.address, self.count):
            return MOST_SLICE
        return MOST_SLICE if native.barrier() >= 0 else SHORT_SLICE

    # ---- a whole call

    def wait(self, timeout: float | None, ask: Callable[[float | None], Answer], spin: Spin,
             ask_ns: int) -> tuple[Answer, list[Endpoint]]:
        """Wait until somebody is ready, here or in the kernel.

        Parameters
        ----------
        timeout : seconds, None for ever
        ask : the kernel's call with a time-out; false if it found nothing
        spin : how long to spin
        ask_ns : ask the kernel this often meanwhile

        Returns
        -------
        The kernel's last answer, and the endpoints with bytes in the ring.
        """
        end = None if timeout is None else time.monotonic() + timeout
        limit = spin.limit() if timeout != 0 else 0
        if limit or spin.pays():
            self._lead_to_ring()
        ready = self.ready()
        answer = ask(0)
        if answer or ready or timeout == 0:
            return answer, ready or self.ready()
        if limit:
            started = time.monotonic_ns()
            answer, ready = self._spin(spin, limit, ask, ask_ns, end)
            spin.came(bool(ready), time.monotonic_ns() - started if limit > spin.usual else 0)
        started, slept = time.monotonic_ns(), SLICE
        while not answer and not ready:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            answer, ready = self._sleep(ask, slept if left is None else min(left, slept))
            slept = min(2 * slept, MOST_SLICE)
            if answer or ready:
                spin.slept(limit + time.monotonic_ns() - started)
        return answer, ready

    def _lead_to_ring(self) -> None:
        # Who spins reads the ring.
        native = _native.call
        for index, end in enumerate(self.ends):
            if not end.watchers and not end.sleepers and end.joined and not end.held_by_others():
                native.listen_to(self.address + 16 * index, 1, KERNEL, RING)

    def _spin(self, spin: Spin, limit: int, ask: Callable[[float | None], Answer], ask_ns: int,
              end: float | None) -> tuple[Any, list[Endpoint]]:
        native, now = _native.call, time.monotonic_ns
        stop = now() + limit
        if end is not None:
            stop = min(stop, int(end * 1e9))
        while True:
            left = stop - now()
            if left <= 0:
                return None, []
            if native.spin_look(self.address, self.count, min(left, ask_ns or _TURN_NS, _TURN_NS), spin.adapts):
                return None, self.ready()                     # the kernel was asked a moment ago
            answer = ask(0)
            if answer:
                return answer, self.ready()

    def _sleep(self, ask: Callable[[float | None], Answer], left: float) -> tuple[Answer, list[Endpoint]]:
        for end in self.ends:
            end.sleepers += 1
        try:
            most = self.lead_to_kernel()
            ready = self.ready()
            answer = ask(0 if ready else min(left, most))
        finally:
            for end in self.ends:
                end.sleepers -= 1
                if end.home:
                    for poller in tuple(end.watchers):
                        poller.resume(end)
        return answer, ready or self.ready()
