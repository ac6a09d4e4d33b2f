"""Put the drop-in under a program that knows nothing of it.

In a process:  `install()` makes `socket.socket` the accelerated class.  Whoever looks the name up afterwards gets it,
the standard library's own helpers included (`create_connection`, `socketpair`, `accept` ...), and so do all classes
made later; those made earlier, and names bound earlier by `from socket import socket`, stay as they are.

Under the launcher:  `exec_command` starts a command with an environment that makes each Python interpreter below it
find our `sitecustomize`, which calls `prepare()`.  That costs a program without sockets next to nothing: the drop-in is
imported when the program first imports `socket`.

`ssl` is the one module that must have the plain class: an `SSLSocket` is read and written by C code on the descriptor,
so its base class may never put the stream anywhere else.  It keeps what it has if it was imported before; else it
is shown the plain class while it is imported.  `multiprocessing` has to be told how our sockets go to another process.

Nothing here makes a program fail.  What can't be set up leaves kernel TCP, and one line on stderr if that is a terminal
or EF_LOG asks for it (EF_LOG=-banner takes it away).  EF_NO_FAIL=0 makes it an error.
"""
from __future__ import annotations

import os
import sys

from shmstack.errors import OptionError
from shmstack.options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
SITE = os.path.join(_PACKAGE, "_site")
_NEEDED = ("posix_ipc", "filelock")      # what an interpreter that lacks shmstack lacks besides it

_plain: Any = None                       # the standard library's class while ours is in its place
_refused = False                         # it failed once and was reported


def install() -> bool:
    """Make `socket.socket` the accelerated class, and `select` look at accelerated sockets.

    Returns
    -------
    bool
        Whether the program is now accelerated; False after the reason was reported.
    """
    global _plain, _refused
    if _plain is not None or _refused:
        return _plain is not None
    try:
        Options.from_env(validate_env=False)
        import socket

        from shmstack import socket as face
        select = _select()
        if select is not None:
            select.install()
    except Exception as error:  # noqa: BLE001 - whatever it was, the program goes on with kernel TCP
        _refused = True
        _report(error)
        return False
    _plain, socket.socket = socket.socket, face.socket    # type: ignore[misc]
    for name in _LATER:
        there = sys.modules.get(name)
        if there is None:
            _watch(name)
        elif name != "ssl" and not getattr(there.__spec__, "_initializing", False):
            _AROUND[name](lambda: None)
    return True


def uninstall() -> None:
    """Give the standard library its own class back; accelerated sockets that exist go on working."""
    global _plain
    if _plain is None:
        return
    import socket
    socket.socket, _plain = _plain, None    # type: ignore[misc]
    select = _select()
    if select is not None:
        select.uninstall()
    if "shmstack.connection" in sys.modules:
        from shmstack import connection
        connection.uninstall()
    _Watch.modules.clear()
    sys.meta_path.remove(_Watch)


def prepare() -> None:
    """Install as soon as the program imports `socket`; at once if it has."""
    if "socket" in sys.modules:
        install()
    else:
        _watch("socket")
        _watch("shmstack.socket")
        for name in _LATER:
            _watch(name)


def _select() -> Any:
    try:
        from shmstack import select
    except ImportError:
        return None
    return select


def _report(error: Exception) -> None:
    try:
        options = Options.from_env(validate_env=False)
    except OptionError:
        options = Options()
    if not options.no_fail:
        raise error
    # Unasked, only a terminal is told: a program's stderr may be what another program reads.
    if "banner" in options.log and sys.stderr is not None and ("log" in options.given or sys.stderr.isatty()):
        program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else "python"
        print(f"shmstack: {program or 'python'}[{os.getpid()}] stays on kernel TCP: {error}", file=sys.stderr)


class _Watch:
    """A finder that finds nothing itself, but wraps how the modules it watches are executed."""

    modules: set[str] = set()    # noqa: RUF012 - one set, of the one finder

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in cls.modules:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not cls else None
            if spec is not None:
                _wrap(spec, _AROUND[name])
                return spec
        return None


def _watch(name: str) -> None:
    _Watch.modules.add(name)
    if _Watch not in sys.meta_path:
        sys.meta_path.insert(0, _Watch)


def _wrap(spec: ModuleSpec, around: Callable[[Callable[[], None]], None]) -> None:
    # Each search makes a new loader, so the attribute is seen by this import only, and the module keeps a loader
    # of the usual class.
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        around(lambda: execute(module))
    loader.exec_module = exec_module


def _around_socket(execute: Callable[[], None]) -> None:
    execute()
    _Watch.modules.discard("socket")
    if sys.modules.get("shmstack.socket") is None:    # else it is what imports the module: it has to be whole first
        _Watch.modules.discard("shmstack.socket")
        install()


def _around_face(execute: Callable[[], None]) -> None:
    execute()
    _Watch.modules.discard("shmstack.socket")
    install()


def _around_ssl(execute: Callable[[], None]) -> None:
    # Another thread that makes a socket in this moment gets a plain one, which is only not accelerated.
    import socket
    ours = socket.socket
    socket.socket = _plain or ours    # type: ignore[misc]
    try:
        execute()
    finally:
        socket.socket = ours    # type: ignore[misc]


def _around_reduction(execute: Callable[[], None]) -> None:
    execute()
    if _plain is not None:
        from shmstack import _socket
        _socket.introduce()


def _around_connection(execute: Callable[[], None]) -> None:
    execute()
    if _plain is not None:
        try:
            from shmstack import connection
            connection.install()
        except Exception as error:  # noqa: BLE001 - the program's connections are then the kernel's
            _report(error)


_AROUND = {"socket": _around_socket, "shmstack.socket": _around_face, "ssl": _around_ssl,
           "multiprocessing.reduction": _around_reduction, "multiprocessing.connection": _around_connection}
_LATER = ("ssl", "multiprocessing.reduction", "multiprocessing.connection")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with what puts the drop-in under each Python program that gets it."""
    from importlib.util import find_spec
    old = [place for place in environ.get("PYTHONPATH", "").split(os.pathsep) if place and place != SITE]
    roots = [os.path.dirname(_PACKAGE)]
    for spec in filter(None, map(find_spec, _NEEDED)):
        root = os.path.dirname(spec.origin or "")
        root = os.path.dirname(root) if spec.submodule_search_locations else root
        if root not in roots:
            roots.append(root)
    return {**environ, "SHMSTACK_RUN": "1", "PYTHONPATH": os.pathsep.join([SITE, *old]),
            "SHMSTACK_PATH": os.pathsep.join([sys.implementation.cache_tag or "", *roots])}


def exec_command(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Become the command; its exit status and signals are then its own.

    Returns
    -------
    int
        Only where there is nothing to become: 127 not found, 126 found and not executable, as in a shell.
    """
    import signal
    for number in (signal.SIGPIPE, signal.SIGXFSZ):    # Python ignores them, and a command would inherit that
        signal.signal(number, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        os.execvpe(argv[0], list(argv), dict(env))
    except FileNotFoundError:
        print(f"shmstack: wanted to run {argv[0]}, found no such command", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"shmstack: wanted to run {argv[0]}, found {error.strerror}", file=sys.stderr)
        return 126
