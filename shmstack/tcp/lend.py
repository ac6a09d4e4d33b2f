"""Lending the descriptor: whoever has it may write to the lifeline past us, behind all that was sent so far.

So bytes of ours that the receiver hasn't read yet move there from the ring, and the kernel lane is open at its end.  There
the kernel counts, and the next send of ours that goes back to the ring sets its bound behind what others wrote.
"""
from __future__ import annotations

from shmstack._jit import kernel, load, load_acquire
from shmstack.ring.bell import FUTEX, RING
from shmstack.ring.doorbell import ring_bell
from shmstack.ring.lock import take, unlock
from shmstack.ring.stream import outstanding
from shmstack.shm.layout import DIRECTION
from shmstack.tcp.lane import begin_run
from shmstack.tcp.spill import spill
from shmstack.tcp.handle import HANDLE

_D, _H = DIRECTION.at, HANDLE.at


@kernel
def lend(h):
    """Go over to the kernel lane with all that this end sent; return 1 if that is done, 0 if not.

    2: the lifeline has no room for what is left in the ring.  What others write now would come before that.
    """
    tx = load(h + _H.tx)
    if load(h + _H.dead) or load(tx + _D.nb) & 1 == 0:
        return 1
    if not take(tx + _D.tx_lock, load(h + _H.me)):
        return 0
    spilled = spill(h, tx, 1)
    if load(tx + _D.nb) & 1 and outstanding(tx) == 0 and load_acquire(tx + _D.head) == load(tx + _D.tail):
        begin_run(h, tx, load(tx + _D.tail))
    lent = 1 if load(tx + _D.nb) & 1 == 0 else 2 if spilled else 0
    unlock(tx + _D.tx_lock)
    ring_bell(tx + _D.bell, FUTEX, RING)                      # who sleeps for the ring's bytes looks in the other lane
    return lent
