"""A stack: the segment, and the connections (pairs of TCBs with their rings) that live in it.

A process reaches a stack by its name.  What it needs of the header is checked once at attach and kept in private
memory; from then on only numbers of slots are read from the segment, and each is clamped.
"""
from __future__ import annotations

import atexit
import errno
import os
import threading
import time
import weakref
from typing import Any, Iterator

from shmstack import _native, errors
from shmstack._digest import blake2b
from shmstack.options import Options
from shmstack.shm import objects
from shmstack.shm.layout import (
    COUNTERS, DIRECTION, HEADER, HOLDER_SLOTS, HOLDER_USES, OFFERS, PAGE, PAIR, PAIR_DIRECTION, PAIR_SIZE, PAIR_TCB,
    PROCESS, PROCESSES, PROCESSES_MAX, TCB, WAITERS, geometry, waiter_size)
from shmstack.shm.segment import Segment
from shmstack.stack import reaping, said
from shmstack.tcp.handle import FACTS

FREE, OFFERED, ESTABLISHED, MOVED, WITHDRAWN = range(5)       # PAIR.state
DEFAULT_CAPACITY = 1 << 18
SMALLEST, LARGEST = 1 << 14, 1 << 26                          # ring capacities
_FIRST_BACKING = 1 << 14

_H, _P, _D, _S, _F = HEADER.at, PAIR.at, DIRECTION.at, PROCESS.at, FACTS.at
_attached: weakref.WeakValueDictionary[str, Stack] = weakref.WeakValueDictionary()
_turn = threading.RLock()


def capacity_for(options: Options) -> int:
    """Return the ring size for EF_TCP_SNDBUF and EF_TCP_RCVBUF (the larger, 0: default), a power of two."""
    wanted = max(options.tcp_sndbuf, options.tcp_rcvbuf) or DEFAULT_CAPACITY
    return 1 << (min(max(wanted, SMALLEST), LARGEST) - 1).bit_length()


