"""How a socket ends: shut down, closed, or forgotten."""
from __future__ import annotations

import os
import socket as _stdlib
import struct
import sys
from typing import Any

import _socket

from shmstack._modes import Modes
from shmstack.stack import listening, parting, watch
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline

_base: Any = lifeline.standard


class Ending(Modes):
    """The class with modes, whose connection ends with it."""

    __slots__ = ("_listens", "_records")
    _listens: Stack | None
    _records: tuple[int, list[str]] | None                    # who published them, their paths

    def _drop(self) -> Endpoint | None:
        end, self._endpoint = self._endpoint, None
        if end is not None:
            del self._handle
            watch.dropped(end)
        return end

    def shutdown(self, *args: Any) -> None:
        end = self._endpoint
        how = args[0].__index__() if len(args) == 1 and hasattr(args[0], "__index__") else None
        if end is not None and how in (_stdlib.SHUT_WR, _stdlib.SHUT_RDWR):
            end.shutdown_send()
        _base.shutdown(self, *args)
        if end is not None and how in (_stdlib.SHUT_RD, _stdlib.SHUT_RDWR):
            end.shutdown_receive()

    def _unlist(self) -> None:
        # A forked child that closes its copy leaves the record of its parent.
        records, self._records, self._listens = self._records, None, None
        if records is not None and records[0] == os.getpid():
            listening.withdraw(self, records[1])

    def _real_close(self, _ss: Any = _socket.socket) -> None:
        if self._records:
            self._unlist()
        end = self._drop()
        if end is None:
            _ss.close(self)
            return
        if parting.busy(end):
            self._parting = end
            parting.later(end)
            _ss.close(self)
            return
        end.close(self._reset_on_close)
        _ss.close(self)
        end.closed()

    def __del__(self, finalize: Any = _base.__del__, ending: Any = sys.is_finalizing) -> None:
        # Nobody closed it: the same, by the standard library's finalizer, which says so.
        end = None
        if not ending():                                      # then the endpoint does what it can
            if getattr(self, "_records", None):
                self._unlist()
            if getattr(self, "_endpoint", None) is not None:
                end = self._drop()
        if end is not None:
            end.close(self._reset_on_close)
        finalize(self)
        if end is not None:
            end.closed()

    def _reset_on_close(self) -> None:
        # Linux resets a connection that is closed with bytes unread (RFC 2525 section 2.17).
        try:
            _base.setsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
