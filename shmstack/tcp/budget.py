"""How long a wait spins before it sleeps: what its thread or the options said, or what was learnt from the last waits.

A spin that found something, or would have if it had been longer, makes the next one longer; one in vain halves it.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import extern, kernel, load, static_words, store
from shmstack.tcp.handle import HANDLE

_H = HANDLE.at
LEAST_SPIN_NS = 1_000
MOST_JOIN_SPIN_NS = 300_000          # who never joins answers in the kernel lane, where a spin doesn't look

THREADS = 8 * 4                      # static word: address of what threads said, count | (thread, RECV, SEND) ...; or 0
RECV, SEND = 8, 16
JOIN_SPIN = 8 * 5                    # static word: how long waits for a peer to join spin at present, in ns; 0: not known

_self = extern("pthread_self", types.int64)


@kernel
def own_budget(table, kind):
    """Return what this thread said of its own waits (see `stack.threads`), in ns; -1 if nothing."""
    me = _self()
    for i in range(load(table)):
        entry = table + 8 + 24 * i
        if load(entry) == me:
            return load(entry + kind)
    return -1


@kernel
def spin_budget(h, kind):
    """Return how long this wait, RECV or SEND, may spin, in ns."""
    table = load(static_words() + THREADS)
    if table != 0:
        own = own_budget(table, kind)
        if own >= 0:
            return own
    return load(h + _H.spin_now) if load(h + _H.adapts) else load(h + _H.spin_ns)


@kernel
def learn(h, useful):
    """After a wait: spin longer next time if it was, or would have been, useful, and shorter if not."""
    now, most = load(h + _H.spin_now), load(h + _H.spin_ns)
    store(h + _H.spin_now, min(most, 2 * now + LEAST_SPIN_NS) if useful else now // 2)
    return 0


@kernel
def join_budget(h):
    """Return how long to spin for a peer that has yet to join: each does so once, so this is learnt by the process."""
    if load(static_words() + THREADS) != 0 or not load(h + _H.adapts) or load(h + _H.spin_ns) == 0:
        return min(spin_budget(h, RECV), MOST_JOIN_SPIN_NS)
    known = load(static_words() + JOIN_SPIN)
    return known if known else MOST_JOIN_SPIN_NS


@kernel
def learn_join(useful):
    """After such a wait: spin longer the next time if it was, or would have been, useful, and shorter if not."""
    now = load(static_words() + JOIN_SPIN) or MOST_JOIN_SPIN_NS
    store(static_words() + JOIN_SPIN, min(MOST_JOIN_SPIN_NS, 2 * now + LEAST_SPIN_NS) if useful else max(now // 2, 1))
    return 0
