"""An end of a connection on its way to another process: in a pickle, beside its descriptor.

Guarantee: whoever arrives with both goes on where the end was, in the ring.  Until then the end counts one holder more, as
over a fork: what the sender of the pickle still had open may be closed meanwhile.

One that never arrives leaves that count too high; the kernel, which has closed the descriptor, then tells the peer of the
end.

Rejected: to leave the connection to kernel TCP, as any other pickled socket is.  A Pipe and a Queue exist to be passed on.
"""
from __future__ import annotations

import os
from typing import Any, NamedTuple

from shmstack import _native, errors
from shmstack.shm.layout import PAIR
from shmstack.stack import rendezvous
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline
from shmstack.tcp.state import State


class Ticket(NamedTuple):
    """Where an end lives, and what it is known by there."""

    stack: str
    owner: int
    pair: int
    side: int
    generation: int
    cookie: int


def leave(end: Endpoint | None) -> Ticket | None:
    """Return what takes an end to another process, None if it can't go: it isn't connected, or not in a ring."""
    if end is None or not end.open or end.pid != os.getpid() or end.lent or not end.joined \
            or end.state != State.ESTABLISHED:
        return None
    end.shared()
    end.follow()
    return Ticket(end.stack.name, end.stack.owner, end.index, end.side, end.generation, end.cookie)


def arrive(ticket: Ticket, sock: Any) -> Endpoint:
    """Return the end that a ticket names, as this process holds it.

    Parameters
    ----------
    sock : plain socket on the descriptor that came with the ticket

    Raises
    ------
    errors.StackNotFound, errors.StackDenied
        Its stack is gone, or another user's.
    errors.StackDied
        The end isn't there any more.
    """
    stack = Stack.attach(ticket.stack, (ticket.owner,))
    there = 0 <= ticket.pair < stack.pairs_max and ticket.side in (0, 1) and lifeline.cookie(sock) == ticket.cookie \
        and _native.call.load(stack.pair(ticket.pair) + PAIR.at.generation) == ticket.generation
    if not there:
        raise errors.StackDied(f"connection {ticket.pair} of stack {stack.name!r}", "it ended on its way to this process")
    timeout, how, fd = sock.gettimeout(), rendezvous.spin("tcp_recv"), sock._descriptor()
    handle = _native.call.enter(stack.facts, ticket.pair, ticket.side, fd, how.ns, how.adapts)
    end = Endpoint(stack, ticket.pair, ticket.side, fd, timeout, how, handle)      # counted when it left
    end.set_timeout(timeout)
    return end
