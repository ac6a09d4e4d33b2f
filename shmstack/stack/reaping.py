"""Pairs of connections that nobody holds any more: their processes were killed, or ended without a word (`os._exit`).

Guarantee: a pair is freed here only when the kernel says that no process has a descriptor of either end, and, if it
was never accepted, that nobody will accept it.

Theory.  Who closes says so in the pair, and the second to do so frees it.  Who is killed says nothing, but the kernel
closes his end of the lifeline, and its sock_diag knows for every socket whether a process holds it.  It is asked when
it is likely to matter: about one pair, by who closes an end and finds that the other end was closed without a word;
about all, by who takes the process slot of somebody who ended so, or finds a stack full.

Rejected: to ask whether the processes named in the TCBs live (a fork gives a connection to others); a list of what each
process holds, in shared memory (more to write for each connection, and itself to be repaired).
"""
from __future__ import annotations

import socket
import time
from typing import Any

from shmstack import _native
from shmstack.shm.layout import PAIR, TCB
from shmstack.tcp import lifeline

_P, _T = PAIR.at, TCB.at
_OFFERED, _ESTABLISHED = 1, 2                               # PAIR.state
AGAIN_SECONDS = 1.0                                         # between two looks at all pairs
YOUNG_NS = 5_000_000_000                                    # age of a pair that may still be in the making


def reap(stack: Any) -> int:
    """Free what nobody holds any more of a stack's pairs; return how many.  Not again within a second: it takes its time."""
    native, now, freed = _native.call, time.time_ns(), 0
    if time.monotonic() < stack.reaped + AGAIN_SECONDS:
        return 0
    stack.reaped = time.monotonic()
    for index in stack.pairs_in_use():
        if abs(now - native.load(stack.pair(index) + _P.created_ns)) > YOUNG_NS:
            freed += reap_pair(stack, index, native.load(stack.pair(index) + _P.generation))
    return freed


def reap_pair(stack: Any, index: int, generation: int) -> bool:
    """Free one pair, if it is of this generation and nobody holds either end of it any more; return whether that was so."""
    native, pair = _native.call, stack.pair(index)
    state = native.load(pair + _P.state)
    if state not in (_OFFERED, _ESTABLISHED) or not _abandoned(stack, index, state):
        return False
    if native.load(pair + _P.generation) != generation or native.fetch_or(pair + _P.closed, 3) & 3 == 3:
        return False                                        # somebody was quicker
    stack.release_pair(index)
    stack.count("reaped_pairs")
    return True


def _abandoned(stack: Any, index: int, state: int) -> bool:
    native, pair = _native.call, stack.pair(index)
    family, ports = native.load(pair + _P.family), native.load(pair + _P.ports)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return False                                        # not connected yet
    size = 4 if family == socket.AF_INET else 16
    client, server = ((socket.inet_ntop(family, native.read(pair + at, size)), port) for at, port in (
        (_P.client_ip, ports >> 16 & 0xFFFF), (_P.server_ip, ports & 0xFFFF)))
    try:
        ends = [lifeline.peer(family, to, source, stack.netns, True) for source, to in ((client, server), (server, client))]
    except OSError:
        return False                                        # another namespace, or no answer
    for side, end in enumerate(ends):
        known = native.load(stack.tcb(index, side) + _T.cookie)
        if end is not None and end.cookie == known and end.held:
            return False
    # The kernel keeps what waits to be accepted, its client may be gone.
    return state == _ESTABLISHED or ends[1] is None
