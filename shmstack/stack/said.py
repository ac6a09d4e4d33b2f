"""What a process says of itself in a stack, made once."""
from __future__ import annotations

import os
from functools import lru_cache

from shmstack.options import Options


@lru_cache(8)
def settings(options: Options) -> bytes:
    """Return the EF_ settings of a stack."""
    return " ".join(f"{k}={v}" for k, v in options.as_env().items()).encode()[:1023]


@lru_cache(1)
def command() -> bytes:
    """Return this process' command name, as it was when it was first asked for; forked children have their parent's."""
    try:
        comm = os.open("/proc/self/comm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b"?"
    try:
        return os.read(comm, 15).strip()
    finally:
        os.close(comm)
