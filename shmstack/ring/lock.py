"""A lock for each end of a direction, held for the length of one copy and never across a wait.

The word is 0, or the number of the holder: its process, by slot and use of the slot.  The usual case, no
contention, is one compare-and-swap on a line that the taker has in its cache.  Whoever finds the lock taken spins
for a moment, then yields; if that doesn't help the caller asks the kernel whether the holder's process still
exists (`Stack.holds`, outside of this file: it is a system call) and breaks the lock of a dead one.

Breaking is safe because every structure that a lock guards is true after each single store: bytes are written
before the tail that covers them, a bound before the count that includes it.  What a dead holder had half done was
not published, and is overwritten; what it had announced is finished (`tcp.spill`).

The locks of a pair that was moved to another stack are held for good, by MOVED_LOCK: nobody gets in, nobody waits.

# SYNC lock: what the holder wrote is visible to the next holder (release in `unlock`, acquire in `take`)
"""
from __future__ import annotations

from numba import types

from shmstack._jit import cas, extern, kernel, pause, store_release
from shmstack.shm.layout import MOVED_LOCK

SPINS = 200
YIELDS = 200

_yield = extern("sched_yield", types.int32)


@kernel
def take(lock, me):
    """Take the lock at address `lock` for holder `me`; return 1, or 0 if somebody else kept it (SYNC lock)."""
    for _ in range(SPINS):
        seen = cas(lock, 0, me)
        if seen == 0:
            return 1
        if seen == MOVED_LOCK:
            return 0
        pause()
    for _ in range(YIELDS):
        if cas(lock, 0, me) == 0:
            return 1
        _yield()
    return 0


@kernel
def unlock(lock):
    """Release the lock (SYNC lock)."""
    store_release(lock, 0)
    return 0


@kernel
def break_lock(lock, holder):
    """Release the lock on behalf of the dead process `holder`; return 1 if it still held it."""
    if cas(lock, holder, 0) == holder:
        return 1
    return 0
