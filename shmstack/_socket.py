"""The socket class: the standard one, whose TCP connections on this host are accelerated.

Here are its opening, its descriptors and its end; its modes are in `_modes`, the calls that move bytes in `_calls`.

Who is given the descriptor may do anything with it.  So `fileno` *exposes* the connection: the peer then sends by the
lifeline, where any poller and any reader finds the bytes, until a call of ours waits for input again, or one of our
pollers looks after the socket.  `detach`, and everything that passes the descriptor to another program, hands
the connection back to kernel TCP for good.
"""
from __future__ import annotations

import errno
import os
import socket as _stdlib
import sys
import weakref
from typing import Any

import _socket

from shmstack import _native
from shmstack._callers import only_registers
from shmstack._ending import Ending
from shmstack.stack import directory, fork, listening, names, rendezvous, watch
from shmstack.stack.endpoint import Endpoint
from shmstack.tcp import lifeline
from shmstack.tcp.state import State

_base: Any = lifeline.standard
# Without the enumerations, which are made anew at each look.
_family, _type = _socket.socket.family.__get__, _socket.socket.type.__get__
_tcp_families, _SOCK_STREAM, _IPPROTO_TCP = (_socket.AF_INET, _socket.AF_INET6), _socket.SOCK_STREAM, _socket.IPPROTO_TCP
_unknown = True                       # to multiprocessing


class _Kind(type):
    """Sockets that the program has from elsewhere (TLS sockets, those made before us) are sockets all the same."""

    def __instancecheck__(cls, thing: Any) -> bool:
        return type.__instancecheck__(cls, thing) or (cls is socket and isinstance(thing, _base))

    def __subclasscheck__(cls, kind: Any) -> bool:
        return type.__subclasscheck__(cls, kind) or (cls is socket and issubclass(kind, _base))


