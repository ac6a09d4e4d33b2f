"""`multiprocessing.connection` over accelerated TCP: Pipe, Listener, Client, wait, and a Queue.

    from shmstack.connection import Client, Listener, Pipe, Queue, wait

Guarantee: the standard library's interface, errors and bytes on the wire.  A `Connection` is one of the standard
class that holds a socket instead of a bare descriptor (`_connection`), so either end may be a plain one of
`multiprocessing.connection` over kernel TCP.  Under the launcher `install()` gives the standard module the same, for
managers and all else that is built on it; UNIX sockets and its own `Pipe()`, which is no TCP, stay what they are.

The ends of `Pipe()`, and so a Queue, stay accelerated wherever they go: by a fork, and by a pickle to a process that is
spawned or already runs (`stack.journey`).  Any other connection or socket that is pickled leaves for kernel TCP first: its
descriptor arrives in any interpreter, and no byte of it is in a ring that nobody there reads.

Rejected: to make connections of `Pipe()` ours under the launcher.  It is faster than TCP already, and programs rely on its
being a socket pair or a pipe (atomic writes, `SCM_RIGHTS`).
"""
from __future__ import annotations

import multiprocessing
from multiprocessing import connection as _module
from multiprocessing import reduction as _reduction
from typing import Any

from shmstack import _queue
from shmstack import _socket as _class
from shmstack import socket as _socket
from shmstack._connection import Connection, wait
from shmstack.stack import journey

__all__ = ["AuthenticationError", "BufferTooShort", "Client", "Connection", "Listener", "Pipe", "Queue", "wait"]

AuthenticationError, BufferTooShort = multiprocessing.AuthenticationError, multiprocessing.BufferTooShort
socket: Any = _socket.socket
_standard: Any = _module             # with all that is not public in it
_SocketListener, _SocketClient = _standard.SocketListener, _standard.SocketClient


# ---- listening and connecting --------------------------------------------------------------------------------

def _connection(sock: Any) -> Any:
    sock.setblocking(True)
    accelerated = getattr(sock, "_endpoint", None) is not None
    return Connection(sock) if accelerated else _standard.Connection(sock.detach())


class SocketListener(_standard.SocketListener):  # type: ignore[misc]
    """The listening socket of a `Listener`."""

    def __init__(self, address: Any, family: str, backlog: int = 1) -> None:
        if family == "AF_UNIX":
            super().__init__(address, family, backlog)
            return
        self._family, self._last_accepted, self._unlink = family, None, None
        self._socket = sock = socket(getattr(_socket, family))
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.setblocking(True)
            sock.bind(address)
            sock.listen(backlog)
            self._address = sock.getsockname()
        except OSError:
            sock.close()
            raise

    def accept(self) -> Any:
        sock, self._last_accepted = self._socket.accept()
        return _connection(sock)


def SocketClient(address: Any) -> Any:
    """Return a connection to a `SocketListener`."""
    sock = socket(getattr(_socket, _standard.address_type(address)))
    try:
        sock.setblocking(True)
        sock.connect(address)
        return _connection(sock)
    except BaseException:
        sock.close()
        raise


class Listener(_standard.Listener):  # type: ignore[misc]
    """The standard library's Listener; without an address or a family it listens on TCP.

    Parameters
    ----------
    address, family, backlog, authkey : as the standard library's
    """

    def __init__(self, address: Any = None, family: str | None = None, backlog: int = 1,
                 authkey: bytes | None = None) -> None:
        family = family or (_standard.address_type(address) if address else "AF_INET")
        _standard._validate_family(family)
        _check_key(authkey)
        self._listener = SocketListener(address or _standard.arbitrary_address(family), family, backlog)
        self._authkey = authkey


def Client(address: Any, family: str | None = None, authkey: bytes | None = None) -> Any:
    """Return a connection to the address of a `Listener`."""
    _standard._validate_family(family or _standard.address_type(address))
    _check_key(authkey)
    made = SocketClient(address)
    if authkey is not None:
        try:
            _standard.answer_challenge(made, authkey)
            _standard.deliver_challenge(made, authkey)
        except BaseException:
            made.close()
            raise
    return made


def _check_key(authkey: Any) -> None:
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Return both ends of a connection over loopback TCP; if not `duplex`, the first reads and the second writes."""
    with socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        while True:
            one = socket()
            try:
                one.setblocking(True)
                one.connect(listener.getsockname())
                two, address = listener.accept()
                two.setblocking(True)
            except BaseException:
                one.close()
                raise
            if address == one.getsockname():                  # anybody on this host may have been quicker
                return Connection(one, writable=duplex, travels=True), Connection(two, readable=duplex, travels=True)
            one.close()
            two.close()


def Queue(maxsize: int = 0, *, ctx: Any = None) -> _queue.Queue:
    """Return a `multiprocessing.Queue` whose objects travel through a stack.

    Parameters
    ----------
    maxsize : how many objects it holds, 0: any number
    ctx : the multiprocessing context, for its locks
    """
    return _queue.Queue(Pipe(duplex=False), maxsize, ctx=ctx)


# ---- to other processes, and under the launcher --------------------------------------------------------------

def _reduce_connection(made: Connection) -> Any:
    made._check_closed()
    ticket = journey.leave(made._endpoint) if made._travels else None
    if ticket is None:
        made._sock._to_kernel()
        return _standard.reduce_connection(made)
    return _arrive, (_reduction.DupFd(made._descriptor()), made.readable, made.writable, tuple(ticket))


def _arrive(descriptor: Any, readable: bool, writable: bool, ticket: tuple[Any, ...]) -> Connection:
    sock = socket(fileno=descriptor.detach())
    sock.settimeout(None)
    try:
        if sock._endpoint is not None:                        # it came back to where it left
            sock._endpoint.leave()
        else:
            sock._take(journey.arrive(journey.Ticket(*ticket), sock))
        return Connection(sock, readable, writable, travels=True)
    except BaseException:
        sock.close()
        raise


_reduction.register(Connection, _reduce_connection)
_class.introduce()


def install() -> None:
    """Have the standard module make our connections where an address is one of TCP."""
    _standard.SocketListener, _standard.SocketClient = SocketListener, SocketClient


def uninstall() -> None:
    """Give the standard module its own back."""
    _standard.SocketListener, _standard.SocketClient = _SocketListener, _SocketClient
