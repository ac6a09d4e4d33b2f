"""How long calls wait, and what else is set on a socket: the modes of the socket class."""
from __future__ import annotations

import socket as _stdlib
from typing import Any

from shmstack._calls import Calls
from shmstack.tcp import lifeline

_base: Any = lifeline.standard


class Modes(Calls):
    """The class with the fast calls, whose connection learns of its modes."""

    __slots__ = ("_buffers",)
    _buffers: tuple[int, int]

    def settimeout(self, *args: Any) -> None:
        _base.settimeout(self, *args)
        self._mode()

    def setblocking(self, *args: Any) -> None:
        _base.setblocking(self, *args)
        self._mode()

    def _mode(self) -> None:
        if self._endpoint is not None:
            self._endpoint.set_timeout(self.gettimeout())

    def setsockopt(self, *args: Any) -> None:
        _base.setsockopt(self, *args)
        if args[0] != _stdlib.SOL_SOCKET:
            return
        if args[1] in (_stdlib.SO_SNDBUF, _stdlib.SO_RCVBUF):
            self._size(args[1])
        if self._endpoint is None:
            return
        if args[1] in lifeline.LIMITS:
            self._endpoint.set_limits(lifeline.limits(self))
        elif args[1] == _stdlib.SO_RCVLOWAT and args[2] != 1:
            self._to_kernel()                                # only the kernel counts bytes before it wakes a reader

    def _size(self, option: int) -> None:
        size = _base.getsockopt(self, _stdlib.SOL_SOCKET, option)
        send, receive = self._buffers
        self._buffers = (size, receive) if option == _stdlib.SO_SNDBUF else (send, size)
        if self._endpoint is not None:
            self._endpoint.set_buffers(*self._buffers)
