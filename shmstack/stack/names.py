"""Which stack a new connection or listener of this thread belongs to.

In order: what `set_stackname` said for this thread, then for all threads, then EF_STACK_PER_THREAD, EF_NAME, and
last a stack without a name that is the process' own.  Options of a stack are read when it is made; `stack_opt_set`
changes them for the stacks that this thread makes later.
"""
from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any, NamedTuple

from shmstack.options import Options
from shmstack.shm import objects
from shmstack.stack import directory, spares
from shmstack.stack import stack as stacks
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline

THIS_THREAD, ALL_THREADS = 0, 1
SCOPE_NOCHANGE, SCOPE_THREAD, SCOPE_PROCESS, SCOPE_USER, SCOPE_GLOBAL = range(5)
DONT_ACCELERATE = None
_NAME_MAX = 16


class Setting(NamedTuple):
    """What `set_stackname` said: a scope and a name, or no acceleration."""

    scope: int
    name: str | None


class _Thread(threading.local):
    setting: Setting | None = None
    options: Options | None = None

    def __init__(self) -> None:
        self.saved: list[tuple[Setting | None, Setting | None]] = []


_thread = _Thread()
_all: Setting | None = None
_process_options: Options | None = None
_mine: dict[tuple[int, str], Stack] = {}                    # (namespace, name) -> the stacks we keep open
_turn = threading.RLock()


def options() -> Options:
    """Return the options for the next stack that this thread makes."""
    global _process_options
    if _thread.options is not None:
        return _thread.options
    if _process_options is None:
        _process_options = Options.from_env()
    return _process_options


def forget_environment() -> None:
    """Read the environment again at the next use (tests and launchers change it)."""
    global _process_options
    _process_options = None


def _suffix(scope: int) -> str:
    if scope == SCOPE_THREAD:
        return f"-t{threading.get_native_id()}"
    return {SCOPE_PROCESS: f"-p{os.getpid()}", SCOPE_USER: f"-u{os.geteuid()}"}.get(scope, "")


def current_name() -> str | None:
    """Return the name of the stack for this thread's next socket: "" for the unnamed one, None for no acceleration."""
    setting = _thread.setting or _all
    if setting is not None:
        return None if setting.name is None else (setting.name + _suffix(setting.scope))[:_NAME_MAX + 8]
    chosen = options()
    if chosen.dont_accelerate:
        return None
    if chosen.stack_per_thread:
        return f"{chosen.name}-t{threading.get_native_id()}"
    return chosen.name


def current(sock: Any) -> Stack | None:
    """Return the stack for `sock`, made or joined now if need be; None if it isn't to be accelerated."""
    name = current_name()
    if name is None:
        return None
    key = lifeline.netns(sock), name
    with _turn:
        found = _mine.get(key)
        if found is None:
            tidy()
            found = Stack.open(name, key[0], options()) if name else Stack.unnamed(key[0], options())
            _mine[key] = found
            _leave_at_exit()
        return found


def existing(sock: Any) -> Stack | None:
    """Return the stack for `sock` if this thread has it open already."""
    return existing_in(lifeline.netns(sock))


def existing_in(netns: int) -> Stack | None:
    """Return the stack for this thread's next socket in a namespace, if it is open already."""
    name = current_name()
    return None if name is None else _mine.get((netns, name))


def tidy() -> None:
    """Remove what dead processes left in the directory."""
    try:
        objects.reap()
        directory.reap()
    except OSError:
        pass                          # no /dev/shm: the stack itself will say so


_registered = False


def _leave_at_exit() -> None:
    global _registered
    if not _registered:
        _registered = True
        atexit.register(leave_all)
    if "multiprocessing.util" in sys.modules and sys.modules["multiprocessing"].parent_process() is not None:
        # a child of multiprocessing ends by os._exit, after its finalizers
        sys.modules["multiprocessing.util"].Finalize(None, leave_all, exitpriority=-1000)


def leave(name: str) -> None:
    """Leave the stack of this EF_NAME, in every namespace."""
    for key in [key for key in _mine if key[1] == name]:
        _mine.pop(key).leave()
    tidy()


def leave_all() -> None:
    """Leave every stack; the process is about to end."""
    stacks.leave_all()
    _mine.clear()
    tidy()


def after_fork_in_child() -> None:
    """Take slots of our own in the inherited stacks."""
    global _turn
    _turn = threading.RLock()
    lifeline.forget()
    spares.after_fork_in_child()
    for stack in stacks.inherited():
        stack.after_fork()
    if _mine and options().fork_netif in (1, 3):
        _drop_unnamed()


def after_fork_in_parent() -> None:
    """Have new sockets in a new stack if EF_FORK_NETIF says so."""
    if _mine and options().fork_netif in (2, 3):
        _drop_unnamed()


def _drop_unnamed() -> None:
    # The present one lives as long as its connections and listeners.
    for key in [key for key in _mine if not key[1]]:
        del _mine[key]


# ---- Onload's extension API ----------------------------------------------------------------------------------

def set_stackname(who: int, scope: int, name: str | None) -> None:
    """Choose the stack for sockets created afterwards.

    Parameters
    ----------
    who : THIS_THREAD or ALL_THREADS; a thread's own setting beats the one for all
    scope : SCOPE_THREAD, _PROCESS, _USER or _GLOBAL add -tTID, -pPID, -uUID or nothing to the name;
        SCOPE_NOCHANGE undoes a setting for THIS_THREAD
    name : up to 16 letters; "" is the unnamed stack, DONT_ACCELERATE (None) is kernel TCP

    Raises
    ------
    OSError
        EINVAL for a bad combination, ENAMETOOLONG for a long name.
    """
    global _all
    import errno
    if who not in (THIS_THREAD, ALL_THREADS) or scope not in range(5):
        raise OSError(errno.EINVAL, f"wanted who 0..1 and scope 0..4, found who={who} scope={scope}")
    if name is not None and len(name) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, f"wanted a stack name of at most {_NAME_MAX} letters, found {name!r}")
    if name is not None:
        Options.from_env({}, name=name)                       # same letters as EF_NAME
    if scope == SCOPE_NOCHANGE:
        if who == ALL_THREADS:
            raise OSError(errno.EINVAL, "SCOPE_NOCHANGE undoes a setting of THIS_THREAD, not of ALL_THREADS")
        _thread.setting = None
    elif who == THIS_THREAD:
        _thread.setting = Setting(scope, name)
    else:
        _all = Setting(scope, name)


def stackname_save() -> None:
    """Remember the present settings of this thread, last in first out."""
    _thread.saved.append((_thread.setting, _all))


def stackname_restore() -> None:
    """Return to the settings last saved by this thread; OSError EINVAL if there are none."""
    import errno
    if not _thread.saved:
        raise OSError(errno.EINVAL, "stackname_restore without stackname_save")
    _thread.setting, _ = _thread.saved.pop()


def stack_opt_set(name: str, value: int | str) -> None:
    """Set an EF_ option for the stacks that this thread makes later; OptionError for a bad name or value."""
    _thread.options = options().replace(**{name.removeprefix("EF_").lower(): value})


def stack_opt_get(name: str) -> Any:
    """Return the value that an EF_ option would have in a stack made now by this thread."""
    return getattr(options(), name.removeprefix("EF_").lower())


def stack_opt_reset() -> None:
    """Forget this thread's `stack_opt_set` calls."""
    _thread.options = None
