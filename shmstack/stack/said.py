"""What a process says of itself in a stack, made once."""
from __future__ import annotations

import os
from functools import lru_cache

from shmstack.options import Options


@lru_cache(8)
def settings(options: Options) -> bytes:
    """Return the EF_ settings of a stack."""
    return " ".join(f"{k}={v}" for k, v in options.as_env().items()).encode()[:1023]


_commands: dict[int, bytes] = {}


def command() -> bytes:
    """Return this process' command name, as it was when it was first asked for."""
    pid = os.getpid()
    if pid not in _commands:
        _commands.clear()
        try:
            with open("/proc/self/comm", "rb") as comm:
                _commands[pid] = comm.read().strip()[:15]
        except OSError:
            _commands[pid] = b"?"
    return _commands[pid]
