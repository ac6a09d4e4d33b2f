"""The ceilings as channels: a file in /dev/shm, mapped by both workers, and no socket.

    RingChannel     the bare ring: a Python loop around the jitted push and pop
    LinesChannel    two cache lines: the whole loop is jitted
    CopyChannel     no other side at all: each byte is copied in and out of a ring's memory
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

from perf import ceilings
from perf.channels import Channel


class Mapped:
    """A file in /dev/shm that two workers map, by path; the side that made it removes it."""

    def __init__(self, path: Path, size: int, create: bool) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        handle = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(handle, size)
            self.memory = mmap.mmap(handle, size)
        finally:
            os.close(handle)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


class RingChannel(Channel):
    """The bare ring: `out` and `back` are the addresses of the two directions."""

    def __init__(self, mapped: Mapped, out: int, back: int) -> None:
        super().__init__(send=self._send, recv=self._recv)
        self._mapped = mapped
        self._out, self._back = mapped.base + out, mapped.base + back
        self._push, self._pop = ceilings.entry(ceilings.push), ceilings.entry(ceilings.pop)

    def _send(self, data: Any) -> None:
        source = ctypes.create_string_buffer(bytes(data), len(data))
        self._push(self._out, ctypes.addressof(source), len(data))

    def _recv(self, most: int) -> bytes:
        target = ctypes.create_string_buffer(most)
        return target.raw[: self._pop(self._back, ctypes.addressof(target), 1, most)]

    def ask(self, size: int, count: int) -> array[int]:
        """Make one round trip to wake the other side and `count` timed ones; return their ns."""
        data = ctypes.create_string_buffer(size)
        push, pop = self._calls(ctypes.addressof(data), size)
        clock = time.perf_counter_ns
        stamps = array("q", bytes(8 * (count + 1)))
        for i in range(count + 1):
            push()
            pop()
            stamps[i] = clock()
        return array("q", (after - before for before, after in pairwise(stamps)))

    def echo(self, size: int, count: int) -> None:
        """Answer `count` + 1 round trips."""
        data = ctypes.create_string_buffer(size)
        push, pop = self._calls(ctypes.addressof(data), size)
        for _ in range(count + 1):
            pop()
            push()

    def pour(self, size: int, count: int) -> None:
        """Send `count` messages, then wait for one byte."""
        data = ctypes.create_string_buffer(size)
        push, _ = self._calls(ctypes.addressof(data), size)
        for _ in range(count):
            push()
        self._recv(1)

    def drain(self, size: int, count: int) -> None:
        """Take them as they come, then send one byte."""
        most = max(size, 65536)
        data = ctypes.create_string_buffer(most)
        take = ceilings.bound("pop", self._back, ctypes.addressof(data), 1, most)
        total = size * count
        while total:
            total -= take()
        self._send(b"!")

    def _calls(self, at: int, size: int) -> tuple[Any, Any]:
        return (
            ceilings.bound("push", self._out, at, size),
            ceilings.bound("pop", self._back, at, size, size),
        )


class LinesChannel(Channel):
    """Two cache lines; times are means of ten round trips, so tails look smaller than they are."""

    def __init__(self, mapped: Mapped) -> None:
        super().__init__(send=len, recv=bytes)
        self._mapped = mapped
        self._turn = 0

    def ask(self, size: int, count: int) -> array[int]:
        """Make about `count` round trips (a multiple of ten); return batch means in ns."""
        batches = -(-count // ceilings.TIMED_TOGETHER)
        times = array("q", bytes(8 * (batches + 2)))  # two more: the kernel's room for a timespec
        lines_ask = ceilings.entry(ceilings.lines_ask)
        self._turn = lines_ask(self._mapped.base, self._turn, batches, times.buffer_info()[0])
        return times[:batches]

    def echo(self, size: int, count: int) -> None:
        """Answer them."""
        whole = -(-count // ceilings.TIMED_TOGETHER) * ceilings.TIMED_TOGETHER
        lines_echo = ceilings.entry(ceilings.lines_echo)
        self._turn = lines_echo(self._mapped.base, self._turn, whole)


class CopyChannel(Channel):
    """Two memcpys a byte in one process: what a stream through memory costs at least."""

    def __init__(self) -> None:
        super().__init__(send=len, recv=bytes)
        self._ring = ctypes.create_string_buffer(ceilings.RING_BYTES)

    def pour(self, size: int, count: int) -> None:
        """Copy `count` messages in and out."""
        source, target = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
        ceilings.entry(ceilings.copy_twice)(
            *map(ctypes.addressof, (self._ring, source, target)), size, count
        )

    def drain(self, size: int, count: int) -> None:
        """Do nothing: the other worker does all."""
