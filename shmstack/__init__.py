"""Accelerated TCP loopback: programs on one host that talk TCP move their bytes through shared memory.

    import shmstack.socket as socket          # the standard module, accelerated
    $ shmstack run python app.py              # or an unchanged program under the launcher

The functions here are Onload's extension API in Python: which stack a socket lives in, and how to choose it.
"""
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_API = {
    "set_stackname": "names", "stackname_save": "names", "stackname_restore": "names", "stack_opt_set": "names",
    "stack_opt_get": "names", "stack_opt_reset": "names", "THIS_THREAD": "names", "ALL_THREADS": "names",
    "SCOPE_NOCHANGE": "names", "SCOPE_THREAD": "names", "SCOPE_PROCESS": "names", "SCOPE_USER": "names",
    "SCOPE_GLOBAL": "names", "DONT_ACCELERATE": "names",
    "FdStat": "extension", "is_present": "extension", "stack_name": "extension", "fd_stat": "extension",
    "move_fd": "extension", "Stack": "extension", "thread_set_spin": "threads",
    **dict.fromkeys((f"SPIN_{kind}" for kind in (
        "ALL UDP_RECV UDP_SEND TCP_RECV TCP_SEND TCP_ACCEPT PIPE_RECV PIPE_SEND SELECT POLL PKT_WAIT EPOLL_WAIT STACK_LOCK "
        "SOCK_LOCK SO_BUSY_POLL TCP_CONNECT MIMIC_EF_POLL").split()), "threads"),
}
__all__ = [*_API, "__version__"]


def __getattr__(name: str) -> Any:
    # Imported at first use: `import shmstack` alone must cost nothing.
    if name not in _API:
        raise AttributeError(f"module 'shmstack' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"shmstack.stack.{_API[name]}"), name)
