"""The loopback table: in which stack a connection lives, as data.

A row is EF_TCP_CLIENT_LOOPBACK of the connecting socket's stack, a column EF_TCP_SERVER_LOOPBACK of the listening
socket's stack.  The values and what they mean are Onload's.
"""
from __future__ import annotations

from enum import Enum


class Home(Enum):
    """Where both ends of a connection land."""

    KERNEL = "kernel"                 # not accelerated
    SAME = "same"                     # client and listener are in one stack: nobody moves
    CLIENT = "client"                 # the accepted socket is born in the client's stack
    LISTENER = "listener"             # the connecting socket moves to the listener's stack
    NEW = "new"                       # both go to a stack made for this connection


_K, _S, _C, _L, _N = Home.KERNEL, Home.SAME, Home.CLIENT, Home.LISTENER, Home.NEW

SAME_STACK = (
    (_K, _K, _K),
    (_K, _S, _S),
    (_K, _S, _S),
    (_K, _S, _S),
    (_K, _S, _S),                     # client 4 makes no new stack when both are in one already
)
OTHER_STACK = (
    (_K, _K, _K),
    (_K, _K, _K),
    (_K, _K, _C),
    (_K, _L, _L),
    (_K, _K, _N),
)


def home(client: int, server: int, same: bool) -> Home:
    """Return where a connection lives; values out of range (a damaged record) mean the kernel."""
    table = SAME_STACK if same else OTHER_STACK
    if 0 <= client < len(table) and 0 <= server < len(table[0]):
        return table[client][server]
    return Home.KERNEL


def reason(client: int, server: int) -> str:
    """Return the counter that says why `home` gave the kernel."""
    if client == 0:
        return "not_client_off"
    if server == 0:
        return "not_server_off"
    return "not_other_stack" if client == 1 else "not_alien"


def admits(server: int, same: bool) -> bool:
    """Return whether a listener takes an offer that lives in its own stack (`same`) or in another one."""
    return server == 2 or (server == 1 and same)
