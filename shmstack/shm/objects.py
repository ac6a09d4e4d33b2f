"""The named objects of this machine: which there are, who uses them, and how making and removing them take turns.

Names are `PREFIX` and the stack's full name.  See `shm.segment` for the theory.
"""
from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import Iterator

from shmstack import errors
from shmstack.shm.access import shm_open
from shmstack.shm.layout import PROCESSES_MAX

DIRECTORY = "/dev/shm"
PREFIX = "shmstack.s."
FORWARD = "shmstack.f."               # records of moves, see stack.directory
_LOCKS = 1 << 40                      # lock byte of process slot 0
_FLOCK = "hhqqi4x"                    # struct flock of 64-bit Linux
OFD_GETLK, OFD_SETLK = 36, 37
TURN_SECONDS = 5.0
_YIELDS = 100
QUIETLY = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK      # anybody may have put up that name


def lock(fd: int, slot: int, kind: int, count: int = 1, command: int = OFD_SETLK) -> int:
    """Lock, unlock or test `count` slots from `slot`; return the kind of a lock in the way (a test), else `kind`."""
    request = struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCKS + slot, count, 0)
    answer: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, command, request))[0]
    return answer


def take_turn(fd: int, name: str) -> None:
    end, tries = time.monotonic() + TURN_SECONDS, _YIELDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise errors.StackDenied(f"a turn at stack {name!r}", "another process keeps it") from None
        if tries > 0:                                     # usually it is over in a moment
            tries -= 1
            os.sched_yield()
        else:
            time.sleep(0.0005)


def open_object(name: str) -> int:
    try:
        return shm_open(PREFIX + name, os.O_RDWR, 0)
    except FileNotFoundError:
        raise errors.StackNotFound(f"stack {name!r}", "none of that name") from None
    except PermissionError:
        raise errors.StackDenied(f"stack {name!r} as uid {os.geteuid()}", "its owner keeps it to himself",
                                 "the owner may set EF_SHARE_WITH") from None


def unlink(name: str, fd: int) -> bool:
    path = f"{DIRECTORY}/{PREFIX}{name}"
    try:
        if os.path.samestat(os.stat(path), os.fstat(fd)):
            os.unlink(path)
            return True
    except OSError:
        pass                          # somebody else was quicker, or it is not ours to remove
    return False


def in_use(fd: int) -> bool:
    """Return whether a process holds a slot of the object."""
    return lock(fd, 0, fcntl.F_WRLCK, PROCESSES_MAX, OFD_GETLK) != fcntl.F_UNLCK


def held(fd: int, slot: int, test: int = OFD_GETLK) -> bool:
    """Return whether a living process holds this slot; `fd` may be open for reading only."""
    return lock(fd, slot, fcntl.F_WRLCK, command=test) != fcntl.F_UNLCK


def names() -> Iterator[str]:
    """Yield the names of all objects, living or not."""
    for entry in sorted(os.listdir(DIRECTORY)):
        if entry.startswith(PREFIX):
            yield entry[len(PREFIX):]


def living(name: str) -> bool:
    """Return whether some process uses the object; True if that can't be known."""
    try:
        fd = os.open(f"{DIRECTORY}/{PREFIX}{name}", QUIETLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return in_use(fd)
    finally:
        os.close(fd)


def owed(name: str, behind: frozenset[str] = frozenset()) -> bool:
    """Return whether somebody, in a living stack, has yet to follow a connection that was moved to this one."""
    start = f"{FORWARD}{name}:"
    sources = {entry[len(start):].split(":")[0] for entry in os.listdir(DIRECTORY) if entry.startswith(start)}
    return any(living(source) or owed(source, behind | {name}) for source in sources - behind - {name})


def reap() -> list[str]:
    """Remove every object that no process uses, that nobody is owed and that we may remove; return their names."""
    removed = []
    for name in names():
        try:
            fd = os.open(f"{DIRECTORY}/{PREFIX}{name}", QUIETLY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            begun = status.st_size or time.time() - status.st_ctime > TURN_SECONDS      # or its maker was killed
            if begun and not in_use(fd) and not owed(name) and unlink(name, fd):
                removed.append(name)
        except OSError:
            pass                      # being made or removed at this moment
        finally:
            os.close(fd)
    return removed
