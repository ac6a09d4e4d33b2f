"""Stacks that were made for one connection (mode 4), for the next one.

Guarantee: a spare is given out when no connection lives in it, to the same user, process, namespace and options as the
first time.  So it is as good as new, but for its name and counters.

Theory.  To make a segment, and to map and leave it at both ends, costs four times what the connection does (measured,
2 cores: 3,400 connections a second with a segment for each, 10,000 of kernel TCP).  The pair in a stack says by itself
when both ends are done with it (`Header.used`), and taking it anew clears it, as in any other stack.  Who accepts keeps what
he mapped, too, as long as the maker does.  Who could have kept the mapping on purpose is whom the segment is open to
anyway.

Rejected: a pool of segments filled ahead (programs that make one connection would pay for several).
"""
from __future__ import annotations

import threading
import weakref
from collections import deque

from shmstack import _native
from shmstack.options import Options
from shmstack.shm.layout import HEADER
from shmstack.stack.stack import Stack

PAIRS = 2                             # in a stack that is made for one connection
MOST = 4                              # that are kept by a process, of its own and of others each

_H = HEADER.at
_turn = threading.RLock()             # a socket may be collected, and closed, anywhere
_lent: weakref.WeakKeyDictionary[Stack, Options] = weakref.WeakKeyDictionary()   # given out, and what it was made with
_made: deque[tuple[Options, Stack]] = deque(maxlen=MOST)                         # come back; the other end may not be done
_met: deque[Stack] = deque(maxlen=MOST)                                          # made by others


def take(netns: int, options: Options) -> Stack:
    """Return a stack in which there is no connection, and that nobody else is given until it was `done` with."""
    with _turn:
        stack = next((stack for known, stack in tuple(_made)
                      if known == options and stack.netns == netns and stack.in_use and _is_free(stack)), None)
        if stack is not None:
            _made.remove((options, stack))
    stack = stack or Stack.unnamed(netns, options, PAIRS)
    _lent[stack] = options
    return stack


def _is_free(stack: Stack) -> bool:
    native, base = _native.call, stack.segment.base
    return not native.load(base + _H.used) and not native.load(base + _H.moved_to)


def keep(stack: Stack) -> None:
    """Stay in somebody else's for his next connection."""
    with _turn:
        if stack not in _lent and stack not in _met:
            for other in tuple(_met):
                _drop_if_alone(other)
            _met.append(stack)


def done(stack: Stack) -> None:
    """An end of the connection in this stack was closed."""
    with _turn:
        options = _lent.pop(stack, None)
        if options is not None:
            _made.append((options, stack))
        elif stack in _met:
            _drop_if_alone(stack)


def _drop_if_alone(stack: Stack) -> None:
    if not (stack.in_use and stack.segment.others()):
        _met.remove(stack)


def after_fork_in_child() -> None:
    """They are the parent's."""
    global _turn
    _turn = threading.RLock()
    for those in _lent, _made, _met:
        if those:
            those.clear()
