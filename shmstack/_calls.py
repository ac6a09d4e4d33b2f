"""The calls that move bytes, as methods of the socket class.

`recv`, `recv_into`, `send` and `sendall` are C methods (`tcp.method`), put into the class below.  The underscored methods
of the same names are where those go when the ring has no quick answer; a socket without an endpoint never comes
here, its C methods call the standard library's.
"""
from __future__ import annotations

import os
import socket as _stdlib
from operator import index
from typing import Any, Callable

from shmstack import _native
from shmstack.stack import attachment
from shmstack.stack.endpoint import Endpoint
from shmstack.tcp import lifeline

_base: Any = lifeline.standard
_UNCHANGED_FLAGS = _stdlib.MSG_PEEK | _stdlib.MSG_DONTWAIT | _stdlib.MSG_WAITALL | _stdlib.MSG_NOSIGNAL \
    | _stdlib.MSG_MORE | _stdlib.MSG_CMSG_CLOEXEC
_Giveup: Any = vars(_stdlib)["_GiveupOnSendfile"]
_PIECE = 1 << 18                      # bytes of a file that are in memory at a time


class Calls(_base):  # type: ignore[misc]
    """The standard class, with sends and receives that know the ring."""

    __slots__ = ("_handle", "_endpoint")
    _endpoint: Endpoint | None
    _to_kernel: Callable[[], Any]     # leave the connection to kernel TCP for good; return self

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
            raise _Giveup(error)  # noqa: B904 - as the standard library does
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
        if self._endpoint is None or index(flags) & ~_UNCHANGED_FLAGS or index(ancbufsize) < 0:
            return _base.recvmsg(self, size, ancbufsize, flags)
        return self.recv(size, flags), [], 0, None

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> tuple[int, list[Any], int, Any]:
        if self._endpoint is None or index(flags) & ~_UNCHANGED_FLAGS or index(ancbufsize) < 0:
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


_native.methods(Calls, "_handle", {
    "recv": Calls._recv, "recv_into": Calls._recv_into, "send": Calls._send, "sendall": Calls._sendall})


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
                if owner is not None and end.open and end.fd in fds:
                    owner._to_kernel()
    return (args[0], messages, *args[2:])
