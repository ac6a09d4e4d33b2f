"""How long calls wait, and what else is set on a socket: the modes of the socket class."""
from __future__ import annotations

import socket as _stdlib
from typing import Any

from shmstack._calls import Calls
from shmstack.tcp import lifeline

_base: Any = lifeline.standard


class Modes(Calls):
    """The class with the fast calls, whose connection learns of its modes."""

    __slots__ = ()

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
        if self._endpoint is None or args[0] != _stdlib.SOL_SOCKET:
            return
        if args[1] in lifeline.LIMITS:
            self._endpoint.set_limits(lifeline.limits(self))
        elif args[1] == _stdlib.SO_RCVLOWAT and args[2] != 1:
            self._to_kernel()                                # only the kernel counts bytes before it wakes a reader
