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
from shmstack._arguments import check, numbers, pieces, scatter, source, target
from shmstack.stack import attachment
from shmstack.stack.endpoint import Endpoint
from shmstack.tcp import lifeline

_base: Any = lifeline.standard
# As plain integers: an IntFlag takes a microsecond to combine.
_OOB, _PEEK, _TRUNC, _CLOEXEC = (
    int(flag) for flag in (_stdlib.MSG_OOB, _stdlib.MSG_PEEK, _stdlib.MSG_TRUNC, _stdlib.MSG_CMSG_CLOEXEC))
_APART = _OOB | int(_stdlib.MSG_ERRQUEUE)     # what has queues of its own in the kernel; TCP ignores other flags
_Giveup: Any = vars(_stdlib)["_GiveupOnSendfile"]
_PIECE = 1 << 18                      # bytes of a file that are in memory at a time


class Calls(_base):  # type: ignore[misc]
    """The standard class, with sends and receives that know the ring."""

    __slots__ = ("_handle", "_endpoint", "_parting")
    __qualname__ = "socket"           # what the C methods call themselves in messages
    _endpoint: Endpoint | None
    _parting: Endpoint | None         # what calls go on with that had begun when another thread closed the socket
    _to_kernel: Callable[[], Any]     # leave the connection to kernel TCP for good; return self

    # ---- sending

    def _send(self, *args: Any) -> int:
        """Take (data[, flags]), or (data, 0, count) from the fast path, which has sent so many bytes."""
        end = self._endpoint or self._parting
        if end is None:
            return _base.send(self, *args[:2])
        data, flags = source("send", args[:2])
        if flags & _OOB:
            return self._to_kernel().send(data, flags)
        return end.send(data, flags, *args[2:])

    def _sendall(self, *args: Any) -> None:
        end = self._endpoint or self._parting
        if end is None:
            return _base.sendall(self, *args[:2])
        data, flags = source("sendall", args[:2])
        if flags & _OOB:
            return self._to_kernel().sendall(data, flags)
        end.send(data, flags, args[2] if len(args) > 2 else 0, whole=True)
        return None

    def sendto(self, *args: Any) -> int:
        if self._endpoint is None:
            return _base.sendto(self, *args)
        check("sendto", args, family=self.family)
        return self.send(args[0], args[1] if len(args) == 3 else 0)

    def sendmsg(self, *args: Any) -> int:
        plain = len(args) == 1 or args[1:2] in (([],), ((),)) and args[3:] in ((), (None,))
        if self._endpoint is None or not plain:
            args = _let_go(args)
            return _base.sendmsg(self if self._endpoint is None else self._to_kernel(), *args)
        args = pieces("sendmsg", args)
        return self.send(args[0][0] if len(args[0]) == 1 else b"".join(args[0]), index(args[2]) if len(args) > 2 else 0)

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

    def _receive(self, size: int, flags: int) -> bytes:
        end = self._endpoint or self._parting
        if end is None or flags & _APART:
            return _base.recv(self, size, flags)
        return end.recv(size, flags)

    def _recv(self, *args: Any) -> bytes:
        size, flags = numbers("recv", args)
        return self._receive(size, flags) if size else b""

    def _recv_into(self, *args: Any, **named: Any) -> int:
        return self._receive_into(*target("recv_into", args, named))

    def _receive_into(self, buffer: Any, size: int, flags: int) -> int:
        end = self._endpoint or self._parting
        if end is None or flags & _APART:
            return _base.recv_into(self, buffer, size, flags)
        with memoryview(buffer) as view:                      # nobody changes its size meanwhile
            return end.recv_into(view, size, flags) if size else 0

    def recvfrom(self, *args: Any) -> tuple[bytes, Any]:
        if self._endpoint is None:
            return _base.recvfrom(self, *args)
        size, flags = numbers("recvfrom", args)
        return self._receive(size, flags) if size else b"", None

    def recvfrom_into(self, *args: Any, **named: Any) -> tuple[int, Any]:
        if self._endpoint is None:
            return _base.recvfrom_into(self, *args, **named)
        return self._receive_into(*target("recvfrom_into", args, named)), None

    def recvmsg(self, *args: Any) -> tuple[bytes, list[Any], int, Any]:
        if self._endpoint is None:
            return _base.recvmsg(self, *args)
        size, _, flags = numbers("recvmsg", args, 3)
        if flags & _APART:
            return _base.recvmsg(self, *args)
        return self._message(size, flags), [], flags & _CLOEXEC, None

    def recvmsg_into(self, *args: Any) -> tuple[int, list[Any], int, Any]:
        if self._endpoint is None:
            return _base.recvmsg_into(self, *args)
        args = pieces("recvmsg_into", args)
        flags = index(args[2]) if len(args) > 2 else 0
        if flags & _APART:
            return _base.recvmsg_into(self, *args)
        data = self._message(sum(memoryview(buffer).nbytes for buffer in args[0]), flags)
        if not flags & _TRUNC:
            scatter(data, args[0])
        return len(data), [], flags & _CLOEXEC, None

    def _message(self, size: int, flags: int) -> bytes:
        # Unlike recv, which answers itself if no bytes are wanted, these ask the kernel, which waits for some to come.
        return self._receive(size, flags) if size else self._receive(1, flags | _PEEK)[:0]


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
            for end in attachment.living():
                owner = end.owner()
                if owner is not None and end.open and end.fd in fds:
                    owner._to_kernel()
    return (args[0], messages, *args[2:])
