"""Messages that are written and read where they lie, in the ring: a channel over `shmstack.nocopy`."""

from __future__ import annotations

from typing import Any

from perf.channels import Channel
from shmstack import nocopy

PIECE = 128 * 1024  # half of a ring: one side writes one half while the other reads the other


class NocopyChannel(Channel):
    """A connected, blocking socket of shmstack."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock.sendall, sock.recv, sock.recv_into, sock.close)
        self._sock = sock

    def pour(self, size: int, count: int) -> None:
        """Write `count` messages, then wait for one byte."""
        sock, payload = self._sock, memoryview(b"x" * size)
        reserve, commit = nocopy.reserve, nocopy.commit
        for _ in range(count):
            done = 0
            while done < size:
                room = reserve(sock, min(size - done, PIECE))
                more = done + len(room)
                room[:] = payload[done:more]
                commit(sock)
                done = more
        self.recv(1)

    def drain(self, size: int, count: int) -> None:
        """Look at each byte's place, then send one byte."""
        sock, total = self._sock, size * count
        peek, consume = nocopy.peek, nocopy.consume
        while total:
            data = peek(sock, min(total, PIECE))
            total -= len(data)
            consume(sock)
        self.send(b"!")