class socket(Ending, metaclass=_Kind):
    __doc__ = _base.__doc__
    __module__ = "shmstack.socket"
    __slots__ = ("_patience",)

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None) -> None:
        _base.__init__(self, family, type, proto, fileno)
        self._endpoint = self._parting = None
        self._records = self._listens = None
        self._patience, self._buffers = rendezvous.ACCEPT_SPIN_NS, (0, 0)
        if _unknown and "multiprocessing.reduction" in sys.modules:
            introduce()
        if fileno is not None and watch.some() and self._may_accelerate():
            self._rejoin()

    def _may_accelerate(self) -> bool:
        # A subclass that reads the descriptor itself (ssl.SSLSocket) has a C object of its own for that.
        return _family(self) in _tcp_families and _type(self) == _SOCK_STREAM and self.proto in (0, _IPPROTO_TCP) \
            and (self.__class__ is socket or not hasattr(self, "_sslobj") and not hasattr(self.__class__, "_create"))

    def _descriptor(self) -> int:
        return _base.fileno(self)

    def _rejoin(self) -> None:
        # A descriptor made by dup(), of a connection that this process has an endpoint of.
        try:
            known = watch.with_cookie(lifeline.cookie(self))
        except OSError:
            return
        if known is not None and known.open and known.pid == os.getpid():
            end = Endpoint(known.stack, known.index, known.side, self._descriptor(), self.gettimeout(),
                           rendezvous.spin("tcp_recv"))
            self._take(end)

    def _take(self, end: Endpoint) -> None:
        self._endpoint, end.owner = end, weakref.ref(self)
        self._handle = end.handle.to_bytes(8, sys.byteorder)
        if _native.call.limited(end.fd):
            end.set_limits(lifeline.limits(self))
        if self._buffers != (0, 0):
            end.set_buffers(*self._buffers)
        watch.taken(end)

    def __repr__(self) -> str:
        if self._closed or self._endpoint is None:
            return _base.__repr__(self)
        end, self._endpoint = self._endpoint, None            # looking at a socket doesn't expose it
        try:
            return _base.__repr__(self)
        finally:
            self._endpoint = end

    # ---- opening

    def connect(self, address: Any) -> None:
        end = self._prepare(address)
        if end is None:
            _base.connect(self, address)
            return
        try:
            _base.connect(self, address)
        except BlockingIOError:
            self._take(end)
            raise
        except BaseException:
            end.close()
            end.closed()
            raise
        self._connected(end)

    def connect_ex(self, address: Any) -> int:
        end = self._prepare(address)
        code: int = _base.connect_ex(self, address)
        if end is not None:
            if code == 0:
                self._connected(end)
            elif code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                self._take(end)
            else:
                end.close()
                end.closed()
        return code

    def _prepare(self, address: Any) -> Endpoint | None:
        end = self._endpoint
        if end is not None:
            if isinstance(address, tuple) and end.state == State.SYN_SENT and self._is_connected():
                rendezvous.connected(end, self)
            return None
        if self._closed or not isinstance(address, tuple) or not self._may_accelerate():
            return None
        address = self._resolve(address)
        return rendezvous.offer(self, address)

    def _resolve(self, address: Any) -> Any:
        # The kernel's connect takes host names; ours needs the number, and one look-up must serve both.
        host = address[0] if address else None
        if host == "localhost":
            return ("127.0.0.1" if self.family == _stdlib.AF_INET else "::1", *address[1:])
        return address

    def _is_connected(self) -> bool:
        try:
            _base.getpeername(self)
        except OSError:
            return False
        return True

    def _connected(self, end: Endpoint) -> None:
        rendezvous.connected(end, self)
        self._take(end)
        timeout = self.gettimeout()
        if end.declared != (-1 if timeout is None else int(timeout * 1e9)):      # another thread set it meanwhile
            end.set_timeout(timeout)

    def listen(self, *args: Any) -> None:
        _base.listen(self, *args)
        self._list()

    def _list(self) -> None:
        # The record goes with whoever made it; those who inherited the listener or were passed it then make another.
        records = self._records
        if records is not None and all(map(directory.there, records[1])) or not self._may_accelerate():
            return
        try:
            paths = listening.publish(self)
            self._records, self._listens = (os.getpid(), paths), names.current(self) if paths else None
        except (OSError, ValueError) as error:
            self._records = os.getpid(), []
            if not names.options().no_fail:
                raise
            rendezvous.refuse(None, "not_error", error)       # there may be no stack to count it in

    def accept(self) -> tuple[socket, Any]:
        if self._records is not None or _base.getsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_ACCEPTCONN):
            self._list()
        fd, address, self._patience, soon = rendezvous.accept(self, self._patience)
        if not soon:
            self._list()                                      # it may have gone while we waited
        made = socket(_family(self), _type(self), self.proto, fileno=fd)
        made._buffers = self._buffers                         # the kernel's are inherited too
        if made._endpoint is None and made._may_accelerate():
            listener = self._listens or names.existing(self)
            end = rendezvous.adopt(made, listener)
            if end is not None:
                made._take(end)
        return made, address

    accept.__doc__ = _base.accept.__doc__

    # ---- descriptors

    def set_inheritable(self, inheritable: bool) -> None:
        if inheritable:
            self._to_kernel()                                # a program that is exec'd knows only the kernel socket
        _base.set_inheritable(self, inheritable)

    def fileno(self, *args: Any) -> int:
        fd: int = _base.fileno(self, *args)
        if self._endpoint is not None and fd >= 0 and not only_registers(sys._getframe(1)):
            self._endpoint.expose()
        return fd

    fileno.__doc__ = _base.fileno.__doc__

    def dup(self) -> socket:
        fd = _stdlib.dup(self._descriptor())
        made = self.__class__(self.family, self.type, self.proto, fileno=fd)
        made.settimeout(self.gettimeout())
        return made

    dup.__doc__ = _base.dup.__doc__

    def detach(self) -> int:
        self._to_kernel()
        self._unlist()
        self._closed = True  # type: ignore[misc]  # a slot of the standard class
        return _socket.socket.detach(self)

    detach.__doc__ = _base.detach.__doc__

    def _to_kernel(self) -> socket:
        """Leave the connection to kernel TCP for good; return self."""
        end = self._drop()
        if end is not None:
            end.hand_back()
        return self


def introduce() -> None:
    """Tell multiprocessing how our sockets are pickled for another process."""
    global _unknown
    reduction: Any = sys.modules["multiprocessing.reduction"]
    if hasattr(reduction, "_reduce_socket"):                  # else it is being imported
        reduction.register(socket, lambda sock: reduction._reduce_socket(sock._to_kernel()))
        _unknown = False


fork.register()
