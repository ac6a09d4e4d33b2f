"""The standard library's `socket` module, with a socket class whose TCP connections on this host are accelerated.

    import shmstack.socket as socket

Everything of the standard module is here and unchanged; `socket` is a subclass of its `socket.socket`, and the
functions that make sockets make ours.  What can't be accelerated (other families, remote peers, peers that don't
know us, TLS) is a kernel socket like any other.

The four calls of the fast path, `recv`, `recv_into`, `send` and `sendall`, are C methods (`tcp.entry`); the
underscored methods of the same names below are where those go when the ring has no quick answer.
"""
from __future__ import annotations

import errno
import os
import socket as _stdlib
import struct
import weakref
from operator import index as _index
from socket import *  # noqa: F403
from typing import Any

import _socket

from shmstack import _native
from shmstack.stack import attachment
from shmstack.stack import names, rendezvous, watch
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline
from shmstack.tcp.state import State

_base = lifeline._plain
_tcp_families = (_stdlib.AF_INET, _stdlib.AF_INET6)
_held: dict[int, Endpoint] = {}       # cookie -> an endpoint of this process, for descriptors that come back to us
_UNCHANGED_FLAGS = _stdlib.MSG_PEEK | _stdlib.MSG_DONTWAIT | _stdlib.MSG_WAITALL | _stdlib.MSG_NOSIGNAL \
    | getattr(_stdlib, "MSG_MORE", 0) | getattr(_stdlib, "MSG_CMSG_CLOEXEC", 0)
SO_RCVLOWAT = _stdlib.SO_RCVLOWAT
_PIECE = 1 << 18


class _Kind(type):
    """Sockets that the program has from elsewhere (TLS sockets, those made before us) are sockets all the same."""

    def __instancecheck__(cls, thing: Any) -> bool:
        return type.__instancecheck__(cls, thing) or (cls is socket and isinstance(thing, _base))

    def __subclasscheck__(cls, kind: Any) -> bool:
        return type.__subclasscheck__(cls, kind) or (cls is socket and issubclass(kind, _base))


