"""What a fork means for stacks and endpoints.

Both processes may use a connection afterwards; it ends when the last one closes it.  The child becomes a user of each
inherited stack in its own right, with its own slot, so that its locks are its own and the parent's death or its
own is told apart.  Which process makes a new stack for its next sockets is EF_FORK_NETIF's choice.

While two processes hold an end, which has one bell, sets in which it waits leave it to the kernel lane.  A child usually
ends by `os._exit`, which calls nobody: so a child that inherited connections has one that first says that it goes.  Of one
that is killed, or runs another program, nobody is told, and its parent's connections stay as they are.
"""
from __future__ import annotations

import operator
import os
from typing import NoReturn

from shmstack import _native
from shmstack.stack import attachment, names, parting

_exit = os._exit


def _before_fork() -> None:
    if attachment.endpoints:
        for end in attachment.living():
            if end.open and not _native.call.share(end.handle):
                end.shared()


def _after_fork_in_child() -> None:
    # What isn't needed is not called: each function and object touched is a page that this process copies.
    names.after_fork_in_child()
    if attachment.endpoints:
        for end in attachment.living():
            end.adopt_in_child()
            os._exit = _say_and_exit
        parting.after_fork_in_child()


def _say_and_exit(status: int) -> NoReturn:
    """os._exit"""
    operator.index(status)
    try:
        for end in attachment.living():
            end.leave()
    finally:
        _exit(status)


def _after_fork_in_parent() -> None:
    names.after_fork_in_parent()


def register() -> None:
    """Have every later fork do this."""
    os.register_at_fork(
        before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)
