"""Onload's extension API for one socket: is it accelerated, where does it live, move it, and how this thread waits.

Which stack the next sockets go to is said in `names`; both are re-exported by the package itself.  Failure is an
`OSError` with Onload's errno where Onload returns a negative number.  A socket is named by the object or by its
descriptor; naming it changes nothing, while `sock.fileno()` tells the library that somebody else will look there.
"""
from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from shmstack import _native, errors
from shmstack.options import Options
from shmstack.stack import attachment, patience
from shmstack.stack import names
from shmstack.stack import stack as stacks
from shmstack.stack.endpoint import Endpoint
from shmstack.tcp import lifeline
from shmstack.tcp.state import State


class FdStat(NamedTuple):
    """What `fd_stat` knows of an accelerated socket.

    `stack_id` is the same in all processes, `endpoint_id` the number in the stack, `endpoint_state` RFC 9293's word;
    a lane is "ring" or "kernel": the way that the next byte takes, as far as both sides know now.
    """

    stack_id: int
    stack_name: str
    endpoint_id: int
    endpoint_state: str
    tx_lane: str
    rx_lane: str


def is_present() -> bool:
    """Return whether connections can be accelerated in this process: its kernels are there, its machine has all."""
    try:
        _native.load()
    except ImportError:
        return False
    return True


def find(sock: Any) -> Endpoint | None:
    """Return the endpoint of a socket object or descriptor, None if it is not accelerated.

    Parameters
    ----------
    sock : a socket of `shmstack.socket`, anything with `fileno()`, or a descriptor
    """
    end = getattr(sock, "_endpoint", None)
    if end is None:
        if isinstance(sock, lifeline.standard):
            fd = lifeline.standard.fileno(sock)
        else:
            fd = sock if isinstance(sock, int) else sock.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        end = next((one for one in attachment.living()
                    if one.open and one.pid == os.getpid() and one.fd == fd), None)
    if end is not None:
        end.follow()
    return end


def stack_name(sock: Any = None) -> str | None:
    """Return the name of the stack that a socket lives in, None if it is not accelerated.

    Without a socket: of the stack for this thread's next one, "" for the one without a name, None for no stack.
    """
    if sock is None:
        return names.current_name()
    end = find(sock)
    return None if end is None else end.stack.shown


def fd_stat(sock: Any) -> FdStat | None:
    """Return where a socket lives and by which lanes its bytes go, None if it is not accelerated.

    A connection that the other side has not accepted yet is one that is: both its lanes are the kernel's until then.
    """
    end = find(sock)
    if end is None:
        return None
    state = end.state
    spelled = str(State(state)) if state in State._value2member_map_ else f"?{state}"
    return FdStat(end.stack.number, end.stack.shown, end.id, spelled, *end.lanes())


def move_fd(sock: Any) -> None:
    """Move a connection to the stack that this thread's next socket would go to (see `set_stackname`).

    The connection may be in use by both sides, in both directions, at the same time; no byte is lost, and the other
    side needs to do nothing.  Where Onload refuses (a loopback connection, one that has sent or received) this moves.

    Raises
    ------
    NotMovable
        Not accelerated, not accepted yet, busy, or the other side may not use that stack; it goes on where it is.
    StackFull
        That stack has no room; it goes on where it is.
    """
    from shmstack.stack import migrate
    end = find(sock)
    if end is None:
        raise errors.NotMovable("a connection that is accelerated", "one that is not")
    with patience.lifeline_of(end.fd) as plain:
        if plain is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        target = names.current(plain)
    if target is None:
        raise errors.NotMovable("a stack to move to", "none: this thread asked for no acceleration")
    migrate.move(end, target)


def _here() -> int:
    with lifeline.standard() as sock:
        return lifeline.netns(sock)


class Stack(stacks.Stack):
    """A stack, opened or joined by its name alone.

    What is opened stays until the object is collected or the process ends, and with it the memory: hold it to have
    connections find the stack there already.
    """

    @classmethod
    def open(cls, name: str, netns: int | None = None, options: Options | None = None) -> stacks.Stack:
        """Return the stack called `name` (as EF_NAME), made now or joined.

        Parameters
        ----------
        name : up to 16 letters
        netns : number of a network namespace, the caller's unless given
        options : of the stack if it is made now, this thread's unless given
        """
        return super().open(Options(name=name).name, _here() if netns is None else netns, options or names.options())

    @classmethod
    def attach(cls, name: str, owners: tuple[int, ...] = ()) -> stacks.Stack:
        """Return the existing stack of this name; raise StackNotFound, StackDenied or LayoutMismatch.

        Parameters
        ----------
        name : as `shmstack list` shows it, or with the namespace in front
        owners : users that it may belong to besides ourselves and root
        """
        return super().attach(name if "." in name else f"{_here():x}.{name}", owners)
