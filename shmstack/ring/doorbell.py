"""Who sleeps where: the word by which a receiver says where it will look next, and how it is woken there.

`direction.bell`, written by the receiver:

    RING     it reads the ring, or will when it next looks: nobody needs waking
    FUTEX    it sleeps on this very word
    KERNEL   it looks at the lifeline only (asleep in poll, or some foreign code has the descriptor): send there
    DEEP     it sleeps in poll on the lifeline after a long wait, and reads the ring once it is awake: wake it there
    WAITER+w its poller number w looks after it: set the endpoint's bit; if the poller sleeps, send there

So a message to a receiver that sleeps in the kernel *is* its own wake-up call: it travels in the kernel lane.
No byte of ours ever stands in the lifeline, and any poller sees the truth there.

Theory.  A sleeper says so, then looks once more, and only then sleeps; the other side publishes, then looks
whether somebody sleeps (Dekker).  Both need a full fence between their store and their load.  The fence of the
busy side would wait for its store to reach a line that the other core is reading, 60 to 100 ns a message;
instead the sleeper pays for both by membarrier(2), and the sender's fast path has no fence at all.  Where the kernel
refuses membarrier (seccomp), `BARRIER` in the static words is 0 and sleeps are cut to a millisecond.

membarrier interrupts every core that runs one of us, and one process at a time: 0.5 us on an idle machine, 15 us and
more where that means a virtual interrupt, and with more busy processes than cores each waits for the others' in turn.
So a receiver that sleeps pays once: it has its senders make their fence (`direction.fenced`), until it has stayed awake
for many waits.  With that a connection begins, so that a short one costs nobody an interrupt.  Who changes that word
counts it up, so none of several receivers takes an old state for a new one:

    modulo 4 == 0   senders make none                  who goes to sleep counts up, then calls membarrier
              == 1   those that read this make one      who goes to sleep calls membarrier, then counts up
              == 2   all do                             who stays awake counts up by two

The sleeper reads it after it wrote the bell: then whoever takes the fences away meanwhile does so after that, and a
sender that saw them gone sees the bell.

# SYNC asleep: (bell := FUTEX; fence; look at fenced; membarrier unless it is 2; look)
#              against (tail; look at fenced; fence unless it is 0; look at bell)
# SYNC stalled: (stalled := 1; membarrier; look at head) against (head; look at stalled)

Spinning comes first, without PAUSE for as long as an answer from the other core usually takes.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import cas, extern, fence, kernel, load, load_acquire, scratch, static_words, store
from shmstack.shm.layout import DIRECTION

_D = DIRECTION.at

BARRIER = 8 * 1                      # static word: 1 if membarrier works in this process

_syscall = extern("syscall", types.int64, types.int64, types.int64, types.int64, types.int64, types.int64,
                  types.int64, types.int64)
_clock = extern("clock_gettime", types.int32, types.int32, types.int64)

FUTEX_NUMBER = 8 * 2                 # static words: system call numbers of this machine
MEMBARRIER_NUMBER = 8 * 3
_GLOBAL_EXPEDITED, _REGISTER = 2, 4
_WAIT, _WAKE, _ALL = 0, 1, 0x7FFFFFFF
SHORT_SLEEP_NS = 1_000_000
BY_SENDERS = 2                       # DIRECTION.fenced modulo 4


@kernel
def now_ns():
    """Return CLOCK_MONOTONIC in ns."""
    time = scratch()
    _clock(1, time)
    return load(time) * 1_000_000_000 + load(time + 8)


@kernel
def barrier():
    """Order every store before against every load after, in all processes that use a stack (SYNC asleep)."""
    return _syscall(load(static_words() + MEMBARRIER_NUMBER), _GLOBAL_EXPEDITED, 0, 0, 0, 0, 0)


@kernel
def after_bell(direction):
    """Order a store to the bell before the receiver's looks at what senders publish (SYNC asleep)."""
    fence()
    before = load_acquire(direction + _D.fenced)
    if before & 3 == BY_SENDERS:
        return 0
    if before & 3 == 0:
        cas(direction + _D.fenced, before, before + 1)
        before = load_acquire(direction + _D.fenced)
    done = barrier()
    if done == 0 and before & 3 == 1:
        cas(direction + _D.fenced, before, before + 1)
    return done


@kernel
def before_bell(direction):
    """Order what a sender published before its look at the bell, if the receiver relies on that (SYNC asleep)."""
    if load_acquire(direction + _D.fenced) & 3:
        fence()
    return 0


@kernel
def unfence(direction):
    """Take the fences off the senders' way: this receiver sleeps seldom."""
    now = load_acquire(direction + _D.fenced)
    if now & 3 == BY_SENDERS:
        cas(direction + _D.fenced, now, now + 2)
    return 0


@kernel
def register_barrier():
    """Make this process a target of `barrier`; return 1 if the kernel can."""
    done = _syscall(load(static_words() + MEMBARRIER_NUMBER), _REGISTER, 0, 0, 0, 0, 0)
    store(static_words() + BARRIER, 1 if done == 0 else 0)
    return 1 if done == 0 else 0


@kernel
def sleep(word, value, limit_ns):
    """Sleep while the 32-bit word is `value`, at most `limit_ns`; return at a wake-up, a signal or the limit."""
    if load(static_words() + BARRIER) == 0 and limit_ns > SHORT_SLEEP_NS:
        limit_ns = SHORT_SLEEP_NS
    time = scratch()
    store(time, limit_ns // 1_000_000_000)
    store(time + 8, limit_ns % 1_000_000_000)
    return _syscall(load(static_words() + FUTEX_NUMBER), word, _WAIT, value, time, 0, 0)


@kernel
def wake(word):
    """Wake all that sleep on the word."""
    return _syscall(load(static_words() + FUTEX_NUMBER), word, _WAKE, _ALL, 0, 0, 0)


@kernel
def ring_bell(word, asleep, awake):
    """If the word says that somebody sleeps (`asleep`), change it to `awake` and wake them; return 1 if so."""
    if cas(word, asleep, awake) != asleep:
        return 0
    wake(word)
    return 1
