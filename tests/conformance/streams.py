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


def pieces(seed: int, total: int, largest: int = 70_000):
    """Yield the stream `seed` in random pieces, `total` bytes in all."""
    bytes_of = random.Random(seed)
    for size in sizes(seed + 1, total, largest):
        yield bytes_of.randbytes(size)


def write_stream(sock: socket.socket, seed: int, total: int, largest: int = 70_000) -> int:
    """Send `total` bytes of the stream `seed` in random pieces; return how many that were."""
    calls = 0
    for calls, piece in enumerate(pieces(seed, total, largest), 1):     # noqa: B007 - the last one is the result
        sock.sendall(piece)
    return calls


def read_stream(sock: socket.socket, seed: int, total: int, largest: int = 70_000) -> int:
    """Receive what `write_stream` sent in random pieces of other sizes and compare; return the count of bytes."""
    draw, read = random.Random(seed + 2), 0
    for want in pieces(seed, total, largest):
        got = bytearray()
        while len(got) < len(want):
            piece = sock.recv(min(len(want) - len(got), draw.randint(1, largest)))
            if not piece:
                raise EOFError(f"stream ended at {read + len(got)} of {total}")
            got += piece
        if got != want:
            raise ValueError(f"other bytes between {read} and {read + len(want)}")
        read += len(want)
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
