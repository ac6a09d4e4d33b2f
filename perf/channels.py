"""One end of a transport, inside a worker: what it means to ask, echo, pour and drain.

A Channel is anything with send(bytes) and recv(most) -> bytes: sockets, pipes, queues.  `bare`
has the two that are only shared memory.

The loops are written out where they run, without a layer in between, because one Python call
more costs as much as a message does on a ring.  Each round trip costs one look at the clock
(about 40 ns), the same for every transport.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

SMALL = 16 * 1024  # up to here a message is one recv() into a new `bytes`, above it recv_into()


class Channel:
    """One end of a connection.

    Parameters
    ----------
    send : callable
        Takes a bytes-like object and sends all of it.
    recv : callable
        Takes the most bytes wanted, returns at least one.
    recv_into : callable, optional
        Takes a buffer, returns the number of bytes written.
    close : callable, optional
        Ends the connection.
    """

    def __init__(
        self,
        send: Callable[[Any], Any],
        recv: Callable[[int], bytes],
        recv_into: Callable[[Any], int] | None = None,
        close: Callable[[], Any] = lambda: None,
    ) -> None:
        self.send = send
        self.recv = recv
        self.recv_into = recv_into
        self.close = close

    def ask(self, size: int, count: int) -> array[int]:
        """Make one round trip to wake the other side and `count` timed ones; return their ns."""
        if size > SMALL and self.recv_into:
            return self._ask_large(size, count)
        send, recv, clock = self.send, self.recv, time.perf_counter_ns
        payload = b"x" * size
        stamps = array("q", bytes(8 * (count + 1)))
        for i in range(count + 1):
            send(payload)
            data = recv(size)
            while len(data) < size:
                data += recv(size - len(data))
            stamps[i] = clock()
        return array("q", (after - before for before, after in pairwise(stamps)))

    def echo(self, size: int, count: int) -> None:
        """Answer `count` + 1 messages of `size` bytes with themselves."""
        if size > SMALL and self.recv_into:
            buffer = bytearray(size)
            for _ in range(count + 1):
                self._fill(memoryview(buffer), size)
                self.send(buffer)
            return
        send, recv = self.send, self.recv
        for _ in range(count + 1):
            data = recv(size)
            while len(data) < size:
                data += recv(size - len(data))
            send(data)

    def _ask_large(self, size: int, count: int) -> array[int]:
        clock, payload, view = time.perf_counter_ns, b"x" * size, memoryview(bytearray(size))
        times = array("q")
        for _ in range(count + 1):
            began = clock()
            self.send(payload)
            self._fill(view, size)
            times.append(clock() - began)
        return times[1:]

    def ask_paced(self, size: int, count: int, period_ns: int) -> array[int]:
        """Ask at fixed intended times and time from those: the open loop.

        A closed loop stops asking while an answer is late, and so leaves out exactly the waits
        that a user would have noticed.  Here message i is due at start + i * period; one that
        waits behind a late answer has that wait counted.
        """
        send, recv, clock = self.send, self.recv, time.perf_counter_ns
        payload, times = b"x" * size, array("q", bytes(8 * count))
        self.ask(size, 0)
        due = clock() + period_ns
        for i in range(count):
            while clock() < due:
                pass
            send(payload)
            data = recv(size)
            while len(data) < size:
                data += recv(size - len(data))
            times[i] = clock() - due
            due += period_ns
        return times

    def ask_rested(self, size: int, count: int, rest_s: float) -> array[int]:
        """Sleep before each message, long enough for the other side to be asleep as well."""
        send, recv, clock = self.send, self.recv, time.perf_counter_ns
        payload, times = b"x" * size, array("q")
        self.ask(size, 0)
        for _ in range(count):
            time.sleep(rest_s)
            began = clock()
            send(payload)
            data = recv(size)
            while len(data) < size:
                data += recv(size - len(data))
            times.append(clock() - began)
        return times

    def pour(self, size: int, count: int) -> None:
        """Send `count` messages of `size` bytes one way, then wait for one byte back."""
        send, payload = self.send, b"x" * size
        for _ in range(count):
            send(payload)
        self.recv(1)

    def drain(self, size: int, count: int) -> None:
        """Take what `pour` sends, as much as is there at a time, then send one byte."""
        total = size * count
        if self.recv_into:
            into, view = self.recv_into, memoryview(bytearray(max(size, 65536)))
            most = len(view)
            while total >= most:
                total -= into(view)
            while total:
                total -= into(view[: min(total, most)])
        else:
            while total:
                total -= len(self.recv(max(size, 65536)))
        self.send(b"!")

    def _fill(self, view: memoryview, size: int) -> None:
        into, got = self.recv_into, 0
        while got < size:
            got += into(view[got:] if got else view)  # type: ignore[misc]
