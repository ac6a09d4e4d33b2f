"""The lock of a dead sender is inherited, with what it left undone; see `tcp.spill`."""
from __future__ import annotations

import socket
from typing import Any

from shmstack import _native
from shmstack.shm.layout import DIRECTION, PAIR_DIRECTION
from shmstack.stack.patience import lifeline_of
from shmstack.tcp import lifeline
from shmstack.tcp.state import State

_D = DIRECTION.at
_OVER = (State.CLOSED, State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.TIME_WAIT)    # the FIN came, or a reset


def inherit(end: Any, pair: int, lock: int, holder: int) -> bool:
    """Release a lock on behalf of the dead process `holder`, the stream mended; return whether that was done.

    Parameters
    ----------
    end : an endpoint
    pair : address of its pair, when the lock's address was made
    lock : address of one of its four locks
    """
    native, ways = _native.call, pair + PAIR_DIRECTION
    tx, rx = ways + end.side * DIRECTION.size, ways + (1 - end.side) * DIRECTION.size
    if lock == tx + _D.tx_lock:
        return bool(native.inherit_sent(end.handle, tx, holder, end.stack.holder))
    if lock != rx + _D.tx_lock or not native.load(rx + _D.spilling):
        return bool(native.break_lock(lock, holder))
    native.break_lock(rx + _D.rx_lock, holder)                # it held both
    return all_came(end) and bool(native.inherit_received(end.handle, rx, holder, end.stack.holder))


def all_came(end: Any) -> bool:
    """Return whether all that was written to the lifeline at the other end has come to this one, if nobody writes."""
    with lifeline_of(end.fd) as sock:
        try:
            if sock is None or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _OVER:
                return True
            local, remote = sock.getsockname(), sock.getpeername()
            found = lifeline.peer(sock.family, local[:2], remote[:2], end.stack.netns)
        except OSError:
            return False
    return found is not None and found.unacked == 0