class socket(_base, metaclass=_Kind):
    __doc__ = _base.__doc__
    __slots__ = ("_handle", "_endpoint", "_records", "_listens")

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None) -> None:
        _base.__init__(self, family, type, proto, fileno)
        self._endpoint: Endpoint | None = None
        self._records: tuple[int, list[str]] | None = None   # who published them, their paths
        self._listens: Stack | None = None
        if fileno is not None and _held and self._may_accelerate():
            self._rejoin()

    def _may_accelerate(self) -> bool:
        # A subclass that reads the descriptor itself (ssl.SSLSocket) has a C object of its own for that.
        return self.family in _tcp_families and _base.type.__get__(self) == _stdlib.SOCK_STREAM \
            and self.proto in (0, _stdlib.IPPROTO_TCP) and not hasattr(self, "_sslobj") \
            and not hasattr(self.__class__, "_create")

    def _descriptor(self) -> int:
        return _base.fileno(self)

    def _rejoin(self) -> None:
        # A descriptor made by dup(), of a connection that this process has an endpoint of.
        try:
            known = _held.get(lifeline.cookie(self))
        except OSError:
            return
        if known is not None and known.handle and known.pid == os.getpid():
            end = Endpoint(known.stack, known.index, known.side, self._descriptor(), self.gettimeout(),
                           rendezvous.spin_ns("tcp_recv"))
            self._take(end)

    def _take(self, end: Endpoint) -> None:
        self._endpoint, end.owner = end, weakref.ref(self)
        self._handle = end.handle
        end.cookie = lifeline.cookie(self)
        _held[end.cookie] = end
        watch.taken(end)

    def _drop(self) -> Endpoint | None:
        end, self._endpoint = self._endpoint, None
        if end is not None:
            del self._handle
            if _held.get(end.cookie) is end:
                del _held[end.cookie]
        return end

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
            return _base.connect(self, address)
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
        return None if self._is_connected() else rendezvous.offer(self, address)

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
        end.set_timeout(self.gettimeout())

    def listen(self, *args: Any) -> None:
        _base.listen(self, *args)
        if self._records is None and self._may_accelerate():
            try:
                paths = rendezvous.publish(self)
                if paths:
                    self._records, self._listens = (os.getpid(), paths), names.current(self)
            except (OSError, ValueError):
                if not names.options().no_fail:
                    raise

    def accept(self) -> tuple[socket, Any]:
        fd, address = self._accept()
        made = socket(self.family, self.type, self.proto, fileno=fd)
        if _stdlib.getdefaulttimeout() is None and self.gettimeout():
            made.setblocking(True)
        if made._endpoint is None and made._may_accelerate():
            listener = self._listens or names.existing(self)
            end = rendezvous.adopt(made, listener)
            if end is not None:
                made._take(end)
        return made, address

    accept.__doc__ = _base.accept.__doc__

    # ---- sending

    def _send(self, data: Any, flags: int = 0, sent: int = 0) -> int:
        end = self._endpoint
        if end is None:
            return _base.send(self, data, flags)
        if flags & _stdlib.MSG_OOB:
            return self._to_kernel().send(data, flags)
        return end.send(data, flags, sent)

    def _sendall(self, data: Any, flags: int = 0, sent: int = 0) -> None:
        end = self._endpoint
        if end is None or flags & _stdlib.MSG_OOB:
            _base.sendall(self if end is None else self._to_kernel(), data, flags)
        else:
            end.send(data, flags, sent, whole=True)

    def sendto(self, data: Any, *args: Any) -> int:
        if self._endpoint is None or not 1 <= len(args) <= 2:
            return _base.sendto(self, data, *args)
        return self.send(data, args[0] if len(args) == 2 else 0)

    def sendmsg(self, *args: Any) -> int:
        plain = len(args) == 1 or args[1:2] in (([],), ((),)) and args[3:] in ((), (None,))
        if self._endpoint is None or not plain:
            args = _let_go(args)
            return _base.sendmsg(self if self._endpoint is None else self._to_kernel(), *args)
        flags = args[2] if len(args) > 2 else 0
        views = [memoryview(buffer).cast("B") for buffer in args[0]]
        return self.send(views[0] if len(views) == 1 else b"".join(views), flags)

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        if self._endpoint is None:
            return _base._sendfile_use_sendfile(self, file, offset, count)
        self._check_sendfile_params(file, offset, count)
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
            os.pread(source, 0, 0)
        except (AttributeError, OSError) as error:
            raise _stdlib._GiveupOnSendfile(error)  # noqa: B904 - as the standard library does
        if self.gettimeout() == 0:
            raise ValueError("non-blocking sockets are not supported")
        start, end = offset, size if not count else offset + count
        try:
            while offset < end:
                piece = os.pread(source, min(end - offset, _PIECE), offset)
                if not piece:
                    break
                self.sendall(piece)
                offset += len(piece)
            return offset - start
        finally:
            if offset > start and hasattr(file, "seek"):
                file.seek(offset)

    # ---- receiving

    def _recv(self, size: int, flags: int = 0) -> bytes:
        end = self._endpoint
        if end is None or flags & ~_UNCHANGED_FLAGS or size <= 0:
            return _base.recv(self, size, flags) if size else b""
        return end.recv(size, flags)

    def _recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        end = self._endpoint
        if end is None or flags & ~_UNCHANGED_FLAGS:
            return _base.recv_into(self, buffer, nbytes, flags)
        room = memoryview(buffer).nbytes
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        if nbytes > room:
            raise ValueError("buffer too small for requested bytes")
        return end.recv_into(buffer, nbytes or room, flags) if room else 0

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        if self._endpoint is None:
            return _base.recvfrom(self, size, flags)
        return self.recv(size, flags), None

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        if self._endpoint is None:
            return _base.recvfrom_into(self, buffer, nbytes, flags)
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, size: int, ancbufsize: int = 0, flags: int = 0) -> tuple[bytes, list[Any], int, Any]:
        if self._endpoint is None or _index(flags) & ~_UNCHANGED_FLAGS or _index(ancbufsize) < 0:
            return _base.recvmsg(self, size, ancbufsize, flags)
        return self.recv(size, flags), [], 0, None

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> tuple[int, list[Any], int, Any]:
        if self._endpoint is None or _index(flags) & ~_UNCHANGED_FLAGS or _index(ancbufsize) < 0:
            return _base.recvmsg_into(self, buffers, ancbufsize, flags)
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if any(view.readonly for view in views):
            raise TypeError("recvmsg_into() argument 1 must be an iterable of single-segment read-write buffers")
        data, done = self.recv(sum(map(len, views)), flags), 0
        for view in views:
            piece = data[done:done + len(view)]
            view[:len(piece)] = piece
            done += len(piece)
        return len(data), [], 0, None

    # ---- modes and options

    def settimeout(self, value: Any) -> None:
        _base.settimeout(self, value)
        self._mode()

    def setblocking(self, flag: Any) -> None:
        _base.setblocking(self, flag)
        self._mode()

    def _mode(self) -> None:
        if self._endpoint is not None:
            self._endpoint.set_timeout(self.gettimeout())

    def setsockopt(self, *args: Any) -> None:
        _base.setsockopt(self, *args)
        if self._endpoint is not None and args[:2] == (_stdlib.SOL_SOCKET, SO_RCVLOWAT) and args[2] != 1:
            self._to_kernel()                                # only the kernel counts bytes before it wakes a reader

    def set_inheritable(self, inheritable: bool) -> None:
        if inheritable:
            self._to_kernel()                                # a program that is exec'd knows only the kernel socket
        _base.set_inheritable(self, inheritable)

    # ---- descriptors

    def fileno(self) -> int:
        fd: int = _base.fileno(self)
        if self._endpoint is not None and fd >= 0:
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
        self._closed = True
        return _socket.socket.detach(self)

    detach.__doc__ = _base.detach.__doc__

    def _to_kernel(self) -> socket:
        """Leave the connection to kernel TCP for good; return self."""
        end = self._drop()
        if end is not None:
            end.hand_back()
        return self

    # ---- closing

    def shutdown(self, how: int) -> None:
        end = self._endpoint
        if end is not None and how in (_stdlib.SHUT_WR, _stdlib.SHUT_RDWR):
            end.shutdown_send()
        _base.shutdown(self, how)
        if end is not None and how in (_stdlib.SHUT_RD, _stdlib.SHUT_RDWR):
            end.shutdown_receive()

    def _unlist(self) -> None:
        # A forked child that closes its copy leaves the record: its parent still listens.
        records, self._records, self._listens = self._records, None, None
        if records is not None and records[0] == os.getpid():
            for path in records[1]:
                rendezvous.directory.remove(path)

    def _real_close(self, _ss: Any = _socket.socket) -> None:
        if self._records:
            self._unlist()
        end = self._drop()
        if end is None:
            _ss.close(self)
            return
        end.close(self._reset_on_close)
        _ss.close(self)
        end.closed()

    def _reset_on_close(self) -> None:
        # Linux resets a connection that is closed with bytes unread (RFC 2525 section 2.17).
        try:
            _base.setsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass


