"""A segment: one named POSIX shared-memory object, mapped whole, that lives as long as a process uses it.

Guarantee: an object goes away with its last user, also when that user is killed; two processes that create the
same name at the same moment both get the same object; nobody maps an object that is half made or of another
layout; access is what the kernel grants on the object, nothing else.

Theory.  A user holds an open-file-description lock on one byte of the object, far behind its end: the byte of its
slot in the process table.  The kernel drops it with the process, whatever happens, in any pid namespace, so "who
lives" is asked by F_OFD_GETLK and never by a pid.  The mapping keeps the open file alive and so the lock, also if the
program closes our descriptor: daemons close all that they don't know.  Then the number may be another file's, so it
is looked at before each use.  A forked child opens and maps the object anew, to have a lock of its own; where it may not,
since the privileges were dropped, it holds a lock of the process.  Making, joining and removing an object take
turns by flock on the object itself; whoever got the turn looks whether the name still means that object, and starts
again if not.

Rejected: reference counts (a killed process keeps its count), pids (reused, and other namespaces have others), a
lock file for turns (in a directory for all users it would have to be writable by all).
"""
from __future__ import annotations

import fcntl
import os
import time

from shmstack import _native, errors
from shmstack.shm.access import aside, grant, shm_open
from shmstack.shm.layout import DIGEST, HEADER, MAGIC, PROCESSES_MAX, VERSION
from shmstack.shm.objects import (
    DIRECTORY, OFD_GETLK, OFD_SETLK, PREFIX, QUIETLY, TURN_SECONDS, held, in_use, lock, open_object, owed, take_turn, unlink)


class Segment:
    """One process' view of one object: descriptor, address, and the process slot that it holds.

    Attributes
    ----------
    name : str
        Object name behind the prefix.
    fd, base, size : int
        Descriptor (-1: left; it may not be ours any more, see `descriptor`), address and bytes of the mapping.
    slot : int
        This process' slot in the process table; -1 while it only looks.
    pid : int
        The process that looks.
    handles : set of int
        Addresses of what points into the mapping.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd, self.slot, self.pid = name, fd, -1, os.getpid()
        self.handles: set[int] = set()
        self._ended, status = False, os.fstat(fd)
        self._inode = status.st_ino, status.st_dev
        self._mapped = True                                   # `fd` is the open file of the mapping, with our lock on it
        self._opened = True                                   # that open file is this process' own
        self.size = status.st_size
        self.base: int = _need(_native.load().map(0, fd, self.size), name)

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
        fd = aside(shm_open(PREFIX + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self = None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, int(header["size"]))
            self = cls(name, fd)
            _need(self.back(0, int(header["pairs_at"])), name)
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
            if self is not None:
                self.unmap()
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
        end = time.monotonic() + TURN_SECONDS
        while True:
            fd = aside(open_object(name))
            try:
                owner = os.fstat(fd).st_uid                   # first: a stranger's turn might never end
                if owner not in (os.geteuid(), 0, *owners) and -1 not in owners:
                    raise errors.StackDenied(f"stack {name!r} of uid {os.geteuid()}", f"uid {owner}")
                take_turn(fd, name)
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
        self.slot = _native.call.take_slot(self.fd, PROCESSES_MAX, OFD_SETLK if self._opened else fcntl.F_SETLK)
        if self.slot < 0:
            raise errors.StackFull(f"a process slot in stack {self.name!r}", f"all {PROCESSES_MAX} taken")

    # ---- living with it

    def alive(self, slot: int) -> bool:
        """Return whether the process that holds `slot` exists."""
        return 0 <= slot < PROCESSES_MAX and (slot == self.slot or self._held(slot))

    def others(self) -> bool:
        """Return whether any other process uses the object."""
        if self._mapped and self._is_ours():
            return bool(_native.call.in_use(self.fd, PROCESSES_MAX, OFD_GETLK if self._opened else fcntl.F_GETLK))
        return any(self._held(slot) for slot in range(PROCESSES_MAX) if slot != self.slot)

    def _held(self, slot: int) -> bool:
        try:
            return held(self.descriptor(), slot, OFD_GETLK if self._opened else fcntl.F_GETLK)
        except OSError:
            return True                                       # can't be known

    def back(self, offset: int, size: int) -> int:
        """Have memory behind a part of the object; return 0 or -errno."""
        failed: int = _native.call.back(self.base, self.fd, offset, size)
        return failed

    def descriptor(self) -> int:
        """Return a descriptor of the object, a new one if the program closed ours; raise OSError or StackNotFound."""
        if self.fd < 0:
            raise errors.StackNotFound(f"stack {self.name!r}", "it was left")
        if not self._is_ours():
            self.fd, self._mapped = self._open(), False
        return self.fd

    def _is_ours(self) -> bool:
        try:
            return self._same(self.fd)
        except OSError:
            return False

    def _same(self, fd: int) -> bool:
        status = os.fstat(fd)
        return (status.st_ino, status.st_dev) == self._inode

    def _open(self) -> int:
        fd = aside(os.open(f"{DIRECTORY}/{PREFIX}{self.name}", QUIETLY))
        if not self._same(fd):
            os.close(fd)
            raise errors.StackNotFound(f"stack {self.name!r}", "another of that name")
        return fd

    def after_fork(self) -> None:
        """In a new child: leave the parent's slot to the parent and take one of our own."""
        self.pid, ours = os.getpid(), self._is_ours()
        try:
            fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC) if ours else self._open()
            _need(_native.call.map(self.base, fd, self.size), self.name)
        except OSError:
            # The open file stays the parent's too, and with it the parent's slot, for as long as either lives.
            self._opened = False
            if not ours:
                return                                        # nor can we have another
        else:
            if ours:
                os.dup2(fd, self.fd, inheritable=False)       # the parent's open file is closed here, its lock stays
                os.close(fd)
            else:
                self.fd = fd
            self._mapped = self._opened = True
        self._take_slot()

    def leave(self) -> bool:
        """Give up the slot, and remove the object if nobody else uses it; return whether it was removed.

        The mapping stays: a thread may still be looking at it.
        """
        if self.fd < 0:
            return False
        removed = False
        try:
            fd = self.descriptor()
            try:
                take_turn(fd, self.name)
                owing = _native.call.load(self.base + HEADER.at.moved_to) and owed(self.name)
                removed = not self.others() and not owing and unlink(self.name, fd)
            finally:
                lock(fd, self.slot, fcntl.F_UNLCK, command=OFD_SETLK if self._opened else fcntl.F_SETLK)
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)
        except OSError:
            pass                      # whoever has the turn has it for good; the object is reaped later
        self.fd, self.slot = -1, -1
        return removed

    def end(self) -> None:
        """Leave, and unmap as soon as nothing points there: nobody will look any more."""
        if self.pid == os.getpid():
            self.leave()
            self._ended = True
            self.let_go()

    def let_go(self, handle: int = 0) -> None:
        """Note that this handle doesn't point there any more."""
        self.handles.discard(handle)
        if self._ended and not self.handles:
            self.unmap()

    def unmap(self) -> None:
        """Give the address range back; nothing may look at it any more."""
        base, self.base = self.base, 0
        if base:
            _native.call.unmap(base, self.size)


def _need(result: int, name: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return result
