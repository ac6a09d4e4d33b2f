"""Lending the descriptor: whoever has it may write to the lifeline past us, behind all that was sent so far.

So bytes of ours that the receiver hasn't read yet move there from the ring.  In the kernel lane the kernel counts, and
the next send of ours that goes back to the ring sets its bound behind what others wrote.
"""
from __future__ import annotations

from shmstack._jit import kernel, load, load_acquire
from shmstack.ring.lock import take, unlock
from shmstack.shm.layout import DIRECTION
from shmstack.tcp.course import spill
from shmstack.tcp.handle import HANDLE

_D, _H = DIRECTION.at, HANDLE.at


@kernel
def lend(h):
    """Move what this end sent and the other hasn't read to the lifeline; return 1 if nothing is left in the ring.

    The lifeline may not take all, and a receiver that is behind by a change of lane can't be served: then what
    others write comes before what is left.
    """
    tx = load(h + _H.tx)
    if load(tx + _D.nb) & 1 and load_acquire(tx + _D.head) != load(tx + _D.tail) and not load(h + _H.dead):
        if not take(tx + _D.tx_lock, load(h + _H.me)):
            return 0
        spill(h, tx)
        unlock(tx + _D.tx_lock)
    return 1 if load(tx + _D.nb) & 1 == 0 or load_acquire(tx + _D.head) == load(tx + _D.tail) else 0
