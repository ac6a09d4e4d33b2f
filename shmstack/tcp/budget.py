"""How long a wait spins before it sleeps: what its thread or the options said, or what was learnt from the last waits.

A spin that found something, or would have if it had been longer, makes the next one longer; one in vain halves it.

Who didn't ask to spin yields the core between two looks.  Among processes that all do so, or sleep, that is the quickest
way to have the answer: a switch costs half of what a sleep and a wake-up do.  But one that computes keeps the core for a
whole turn, milliseconds, while the kernel would have given it to a sleeper at once.  So after a yield that took long
this process doesn't yield for some such turns (a *quiet* time), and if the next try finds the same, for twice as long.
Measured, 4 pairs beside 2 processes that compute on 2 cores, five rounds: 88,000 to 222,000 round trips a second (kernel
TCP 124,000 to 157,000), 2,600 without this; one pair beside one, two or four, medians of four rounds each: 62,000 to
342,000 (kernel TCP 31,000 to 145,000, less in each).
"""
from __future__ import annotations

from numba import types

from shmstack._jit import extern, kernel, load, static_words, store
from shmstack.ring.doorbell import now_ns
from shmstack.tcp.handle import HANDLE

_H = HANDLE.at
LEAST_SPIN_NS = 1_000
MOST_JOIN_SPIN_NS = 300_000          # who never joins answers in the kernel lane, where a spin doesn't look

THREADS = 8 * 4                      # static word: address of what threads said, count | (thread, RECV, SEND) ...; or 0
RECV, SEND = 8, 16
JOIN_SPIN = 8 * 5                    # static word: how long waits for a peer to join spin at present, in ns; 0: not known
JOIN_WAITS = 8 * 12                  # static word: how many such waits there were
TRY_JOIN = 16                        # every so manieth spins as long as any may

QUIET_UNTIL = 8 * 6                  # static word: until when waits don't yield, in ns
LONG_TURN_NS = 400_000               # who yields to a process that waits for something gets the core back much sooner
QUIET_SPAN = 8 * 7                   # static word: how long that time is, in ns; 0: there was none of late
LEAST_TURNS, MOST_TURNS = 4, 16      # a quiet time is so many times as long as the turn that it is for
MOST_QUIET_NS = 1_000_000_000

_self = extern("pthread_self", types.int64)
_yield = extern("sched_yield", types.int32)


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
def give_way(now):
    """Let others have the core; return what the time is afterwards."""
    _yield()
    after = now_ns()
    turn = after - now
    if turn > LONG_TURN_NS:
        words = static_words()
        since, span = after - load(words + QUIET_UNTIL), load(words + QUIET_SPAN)
        span = min(2 * span, MOST_TURNS * turn) if since < 2 * span else LEAST_TURNS * turn
        store(words + QUIET_SPAN, span)
        store(words + QUIET_UNTIL, after + span)
    return after


@kernel
def quiet():
    """Return 1 while waits had better sleep than yield, because others would keep the core for long."""
    if load(static_words() + QUIET_SPAN) == 0:
        return 0
    since = now_ns() - load(static_words() + QUIET_UNTIL)
    if since > MOST_QUIET_NS:
        store(static_words() + QUIET_SPAN, 0)
    return 1 if since < 0 else 0


@kernel
def spin_budget(h, kind):
    """Return how long this wait, RECV or SEND, may spin, in ns."""
    table = load(static_words() + THREADS)
    if table != 0:
        own = own_budget(table, kind)
        if own >= 0:
            return own
    if load(h + _H.adapts):
        return 0 if quiet() else load(h + _H.spin_now)
    return load(h + _H.spin_ns)


@kernel
def learn(h, useful):
    """After a wait: spin longer next time if it was, or would have been, useful, and shorter if not."""
    now, most = load(h + _H.spin_now), load(h + _H.spin_ns)
    store(h + _H.spin_now, min(most, 2 * now + LEAST_SPIN_NS) if useful else now // 2)
    return 0


@kernel
def room_budget(h, size):
    """Return how long a send of `size` bytes that must not wait may look for room in a full ring, in ns.

    As long as the kernel would take to copy them: so it costs at most twice what the kernel's way does (the ski-rental
    argument), and nothing is to be learnt.
    """
    return size * 2 // 5 if load(h + _H.spin_ns) else 0


@kernel
def join_budget(h):
    """Return how long to spin for a peer that has yet to join: each does so once, so this is learnt by the process.

    Now and then as long as at all, because who sleeps also makes his peer slower, who has to wake him.
    """
    if load(static_words() + THREADS) != 0 or not load(h + _H.adapts) or load(h + _H.spin_ns) == 0:
        return min(spin_budget(h, RECV), MOST_JOIN_SPIN_NS)
    waits = load(static_words() + JOIN_WAITS) + 1
    store(static_words() + JOIN_WAITS, waits)
    known = load(static_words() + JOIN_SPIN)
    return known if known and waits % TRY_JOIN else MOST_JOIN_SPIN_NS


@kernel
def learn_join(came, took_ns):
    """After such a wait, of so many ns: spin longer the next time if that would have been useful, and shorter if not."""
    now = load(static_words() + JOIN_SPIN) or MOST_JOIN_SPIN_NS
    useful = came > 0 and took_ns < MOST_JOIN_SPIN_NS
    store(static_words() + JOIN_SPIN, min(MOST_JOIN_SPIN_NS, max(now, 2 * took_ns)) if useful else max(now * 7 // 8, 1))
    return 0
