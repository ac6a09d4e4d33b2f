"""A segment: one named POSIX shared-memory object, mapped whole, that lives as long as a process uses it.

Guarantee: an object goes away with its last user, also when that user is killed; two processes that create the
same name at the same moment both get the same object; nobody maps an object that is half made or of another
layout; access is what the kernel grants on the object, nothing else.

Theory.  A user holds an open-file-description lock on one byte of the object, far behind its end: the byte of its
slot in the process table.  The kernel drops it with the process, whatever happens, in any pid namespace, so "who
lives" is asked by F_OFD_GETLK and never by a pid.  Making, joining and removing an object take turns by flock on the
object itself; whoever got the turn looks whether the name still means that object, and starts again if not.

Rejected: reference counts (a killed process keeps its count), pids (reused, and other namespaces have others), a
lock file for turns (in a directory for all users it would have to be writable by all).
"""
from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import Iterator

from shmstack import _native, errors
from shmstack.shm.access import grant, shm_open
from shmstack.shm.layout import DIGEST, HEADER, MAGIC, PROCESSES_MAX, VERSION

DIRECTORY = "/dev/shm"
PREFIX = "shmstack.s."
FORWARD = "shmstack.f."               # records of moves, see stack.directory
_LOCKS = 1 << 40                      # lock byte of process slot 0
_FLOCK = "hhqqi4x"                    # struct flock of 64-bit Linux
_OFD_GETLK, _OFD_SETLK = 36, 37
_TURN_SECONDS = 5.0
_QUIETLY = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK      # anybody may have put up that name


def _lock(fd: int, slot: int, kind: int, count: int = 1, command: int = _OFD_SETLK) -> int:
    """Lock, unlock or test `count` slots from `slot`; return the kind of a lock in the way (a test), else `kind`."""
    request = struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCKS + slot, count, 0)
    answer: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, command, request))[0]
    return answer


class Segment:
    """One process' view of one object: descriptor, address, and the process slot that it holds.

    Attributes
    ----------
    name : str
        Object name behind the prefix.
    fd, base, size : int
        Descriptor, address and bytes of the mapping.
    slot : int
        This process' slot in the process table; -1 while it only looks.
    pid : int
        The process that looks.
    handles : set of int
        Those that point into the mapping.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd, self.slot, self.pid = name, fd, -1, os.getpid()
        self.handles: set[int] = set()
        self._ended = False
        self.size = os.fstat(fd).st_size
        # A mapping keeps its open file alive, with all locks on it, also in a forked child: so it has one of its own.
        mapped = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self.base: int = _native.load().map(mapped, self.size)
        os.close(mapped)
        if self.base < 0:
            raise OSError(-self.base, os.strerror(-self.base), name)

    # ---- making and joining

    @classmethod
    def create(cls, name: str, header: dict[str, int | bytes], share_with: int = 0) -> Segment:
        """Make the object and join it; FileExistsError if the name is taken.

        Parameters
        ----------
        header : values of HEADER's fields; `size` is the object's size in bytes
        share_with : 0 nobody else, -1 everybody, or a uid that may open the object too
        """
        native = _native.load()
        fd = shm_open(PREFIX + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, int(header["size"]))
            _need(native.back(fd, 0, int(header["pairs_at"])), name)
            self = cls(name, fd)
            self._take_slot()
            at = HEADER.at
            for field, value in header.items():
                if isinstance(value, bytes):
                    native.write(self.base + getattr(at, field), value)
                else:
                    native.store(self.base + getattr(at, field), value)
            for field, number in (("magic", MAGIC), ("version", VERSION), ("digest", DIGEST)):
                native.store(self.base + getattr(at, field), number)
            grant(fd, share_with)
            native.store(self.base + at.ready, 1)                                # SYNC ready
        except BaseException:
            os.unlink(f"{DIRECTORY}/{PREFIX}{name}")
            os.close(fd)
            raise
        fcntl.flock(fd, fcntl.LOCK_UN)
        return self

    @classmethod
    def attach(cls, name: str, owners: tuple[int, ...] = ()) -> Segment:
        """Join an existing object; raise StackNotFound, StackDenied or LayoutMismatch.

        Parameters
        ----------
        owners : uids that may own it besides ourselves and root; -1: anybody
        """
        end = time.monotonic() + _TURN_SECONDS
        while True:
            fd = _open(name)
            try:
                owner = os.fstat(fd).st_uid                   # first: a stranger's turn might never end
                if owner not in (os.geteuid(), 0, *owners) and -1 not in owners:
                    raise errors.StackDenied(f"stack {name!r} of uid {os.geteuid()}", f"uid {owner}")
                _turn(fd, name)
                status = os.fstat(fd)
                if status.st_nlink == 0:
                    raise errors.StackNotFound(f"stack {name!r}", "it has just ended")
                if in_use(fd) or status.st_size >= HEADER.size:
                    self = cls(name, fd)
                    try:
                        self._check()
                        self._take_slot()
                    except BaseException:
                        self.unmap()
                        raise
                    fcntl.flock(fd, fcntl.LOCK_UN)
                    return self
                # Made, but its maker has not had its first turn yet; or that maker was killed in between.
                if time.monotonic() > end:
                    os.unlink(f"{DIRECTORY}/{PREFIX}{name}")
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            time.sleep(0.001)

    def _check(self) -> None:
        load, at = _native.call.load, HEADER.at
        found = tuple(load(self.base + where) for where in (at.magic, at.version, at.digest, at.ready))
        if found != (MAGIC, VERSION, DIGEST, 1):
            raise errors.LayoutMismatch(
                f"stack {self.name!r} with layout {VERSION}/{DIGEST:x}", f"{found[1]}/{found[2]:x} (ready={found[3]})",
                "use the same version of shmstack on both sides")
        if load(self.base + at.size) != self.size:
            raise errors.LayoutMismatch(f"stack {self.name!r} of size={self.size}", f"{load(self.base + at.size)}")

    def _take_slot(self) -> None:
        for slot in range(PROCESSES_MAX):
            try:
                _lock(self.fd, slot, fcntl.F_WRLCK)
            except OSError:
                continue
            self.slot = slot
            return
        raise errors.StackFull(f"a process slot in stack {self.name!r}", f"all {PROCESSES_MAX} taken")

    # ---- living with it

    def alive(self, slot: int) -> bool:
        """Return whether the process that holds `slot` exists."""
        return 0 <= slot < PROCESSES_MAX and (slot == self.slot or held(self.fd, slot))

    def others(self) -> bool:
        """Return whether any other process uses the object."""
        return _lock(self.fd, 0, fcntl.F_WRLCK, PROCESSES_MAX, _OFD_GETLK) != fcntl.F_UNLCK

    def after_fork(self) -> None:
        """In a new child: leave the parent's slot to the parent and take one of our own."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(fd, self.fd, inheritable=False)           # the parent's description is closed here, its lock stays
        os.close(fd)
        self.slot, self.pid = -1, os.getpid()
        self._take_slot()

    def leave(self) -> bool:
        """Give up the slot, and remove the object if nobody else uses it; return whether it was removed.

        The mapping stays: a thread may still be looking at it.
        """
        if self.fd < 0:
            return False
        removed = False
        try:
            _turn(self.fd, self.name)
            removed = not self.others() and not owed(self.name) and _unlink(self.name, self.fd)
        except errors.StackDenied:
            pass                      # whoever has the turn has it for good; the object is reaped later
        os.close(self.fd)
        self.fd, self.slot = -1, -1
        return removed

    def end(self) -> None:
        """Leave, and unmap as soon as no handle points there: nobody will look any more."""
        if self.pid == os.getpid():
            self.leave()
            self._ended = True
            self.let_go()

    def let_go(self, handle: int = 0) -> None:
        """Note that a handle doesn't point there any more."""
        self.handles.discard(handle)
        if self._ended and not self.handles:
            self.unmap()

    def unmap(self) -> None:
        """Give the address range back; nothing may look at it any more."""
        base, self.base = self.base, 0
        if base:
            _native.call.unmap(base, self.size)


