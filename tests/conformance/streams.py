"""Streams that both ends can compute: the reader draws again what the writer drew, no byte is kept."""

from __future__ import annotations

import random
import socket

from .waiting import Background

MIB = 1 << 20


def sizes(seed: int, total: int, largest: int):
    """Yield random sizes of 1..`largest` that add up to `total`; mostly small, sometimes the largest."""
    draw = random.Random(seed)
    while total > 0:
        size = min(total, draw.choice((1, 7, 64, 65, 1000, largest)), draw.randint(1, largest))
        yield size
        total -= size


def write_stream(sock: socket.socket, seed: int, total: int, largest: int = 70_000) -> int:
    """Send `total` bytes of the stream `seed` in random pieces; return how many calls that took."""
    bytes_of, calls = random.Random(seed), 0
    for size in sizes(seed + 1, total, largest):
        sock.sendall(bytes_of.randbytes(size))
        calls += 1
    return calls


def read_stream(sock: socket.socket, seed: int, total: int, largest: int = 70_000) -> int:
    """Receive what `write_stream` sent in random pieces of other sizes and compare; return the count of bytes."""
    bytes_of, draw, read = random.Random(seed), random.Random(seed + 2), 0
    for size in sizes(seed + 1, total, largest):
        want, got = bytes_of.randbytes(size), bytearray()
        while len(got) < size:
            piece = sock.recv(min(size - len(got), draw.randint(1, largest)))
            if not piece:
                raise EOFError(f"stream ended at {read + len(got)} of {total}")
            got += piece
        if got != want:
            raise ValueError(f"other bytes between {read} and {read + size}")
        read += size
    return read


def both_ways(sock: socket.socket, say: int, hear: int, total: int, largest: int = 70_000) -> int:
    """Write the stream `say` and read the stream `hear` at once; return the count of bytes read."""
    writing = Background(write_stream, sock, say, total, largest)
    read = read_stream(sock, hear, total, largest)
    writing.result()
    return read


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Return the next `count` bytes."""
    got = bytearray()
    while len(got) < count:
        piece = sock.recv(count - len(got))
        if not piece:
            raise EOFError(f"{len(got)} of {count} bytes, then the end")
        got += piece
    return bytes(got)


def receive_all(sock: socket.socket) -> bytes:
    """Return everything up to the end of the stream."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def pattern(count: int, seed: int = 7) -> bytes:
    """Return `count` bytes that show where they came from."""
    return random.Random(seed).randbytes(count)
