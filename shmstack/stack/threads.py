"""How the waits of one thread spin, where the thread says so itself (Onload's `thread_set_spin`).

What nobody said anything about costs nothing: one word that is 0 (`tcp.budget.THREADS`) before a thread spins, one
boolean before a poller does.  What a thread said stands in a small table that kernels search by the thread's number;
a change makes a new table, and the old one stays, because another thread may be reading it.

A thread that turns spinning off still looks a few hundred times, about a microsecond, before it gives up the GIL.
"""
from __future__ import annotations

import errno
import os
import threading

from shmstack import _native
from shmstack.stack import names

(SPIN_ALL, SPIN_UDP_RECV, SPIN_UDP_SEND, SPIN_TCP_RECV, SPIN_TCP_SEND, SPIN_TCP_ACCEPT, SPIN_PIPE_RECV, SPIN_PIPE_SEND,
 SPIN_SELECT, SPIN_POLL, SPIN_PKT_WAIT, SPIN_EPOLL_WAIT, SPIN_STACK_LOCK, SPIN_SOCK_LOCK, SPIN_SO_BUSY_POLL,
 SPIN_TCP_CONNECT, SPIN_MIMIC_EF_POLL) = range(17)

# What each kind is called in `options`; the kernel itself waits in connect, and for the other kinds there is nothing
# here to wait for.
_WHERE = {SPIN_TCP_RECV: "tcp_recv", SPIN_TCP_SEND: "tcp_send", SPIN_SELECT: "select", SPIN_POLL: "poll",
          SPIN_EPOLL_WAIT: "epoll", SPIN_TCP_ACCEPT: "tcp_accept"}
_THREADS = 4                                                # static word, see tcp.budget
_DEFAULT_NS, _FOREVER_NS = 50_000, 1 << 60

said = False                                                # whether any thread said anything
_own: dict[int, dict[str, int]] = {}                        # thread -> kind of wait -> ns
_turn = threading.Lock()
_local = threading.local()


class _End:
    """Dies with the thread that it is local to: the thread's number may be given to another one."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()

    def __del__(self) -> None:
        if _own and _own.pop(self.ident, None) is not None:  # None once the interpreter ends
            _tell()


def thread_set_spin(kind: int, on: bool) -> None:
    """Turn spinning on or off in the waits of this thread, whatever the options say.

    Parameters
    ----------
    kind : SPIN_ALL, SPIN_MIMIC_EF_POLL (those that EF_POLL_USEC turns on), or one kind of wait
    on : spin as long as EF_SPIN_USEC says, 50 us if that is unset; or sleep at once

    Raises
    ------
    OSError
        EINVAL for a kind that doesn't exist.
    """
    global said
    if kind not in range(SPIN_MIMIC_EF_POLL + 1):
        raise OSError(errno.EINVAL, f"wanted a kind of wait, 0..{SPIN_MIMIC_EF_POLL}, found {kind}")
    meant = set(_WHERE) if kind in (SPIN_ALL, SPIN_MIMIC_EF_POLL) else {kind} & set(_WHERE)
    if kind == SPIN_MIMIC_EF_POLL:
        meant.discard(SPIN_TCP_ACCEPT)
    usec = names.options().spin_usec
    long = _DEFAULT_NS if usec is None else _FOREVER_NS if usec < 0 else usec * 1000
    with _turn:
        mine = _own.setdefault(threading.get_ident(), {})
        mine.update((_WHERE[one], long if on else 0) for one in meant)
        _local.end = getattr(_local, "end", None) or _End()
        said = True
        _tell()


def own(where: str) -> int | None:
    """Return how many ns this thread said that its waits of a kind spin, None if it said nothing."""
    return _own.get(threading.get_ident(), {}).get(where)


def _tell() -> None:
    native, entries = _native.load(), list(_own.items())
    table = native.allocate(8 + 24 * len(entries))
    for index, (ident, chosen) in enumerate(entries):
        for offset, value in enumerate((ident, chosen.get("tcp_recv", -1), chosen.get("tcp_send", -1))):
            native.store(table + 8 + 24 * index + 8 * offset, value)
    native.store(table, len(entries))
    _native._static(_THREADS, table if entries else 0)


def _after_fork_in_child() -> None:
    global _turn
    _turn = threading.Lock()
    for ident in [ident for ident in _own if ident != threading.get_ident()]:
        del _own[ident]


os.register_at_fork(after_in_child=_after_fork_in_child)