def _turn(fd: int, name: str) -> None:
    end = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise errors.StackDenied(f"a turn at stack {name!r}", "another process keeps it") from None
        time.sleep(0.0005)


def _need(result: int, name: str) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)


def _open(name: str) -> int:
    try:
        return shm_open(PREFIX + name, os.O_RDWR, 0)
    except FileNotFoundError:
        raise errors.StackNotFound(f"stack {name!r}", "none of that name") from None
    except PermissionError:
        raise errors.StackDenied(f"stack {name!r} as uid {os.geteuid()}", "its owner keeps it to himself",
                                 "the owner may set EF_SHARE_WITH") from None


def _unlink(name: str, fd: int) -> bool:
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
    return _lock(fd, 0, fcntl.F_WRLCK, PROCESSES_MAX, _OFD_GETLK) != fcntl.F_UNLCK


def held(fd: int, slot: int) -> bool:
    """Return whether a living process holds this slot; `fd` may be open for reading only."""
    return _lock(fd, slot, fcntl.F_WRLCK, command=_OFD_GETLK) != fcntl.F_UNLCK


def names() -> Iterator[str]:
    """Yield the names of all objects, living or not."""
    for entry in sorted(os.listdir(DIRECTORY)):
        if entry.startswith(PREFIX):
            yield entry[len(PREFIX):]


def living(name: str) -> bool:
    """Return whether some process uses the object; True if that can't be known."""
    try:
        fd = os.open(f"{DIRECTORY}/{PREFIX}{name}", _QUIETLY)
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
            fd = os.open(f"{DIRECTORY}/{PREFIX}{name}", _QUIETLY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            begun = status.st_size or time.time() - status.st_ctime > _TURN_SECONDS      # or its maker was killed
            if begun and not in_use(fd) and not owed(name) and _unlink(name, fd):
                removed.append(name)
        except OSError:
            pass                      # being made or removed at this moment
        finally:
            os.close(fd)
    return removed
