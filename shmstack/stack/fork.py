"""What a fork means for stacks and endpoints.

Both processes may use a connection afterwards; it ends when the last one closes it.  The child becomes a user of each
inherited stack in its own right, with its own slot, so that its locks are its own and the parent's death or its
own is told apart.  Which process makes a new stack for its next sockets is EF_FORK_NETIF's choice.
"""
from __future__ import annotations

import os

from shmstack.stack import attachment, names, parting


def _before_fork() -> None:
    for end in list(attachment.endpoints):
        if end.open:
            end.shared()


def _after_fork_in_child() -> None:
    names.after_fork_in_child(names.options().fork_netif in (1, 3))
    for end in list(attachment.endpoints):
        end.adopt_in_child()
    parting.after_fork_in_child()


def _after_fork_in_parent() -> None:
    if names.options().fork_netif in (2, 3):
        names.drop_unnamed()


def register() -> None:
    """Have every later fork do this."""
    os.register_at_fork(
        before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)