_native.methods(socket, "_handle", {
    "recv": socket._recv, "recv_into": socket._recv_into, "send": socket._send, "sendall": socket._sendall})


def _let_go(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave every connection whose descriptor is about to be sent to another process to the kernel.

    Takes and returns the arguments of sendmsg; what is wrong with them is left for sendmsg to say.
    """
    if len(args) < 2 or not hasattr(args[1], "__iter__"):
        return args
    messages = list(args[1])
    for message in messages:
        try:
            level, kind, data = message
            fds = set(memoryview(bytes(memoryview(data))).cast("i"))
        except (TypeError, ValueError):
            continue
        if (level, kind) == (_stdlib.SOL_SOCKET, _stdlib.SCM_RIGHTS):
            for end in list(attachment.endpoints):
                owner = end.owner()
                if owner is not None and end.handle and end.fd in fds:
                    owner._to_kernel()
    return (args[0], messages, *args[2:])


def _reduce(sock: Any) -> Any:
    """Pickle a socket for another process (`multiprocessing.reduction`), which gets the kernel's."""
    from multiprocessing import reduction
    return reduction._reduce_socket(sock._to_kernel())  # type: ignore[attr-defined]


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


# ---- fork ----------------------------------------------------------------------------------------------------

def _before_fork() -> None:
    for end in list(attachment.endpoints):
        if end.handle:
            end.shared()


def _after_fork_in_child() -> None:
    names.after_fork_in_child(names.options().fork_netif in (1, 3))
    for end in list(attachment.endpoints):
        end.adopt_in_child()


def _after_fork_in_parent() -> None:
    if names.options().fork_netif in (2, 3):
        names.drop_unnamed()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)
