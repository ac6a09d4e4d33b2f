"""How often the receiver of a stream looks: not at each message of a sender that is as fast as itself.

Theory.  A message costs its sender some 60 ns as long as nobody looks, and several times that when the receiver takes
each one at once: the lines of the tail and of the bytes then change cores for every message, twice.  A receiver that
emptied the ring, and has only received for a while, therefore rests until REST_NS after that before it looks again;
what came meanwhile it takes in one go.

What is sent REST_NS or more after the last message was taken isn't delayed, nor is an answer, nor is what stands in
the ring already: a program that reads a header and then a body rests once a ring emptied, not once a read.  Who set
how long waits spin has asked for the least latency, and who polls doesn't look before there is something: they never rest.
"""
from __future__ import annotations

from shmstack._jit import kernel, load, pause, store
from shmstack.ring.bell import RING
from shmstack.ring.doorbell import now_ns
from shmstack.tcp.handle import HANDLE

_H = HANDLE.at
STREAM = 16                          # receives without a send between: from here on it is a stream
LARGE = 1 << 14                      # bytes of a receive whose copy costs more than the lines' way
REST_NS = 5_000


@kernel
def rest(h):
    """Before a receive: wait, without a look at shared memory, until the rest that the last one began is over."""
    emptied = load(h + _H.emptied)
    if emptied:
        while 0 <= now_ns() - emptied < REST_NS:
            pause()
    return 0


@kernel
def took(h, wanted, got):
    """After a receive of `got` of `wanted` bytes, more than 0: count it, and note whether it emptied the ring."""
    streak = load(h + _H.streak) + 1
    store(h + _H.streak, streak)
    if streak >= STREAM:
        waits = load(h + _H.adapts) and load(h + _H.receive_ns) and load(h + _H.bell) == RING
        store(h + _H.emptied, now_ns() if waits and got < min(wanted, LARGE) else 0)
    return got


@kernel
def answered(h):
    """After a send: what comes next is waited for."""
    store(h + _H.streak, 0)
    store(h + _H.emptied, 0)
    return 0
