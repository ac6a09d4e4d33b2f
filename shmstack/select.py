"""The standard library's `select` module, with pollers that see accelerated sockets.

    import shmstack.select as select

Everything of the standard module is here; `select`, `poll` and `epoll` have its signatures, results and exceptions, and
take any mix of descriptors.  Bytes that wait in a ring make a socket readable; that is found without a system call
while the call spins, and wakes a call that sleeps.  All else is asked of the kernel, as ever.

`install` puts them in the place of the standard ones, for programs that know nothing of us.

A poller that was made by the kernel's own functions, or by foreign code, works too: sockets whose descriptor was
asked for by `fileno()` get their input through the kernel.  Here descriptors are looked up without that.

EF_UL_EPOLL, EF_UL_POLL and EF_UL_SELECT set to 0 leave readiness to the kernel: sockets in these calls then get all
their input there.  EF_EPOLL_SPIN and so on say whether to spin, EF_SPIN_USEC how long, EF_POLL_FAST_USEC and
EF_SELECT_FAST_USEC how often to ask the kernel meanwhile.
"""
from __future__ import annotations

import math
import select as _stdlib
from collections.abc import Iterable
from select import *  # noqa: F403
from types import MethodType
from typing import Any

from shmstack.stack import names, rendezvous, watch
from shmstack.stack.crowd import Crowd
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.poller import Poller
from shmstack.stack.spin import Spin

_kernel_select, _kernel_poll, _kernel_epoll = _stdlib.select, _stdlib.poll, _stdlib.epoll
_POLL_IN = _stdlib.POLLIN | _stdlib.POLLRDNORM
_EPOLL_DEFAULT = _stdlib.EPOLLIN | _stdlib.EPOLLPRI | _stdlib.EPOLLOUT


def _spin(where: str, user_level: Any) -> Spin:
    limit, adapts = rendezvous.spin(where)
    return Spin(limit, adapts, where) if user_level else Spin(0, adapts)


def _number(fileobj: Any) -> Any:
    """Return the descriptor of anything that has one, without exposing a socket of ours; else `fileobj` itself."""
    if type(fileobj) is int:
        return fileobj
    look = getattr(fileobj, "_descriptor", None)
    if look is None or not hasattr(fileobj, "_endpoint"):
        look = getattr(fileobj, "fileno", None)
    if look is None:
        return fileobj                                       # the kernel's own function says what is wrong
    fd = look()
    return fd if isinstance(fd, int) else fileobj


class epoll:  # type: ignore[no-redef]
    __doc__ = _kernel_epoll.__doc__

    def __init__(self, sizehint: int = -1, flags: int = 0) -> None:
        self._use(_kernel_epoll(sizehint, flags))

    def _use(self, kernel: Any) -> None:
        chosen = names.options()
        self._kernel = kernel
        self._poller = Poller(kernel, bool(chosen.ul_epoll), _spin("epoll", chosen.ul_epoll), chosen.poll_fast_usec * 1000)

    @classmethod
    def fromfd(cls, fd: int, /) -> Any:
        made = cls.__new__(cls)
        made._use(_kernel_epoll.fromfd(fd))
        return made

    @property
    def closed(self) -> bool:
        """True if the epoll handler is closed"""
        closed: bool = self._kernel.closed
        return closed

    def fileno(self) -> int:
        fd: int = self._kernel.fileno()
        self._poller.expose()
        return fd

    def close(self) -> None:
        self._poller.close()
        self._kernel.close()

    def __enter__(self) -> Any:
        self._kernel.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        poller = getattr(self, "_poller", None)
        if poller is not None:
            poller.close()

    def register(self, fd: Any, eventmask: int = _EPOLL_DEFAULT) -> None:
        fd = _number(fd)
        self._poller.arming(fd)
        self._kernel.register(fd, eventmask)
        self._poller.added(fd, eventmask)

    def modify(self, fd: Any, eventmask: int) -> None:
        fd = _number(fd)
        self._poller.arming(fd)
        self._kernel.modify(fd, eventmask)
        self._poller.added(fd, eventmask)

    def unregister(self, fd: Any) -> None:
        fd = _number(fd)
        try:
            self._kernel.unregister(fd)
        finally:
            if isinstance(fd, int):
                self._poller.removed(fd)

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        if not (timeout is None or isinstance(timeout, (int, float))) or maxevents == 0 or maxevents < -1:
            events: list[tuple[int, int]] = self._kernel.poll(timeout, maxevents)
            return events
        return self._poller.poll(timeout, maxevents)


