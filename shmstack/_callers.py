"""Who asks for a descriptor only to register it with a poller of ours, and does nothing else with it.

Guarantee: what is said here of a caller holds for its source, as read; anybody else's call exposes the connection.

`fileno()` gives a descriptor to whom we don't know, so it turns the connection to the kernel lane.  Event loops ask for
it each time they begin to wait, and then hand it to their selector; with a selector of ours nothing had to be turned.
asyncio's `sock_recv` does so for each wait, tornado for about each message, which made both of them slower than without us.

Rejected: to trust a socket whose bytes were received through us after each earlier `fileno()` (os.sendfile after
the next one would overtake what is in the ring).
"""
from __future__ import annotations

import sys
from types import FrameType
from typing import Any


def only_registers(caller: FrameType) -> bool:
    """Return whether the function that runs in this frame passes the descriptor to one of our sets and nobody else."""
    module = caller.f_globals.get("__name__")
    if module == "asyncio.selector_events":
        asks = caller.f_locals.get("self")
        loop = getattr(asks, "_loop", asks)                   # a transport's
    elif module == "tornado.ioloop" and caller.f_code.co_name == "split_fd":
        loop = getattr(caller.f_locals.get("self"), "selector_loop", None)
    else:
        return False
    selector: Any = getattr(loop, "_selector", None)
    ours = sys.modules.get("shmstack.select")                 # nobody has a set of ours before that is loaded
    return ours is not None and isinstance(getattr(selector, "_selector", None), ours.epoll)
