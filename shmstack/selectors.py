"""The standard library's `selectors` module over `shmstack.select`: every class, with its interface.

    import shmstack.selectors as selectors
"""
from __future__ import annotations

import selectors as _stdlib
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import Any

from shmstack import select

__all__ = ["EVENT_READ", "EVENT_WRITE", "BaseSelector", "DefaultSelector", "EpollSelector", "PollSelector",
           "SelectSelector", "SelectorKey"]

_standard: Any = _stdlib._fileobj_to_fd  # type: ignore[attr-defined]


def fileobj_to_fd(fileobj: Any) -> int:
    """Return the descriptor of a file object, without exposing a socket of ours; ValueError if it has none."""
    if hasattr(fileobj, "_descriptor") and hasattr(fileobj, "_endpoint"):
        fileobj = fileobj._descriptor()
    fd: int = _standard(fileobj)
    return fd


class _Mixin:
    # The standard method, asking in our way; closed sockets are found by a search there.
    def _fileobj_lookup(self, fileobj: Any) -> int:
        if hasattr(fileobj, "_descriptor") and hasattr(fileobj, "_endpoint"):
            fd: int = fileobj._descriptor()
            if fd >= 0:
                return fd
        return super()._fileobj_lookup(fileobj)  # type: ignore[misc, no-any-return]


class SelectSelector(_Mixin, _stdlib.SelectSelector):
    __doc__ = _stdlib.SelectSelector.__doc__
    _select = select.select


class PollSelector(_Mixin, _stdlib.PollSelector):
    __doc__ = _stdlib.PollSelector.__doc__
    _selector_cls = select.poll


class EpollSelector(_Mixin, _stdlib.EpollSelector):
    __doc__ = _stdlib.EpollSelector.__doc__
    _selector_cls = select.epoll


DefaultSelector = EpollSelector
