"""The standard library's `socket` module, with a socket class whose TCP connections on this host are accelerated.

    import shmstack.socket as socket

Everything of the standard module is here and unchanged; `socket` is a subclass of its `socket.socket`, and the
functions that make sockets make ours.  What can't be accelerated (other families, remote peers, peers that don't
know us, TLS) is a kernel socket like any other.
"""
from __future__ import annotations

import socket as _stdlib
from typing import Any

import _socket

from shmstack._socket import socket as socket

globals().update({_name: getattr(_stdlib, _name) for _name in _stdlib.__all__ if _name != "socket"})


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> socket:
    return socket(family, type, proto, _stdlib.dup(fd))


def socketpair(family: Any = None, type: int = _stdlib.SOCK_STREAM, proto: int = 0) -> tuple[socket, socket]:
    if family is None:
        family = _stdlib.AF_UNIX
    a, b = _socket.socketpair(family, type, proto)
    return socket(family, type, proto, a.detach()), socket(family, type, proto, b.detach())


def _ours(function: Any) -> Any:
    """Return a function of the standard module that makes our sockets: same code, other globals."""
    import types
    scope = _Scope(function.__globals__)
    made = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__, made.__doc__ = function.__kwdefaults__, function.__doc__
    return made


class _Scope(dict):  # type: ignore[type-arg]
    """The standard module's globals, with our class in them."""

    def __init__(self, standard: dict[str, Any]) -> None:
        super().__init__(standard, socket=socket)


create_connection = _ours(_stdlib.create_connection)
create_server = _ours(_stdlib.create_server)
fromfd.__doc__, socketpair.__doc__ = _stdlib.fromfd.__doc__, _stdlib.socketpair.__doc__
send_fds, recv_fds = _stdlib.send_fds, _stdlib.recv_fds


def __getattr__(name: str) -> Any:
    return getattr(_stdlib, name)
