"""One stack as it is at this moment: a private copy of its tables, and the dictionary form of its structures.

Theory.  A stack is a file.  It is read by pread(2), a region at a time, into private memory; numbers are then taken
from the copy, and each that counts or points is clamped.  Who lives is asked of the kernel's locks.

Rejected: a mapping.  A look at a page that was never written would give it memory, on a full /dev/shm it would end
in SIGBUS, and so would a look at a file that somebody cuts short.  A descriptor has none of that, and one system
call for all connections of a stack is quicker than their page faults.
"""
from __future__ import annotations

import os
import stat
from struct import iter_unpack, unpack_from
from typing import Any, Iterator, NamedTuple

from shmstack import errors
from shmstack.shm import objects
from shmstack.shm.layout import (
    DIGEST, DIRECTION, HEADER, HOLDER_SLOTS, HOLDER_USES, MAGIC, PAIR, PAIR_DIRECTION, PAIR_SIZE, PAIR_TCB, PROCESS,
    PROCESSES, PROCESSES_MAX, TCB, VERSION, WAITER, WAITERS, WAITERS_MAX, Struct, geometry, waiter_size)

FREE, OFFERED, ESTABLISHED, MOVED, WITHDRAWN = range(5)       # PAIR.state
PAIR_STATES = ("free", "offered", "established", "moved", "withdrawn")
KERNEL = 2                                                    # DIRECTION.bell: the receiver looks at its descriptor only
_PAIRS_LIMIT = 1 << 20
Fields = dict[str, Any]


class Process(NamedTuple):
    """A process in a stack's table; `pid` is as the process itself sees it, `holder` its number in locks."""

    pid: int
    comm: str
    alive: bool
    uid: int
    slot: int
    start_ns: int
    holder: int


class Image:
    """A private copy of one stack's tables, made now; a context that closes the file.

    Attributes
    ----------
    header : dict
        The header's fields; empty if they can't be believed.
    problem : str
        Why not.
    """

    def __init__(self, full: str) -> None:
        self.full, self.problem, self.fd = full, "", -1
        self.header: Fields = {}
        path = f"{objects.DIRECTORY}/{objects.PREFIX}{full}"
        self.status = os.lstat(path)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self.status = os.fstat(self.fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            self.problem = f"inaccessible: {os.strerror(error.errno or 0)}"
            return
        self.problem = self._judge(self.read(0, HEADER.size))

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, zeros where the file has none."""
        pieces, there = [], 0
        while there < size:
            try:
                piece = os.pread(self.fd, size - there, offset + there) if self.fd >= 0 else b""
            except OSError:
                piece = b""
            if not piece:
                break
            pieces.append(piece)
            there += len(piece)
        return b"".join(pieces) + bytes(size - there)

    def _judge(self, raw: bytes) -> str:
        header = fields(HEADER, raw)
        if not stat.S_ISREG(self.status.st_mode) or self.status.st_size < HEADER.size or not header["ready"]:
            return "unfinished"
        if header["magic"] != MAGIC:
            return "damaged: no header"
        if (header["version"], header["digest"]) != (VERSION, DIGEST):
            return f"other layout: {header['version']}/{header['digest'] & (1 << 64) - 1:x}"
        capacity, pairs = header["capacity"], header["pairs_max"]
        if not 0 < pairs <= _PAIRS_LIMIT or capacity <= 0 or capacity & (capacity - 1) or (
                header["pairs_at"], header["rings"], header["size"]) != geometry(pairs, capacity):
            return "damaged: impossible sizes"
        self.header = header
        return "" if header["size"] == self.status.st_size else f"damaged: {self.status.st_size} bytes of {header['size']}"

    def processes(self) -> list[Process]:
        """Return the entries of the process table."""
        if not self.header:
            return []
        raw, found = self.read(PROCESSES, PROCESSES_MAX * PROCESS.size), []
        for slot in range(PROCESSES_MAX):
            entry = fields(PROCESS, raw, slot * PROCESS.size)
            if entry["pid"] > 0:
                holder = entry["uses"] % HOLDER_USES * HOLDER_SLOTS + slot + 1
                found.append(Process(entry["pid"], entry["name"], objects.held(self.fd, slot), entry["uid"], slot,
                                     entry["start_ns"], holder))
        return found

    def waiters(self) -> list[Fields]:
        """Return the pollers' places."""
        if not self.header:
            return []
        size = waiter_size(self.header["pairs_max"])
        raw = self.read(WAITERS, WAITERS_MAX * size)
        return [fields(WAITER, raw, index * size) for index in range(WAITERS_MAX)]

    def pairs(self) -> Iterator[tuple[int, Fields, list[Fields], list[Fields]]]:
        """Yield (number, pair, its TCBs, its directions) of each pair that was ever used."""
        if not self.header:
            return
        count = max(0, min(self.header["fresh"], self.header["pairs_max"]))
        raw = self.read(self.header["pairs_at"], count * PAIR_SIZE)
        for index in range(count):
            at = index * PAIR_SIZE
            yield (index, fields(PAIR, raw, at),
                   [fields(TCB, raw, at + PAIR_TCB + side * TCB.size) for side in range(2)],
                   [fields(DIRECTION, raw, at + PAIR_DIRECTION + side * DIRECTION.size) for side in range(2)])


def fields(struct: Struct, raw: bytes, at: int = 0) -> Fields:
    """Return the fields of one structure; text without what a terminal would act on, addresses as bytes."""
    found: Fields = {}
    for name, (offset, width, *_) in struct.fields.items():
        if width == 8:
            found[name] = unpack_from("<q", raw, at + offset)[0]
        elif name == "counters":
            found[name] = [value for value, in iter_unpack("<q", raw[at + offset:at + offset + width])]
        elif name.endswith("_ip"):
            found[name] = raw[at + offset:at + offset + width]
        else:
            found[name] = text(raw[at + offset:at + offset + width])
    return found


def text(raw: bytes) -> str:
    return "".join(chr(c) if 32 <= c < 127 else "?" for c in raw.split(b"\0", 1)[0])


def shown(full: str) -> str:
    """Return a stack's name as people see it: without the namespace; one that has none begins with "-"."""
    return full.partition(".")[2] or full


def images(name: str | None = None) -> Iterator[Image]:
    """Yield the stacks of this host, or those called `name` (shown or full); StackNotFound if there are none."""
    found = False
    for full in objects.names():
        if name in (None, full, shown(full)):
            try:
                image = Image(full)
            except FileNotFoundError:
                continue                                      # it ended just now
            found = True
            with image:
                yield image
    if name is not None and not found:
        raise errors.StackNotFound(f"stack {name!r}", "none of that name")