class Stack:
    """A stack that this process uses.

    Attributes
    ----------
    name : str
        Name of the segment: network namespace, a dot, EF_NAME or a random number.
    client, server : int
        The loopback policies it was created with.
    facts : int
        Address of what kernels need of it, see `tcp.handle`.
    private : bool
        Nobody but this user and root may open it.
    """

    reaped = float("-inf")                                     # when this process last did, see `reaping`

    def __init__(self, shared: Segment) -> None:
        native, base = _native.load(), shared.base
        self.segment, self.name = shared, shared.name
        # A finalizer and no __del__: while that runs another thread could still find us in `_attached`.
        self.facts = native.allocate(FACTS.size)
        weakref.finalize(self, _end, shared, self.facts).atexit = False
        self.capacity, self.pairs_max = native.load(base + _H.capacity), native.load(base + _H.pairs_max)
        self.pairs_max = max(0, min(self.pairs_max, 1 << 20))
        self._pairs_at, self._rings, size = geometry(self.pairs_max, self.capacity)
        if size != shared.size or self.capacity & (self.capacity - 1) or self.capacity < SMALLEST:
            raise errors.LayoutMismatch(f"stack {self.name!r} of {size} bytes", f"{shared.size} bytes")
        self.client, self.server = native.load(base + _H.client), native.load(base + _H.server)
        self.share_with, self.netns = native.load(base + _H.share_with), native.load(base + _H.netns)
        self.owner = native.load(base + _H.owner_uid)
        self.waiters, self.waiter_size = base + WAITERS, waiter_size(self.pairs_max)
        status = os.fstat(shared.fd)
        # Whether nobody but ourselves and root ever may write there.
        self.private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        self._enter()
        _attached[self.name] = self
        if self._after_dead:
            reaping.reap(self)

    # ---- making and joining

    @classmethod
    def create(cls, name: str, netns: int, options: Options, pairs: int | None = None) -> Stack:
        """Make a stack; FileExistsError if the name is taken by a living one."""
        capacity, pairs = capacity_for(options), pairs or max(2, options.max_endpoints // 2)
        pairs_at, rings, size = geometry(pairs, capacity)
        header: dict[str, int | bytes] = {
            "size": size, "capacity": capacity, "pairs_max": pairs, "pairs_at": pairs_at, "rings": rings,
            "owner_uid": os.geteuid(), "creator_pid": os.getpid(), "created_ns": time.time_ns(), "netns": netns,
            "share_with": options.share_with, "client": options.tcp_client_loopback,
            "server": options.tcp_server_loopback, "name": name.encode(),
            "options": said.settings(options)}
        return cls(Segment.create(name, header, options.share_with))

    @classmethod
    def open(cls, name: str, netns: int, options: Options) -> Stack:
        """Return the stack of this EF_NAME, made now or joined; both of two that make it at once get one.

        Another user's stack is joined if we share ours with him too: anybody may put up a name.
        """
        full, owners = f"{netns:x}.{name}", (options.share_with,) if options.share_with else ()
        with _turn:
            for _ in range(100):
                mine = _attached.get(full)
                if mine is not None and mine.in_use:
                    return mine
                try:
                    return cls.create(full, netns, options)
                except FileExistsError:
                    pass
                try:
                    if not objects.living(full):
                        time.sleep(0.002)                     # its maker may be about to take its slot
                        objects.reap()
                    return cls(Segment.attach(full, owners))
                except errors.StackNotFound:
                    continue
        raise errors.StackDied(f"stack {name!r}", "it came and went a hundred times")

    @classmethod
    def unnamed(cls, netns: int, options: Options, pairs: int | None = None) -> Stack:
        """Return a new stack that only its directory records lead to."""
        return cls.create(f"{netns:x}.-{os.urandom(5).hex()}", netns, options, pairs)

    @classmethod
    def attach(cls, full: str, owners: tuple[int, ...] = ()) -> Stack:
        """Return the existing stack with this full name; raise StackNotFound, StackDenied, LayoutMismatch."""
        with _turn:
            mine = _attached.get(full)
            if mine is not None and mine.in_use:
                return mine
            return cls(Segment.attach(full, owners))

    def _enter(self) -> None:
        native = _native.call
        at = self.segment.base + PROCESSES + self.segment.slot * PROCESS.size
        native.write(at + _S.name, said.command().ljust(16, b"\0"))
        self._after_dead = native.load(at + _S.pid) != 0       # whoever had the slot ended without leaving
        native.store(at + _S.uid, os.geteuid())
        native.store(at + _S.start_ns, time.time_ns())
        self._uses = native.fetch_add(at + _S.uses, 1) + 1
        native.store(at + _S.pid, os.getpid())
        self._state_facts()

    def _state_facts(self) -> None:
        native, base = _native.call, self.segment.base
        for field, value in (
                (_F.base, base), (_F.pairs, base + self._pairs_at), (_F.rings, self._rings), (_F.capacity, self.capacity),
                (_F.pairs_max, self.pairs_max), (_F.memory_fd, self.segment.fd), (_F.me, self.holder),
                (_F.waiters, self.waiters), (_F.waiter_size, self.waiter_size), (_F.offers, base + OFFERS),
                (_F.netns, self.netns), (_F.pid, os.getpid())):
            native.store(self.facts + field, value)
        native.write(self.facts + _F.name, self.name.encode().ljust(32, b"\0")[:32])

    @property
    def shown(self) -> str:
        """The name that people see: without the namespace; a stack without a name has "-" and a number."""
        return self.name.partition(".")[2]

    @property
    def number(self) -> int:
        """A number that stands for the stack in all processes."""
        return int.from_bytes(blake2b(self.name.encode(), digest_size=4).digest(), "little") >> 1

    @property
    def pid(self) -> int:
        """The process that uses it so."""
        return self.segment.pid

    @property
    def in_use(self) -> bool:
        """Whether this process holds a slot of it."""
        return self.pid == os.getpid() and self.segment.fd >= 0

    def after_fork(self) -> None:
        """In a new child: become a user of our own."""
        self.segment.after_fork()
        self._enter()

    def leave(self) -> None:
        """Stop using the stack; the last user removes it.  Addresses stay valid while a handle points there."""
        if self.segment.fd >= 0:
            at = self.segment.base + PROCESSES + self.segment.slot * PROCESS.size
            _native.call.store(at + _S.pid, 0)
            self.segment.leave()

    # ---- pairs

    @property
    def holder(self) -> int:
        """This process' number as a lock holder: of its slot, and of the slot's use, for slots are used again."""
        number: int = self._uses % HOLDER_USES * HOLDER_SLOTS + self.segment.slot + 1
        return number

    def holds(self, number: int) -> bool:
        """Return whether the process exists that has, or had, this number as a lock holder."""
        slot, native = number % HOLDER_SLOTS - 1, _native.call
        if not 0 <= slot < PROCESSES_MAX or not self.segment.alive(slot):
            return False
        uses = native.load(self.segment.base + PROCESSES + slot * PROCESS.size + _S.uses)
        return bool(uses % HOLDER_USES == number // HOLDER_SLOTS)

    def pair(self, index: int) -> int:
        """Return the address of a pair."""
        return self.segment.base + self._pairs_at + index * PAIR_SIZE

    def tcb(self, index: int, side: int) -> int:
        """Return the address of one end's TCB."""
        return self.pair(index) + PAIR_TCB + side * TCB.size

    def direction(self, index: int, side: int) -> int:
        """Return the address of the direction that `side` sends."""
        return self.pair(index) + PAIR_DIRECTION + side * DIRECTION.size

    def ring_offset(self, index: int, side: int) -> int:
        """Return the offset in the segment of the ring that `side` sends."""
        offset: int = self._rings + (2 * index + side) * self.capacity
        return offset

    def take_pair(self) -> int:
        """Return the number of a pair for a new connection, its fields cleared; raise StackFull."""
        index: int = _native.call.take_pair(self.facts)
        if index == -errno.ENFILE and reaping.reap(self):
            index = _native.call.take_pair(self.facts)
        if index < 0:
            raise self.full(-index)
        return index

    def full(self, number: int) -> errors.StackFull:
        """Return the exception that says why no pair could be taken."""
        if number == errno.ENFILE:
            return errors.StackFull(f"a connection in stack {self.name!r}", f"all {self.pairs_max} in use",
                                    "EF_MAX_ENDPOINTS sets the number")
        return errors.StackFull(f"memory for a connection in stack {self.name!r}", os.strerror(number),
                                "is /dev/shm full?")

    def owes(self) -> None:
        """Before a record says so: those whose connection is moved here must find it."""
        _native.call.store(self.segment.base + _H.moved_to, 1)

    def release_pair(self, index: int) -> None:
        """Put a pair that both ends are done with on the free list."""
        _native.call.release_pair(self.facts, index)

    def back(self, index: int, side: int, least: int) -> int:
        """Put memory behind the first part of a ring, more than `least` bytes; return 0 or -errno."""
        where = self.direction(index, side) + _D.backed
        there = max(0, _native.call.load(where))
        wanted = min(self.capacity, max(there * 4, least + PAGE, _FIRST_BACKING))
        if there >= wanted:
            return 0
        failed: int = self.segment.back(self.ring_offset(index, side) + there, wanted - there)
        if not failed:
            _native.call.store(where, wanted)
        return failed

    def pairs_in_use(self) -> Iterator[int]:
        """Yield the numbers of the pairs that are not free."""
        native = _native.call
        for index in range(max(0, min(native.load(self.segment.base + _H.fresh), self.pairs_max))):
            if native.load(self.pair(index) + _P.state) != FREE:
                yield index

    # ---- what happened

    def count(self, counter: str) -> None:
        """Add one to a counter of `layout.COUNTERS`."""
        _native.call.fetch_add(self.segment.base + _H.counters + 8 * COUNTERS.index(counter), 1)

    def __repr__(self) -> str:
        return f"<Stack {self.name} client={self.client} server={self.server} pid={self.pid}>"


def _end(shared: Segment, facts: int) -> None:
    shared.end()
    _native.call.free(facts)


def attached() -> list[Any]:
    """Return the stacks that this process uses."""
    return [stack for stack in list(_attached.values()) if stack.pid == os.getpid()]


def inherited() -> list[Any]:
    """Return, in a forked child, the stacks that its parent used."""
    return [stack for known in _attached.valuerefs() if (stack := known()) is not None]


@atexit.register
def leave_all() -> None:
    """Leave every stack; the process is about to end."""
    for stack in attached():
        stack.leave()