class _Poll:
    __module__, __qualname__ = "select", "poll"

    def __new__(cls, *_: Any, **__: Any) -> Any:
        raise TypeError(f"cannot create '{cls.__module__}.{cls.__name__}' instances")

    def _set_up(self) -> None:
        chosen = names.options()
        self._kernel, self._masks, self._busy = _kernel_poll(), dict[int, int](), False
        self._user_level, self._spin = chosen.ul_poll, _spin("poll", chosen.ul_poll)
        self._ask_ns = chosen.poll_fast_usec * 1000

    def register(self, fd: Any, eventmask: int = _stdlib.POLLIN | _stdlib.POLLPRI | _stdlib.POLLOUT, /) -> None:
        fd = _number(fd)
        self._kernel.register(fd, eventmask)
        self._masks[fd] = eventmask

    def modify(self, fd: Any, eventmask: int, /) -> None:
        fd = _number(fd)
        self._kernel.modify(fd, eventmask)
        self._masks[fd] = eventmask

    def unregister(self, fd: Any, /) -> None:
        fd = _number(fd)
        self._kernel.unregister(fd)
        self._masks.pop(fd, None)

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        ends = self._accelerated() if watch.some() and isinstance(timeout, (int, float, type(None))) else {}
        if not ends:
            events: list[tuple[int, int]] = self._kernel.poll(timeout)
            return events
        if self._busy:
            raise RuntimeError("concurrent poll() invocation")
        if timeout is not None:
            timeout = None if timeout < 0 else timeout / 1000
        self._busy = True
        try:
            found, ready = Crowd(ends).wait(timeout, self._ask, self._spin, self._ask_ns)
        finally:
            self._busy = False
        found = dict(found or ())
        for end in ready:
            fd = ends[end]
            found[fd] = found.get(fd, 0) | self._masks.get(fd, 0) & _POLL_IN
        return list(found.items())

    def _ask(self, seconds: float | None) -> Any:
        return self._kernel.poll(None if seconds is None else math.ceil(seconds * 1000))

    def _accelerated(self) -> dict[Endpoint, int]:
        found = {}
        for fd, mask in tuple(self._masks.items()):
            end = watch.endpoint(fd) if mask & _POLL_IN else None
            if end is not None:
                found[end] = fd
        return found


def _poll(_: Any, /) -> Any:
    made = object.__new__(_Poll)
    made._set_up()
    return made


def _select(_: Any, rlist: Iterable[Any], wlist: Iterable[Any], xlist: Iterable[Any],
            timeout: float | None = None, /) -> tuple[list[Any], list[Any], list[Any]]:
    usual = timeout is None or isinstance(timeout, (int, float)) and timeout >= 0
    if not usual or not watch.some():
        return _kernel_select(rlist, wlist, xlist, timeout)
    # Each fileno() is called once and in order, as the kernel's function does.
    asked = [[(fileobj, _number(fileobj)) for fileobj in some] for some in (rlist, wlist, xlist)]
    numbers = [[number for _, number in pairs] for pairs in asked]
    ends = {end: number for number in numbers[0] if type(number) is int and (end := watch.endpoint(number)) is not None}

    def ask(seconds: float | None) -> Any:
        found = _kernel_select(numbers[0], numbers[1], numbers[2], seconds)
        return found if any(found) else None

    if ends:
        user_level = names.options().ul_select
        found, ready = Crowd(ends).wait(timeout, ask, _spin("select", user_level), names.options().select_fast_usec * 1000)
    else:
        found, ready = ask(timeout), []
    sets = [set(some) for some in found or ((), (), ())]
    sets[0].update(ends[end] for end in ready)
    return tuple([fileobj for fileobj, number in pairs if number in chosen]    # type: ignore[return-value]
                 for pairs, chosen in zip(asked, sets, strict=True))


_Poll.__name__ = "poll"
_poll.__name__, _poll.__doc__ = "poll", _kernel_poll.__doc__
_select.__name__, _select.__doc__ = "select", _kernel_select.__doc__
# Not functions: a class attribute would pass the object on.
poll: Any = MethodType(_poll, _stdlib)        # type: ignore[no-redef]
select: Any = MethodType(_select, _stdlib)    # type: ignore[no-redef]


# ---- under a program that knows nothing of us ----------------------------------------------------------------

_replaced: list[tuple[Any, str, Any]] = []


def install() -> None:
    """Put these pollers into the standard modules `select` and `selectors`."""
    if _replaced:
        return
    import selectors

    from shmstack import selectors as ours
    for owner, name, value in (
            (_stdlib, "select", select), (_stdlib, "poll", poll), (_stdlib, "epoll", epoll),
            (selectors.EpollSelector, "_selector_cls", epoll), (selectors.PollSelector, "_selector_cls", poll),
            (selectors.SelectSelector, "_select", select), (selectors, "_fileobj_to_fd", ours.fileobj_to_fd)):
        _replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)


def uninstall() -> None:
    """Give the standard modules their own functions back; objects that exist go on working."""
    while _replaced:
        setattr(*_replaced.pop())
