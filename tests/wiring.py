"""A pair of endpoints laid out by hand, without a segment or sockets: for tests that run kernels step by step."""
from __future__ import annotations

import ctypes
import socket
from types import SimpleNamespace

from schedule import Memory

from shmstack import _native
from shmstack.shm.layout import COUNTERS, DIRECTION, PAIR, PAIR_DIRECTION, PAIR_SIZE, WAITERS_MAX, waiter_size
from shmstack.tcp.handle import HANDLE

RING, FUTEX, KERNEL = 0, 1, 2
D, H, P = DIRECTION.at, HANDLE.at, PAIR.at
ROOM = 1 << 12                       # bytes of each caller's buffer
WAITER_SIZE = waiter_size(1)


def wire(store, at, capacity, fds, bell=RING):
    """Lay out a joined pair at address `at`; return its addresses as a namespace."""
    made = SimpleNamespace(pair=at, capacity=capacity)
    made.directions = [at + PAIR_DIRECTION + side * DIRECTION.size for side in range(2)]
    made.rings = [at + PAIR_SIZE + side * capacity for side in range(2)]
    made.handles = [at + PAIR_SIZE + 2 * capacity + side * HANDLE.size for side in range(2)]
    made.buffers = [made.handles[1] + HANDLE.size + side * ROOM for side in range(2)]
    made.waiters = made.buffers[1] + ROOM
    made.counters = made.waiters + WAITERS_MAX * WAITER_SIZE
    store(at + P.state, 2)
    for side, h in enumerate(made.handles):
        other = 1 - side
        for field, value in (
                (H.fd, fds[side]), (H.side, side), (H.pair, at), (H.tx, made.directions[side]),
                (H.rx, made.directions[other]), (H.tx_ring, made.rings[side]), (H.rx_ring, made.rings[other]),
                (H.capacity, capacity), (H.me, side + 1), (H.timeout_ns, -1), (H.waiters, made.waiters),
                (H.waiter_size, WAITER_SIZE), (H.counters, made.counters)):
            store(h + field, value)
        store(made.directions[side] + D.backed, capacity)
        store(made.directions[side] + D.bell, bell)
    return made


def plain(capacity=8, lifeline=1 << 30, bell=RING, kind=Memory):
    """Return (memory, wires): everything checked, nothing but these addresses may be touched."""
    memory = kind(lifeline=lifeline)
    made = wire(memory.set, 1 << 20, capacity, (0, 1), bell)
    memory.areas = [(made.pair, PAIR_SIZE), *[(ring, capacity) for ring in made.rings],
                    *[(h, HANDLE.size) for h in made.handles], *[(b, ROOM) for b in made.buffers],
                    (made.waiters, WAITERS_MAX * WAITER_SIZE), (made.counters, 8 * len(COUNTERS))]
    return memory, made


class Compiled:
    """The same with the native library, in memory of this process, its lifeline a kernel connection."""

    def __init__(self, capacity=8, bell=RING):
        native = _native.load()
        self._memory = ctypes.create_string_buffer(
            PAIR_SIZE + 2 * capacity + 2 * HANDLE.size + 2 * ROOM + WAITERS_MAX * WAITER_SIZE
            + 8 * len(COUNTERS) + 64)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            self.sockets = client, listener.accept()[0]
        at = -(-ctypes.addressof(self._memory) // 64) * 64
        self.wires = wire(native.store, at, capacity, [sock.fileno() for sock in self.sockets], bell)

    def close(self):
        for sock in self.sockets:
            sock.close()
