"""Many connections into one process, served by one selector.

    client (one process)                   server (one process)
      conn 1 ---- 64 B each ---------------->|
      conn 2 ------------------------------->|  selectors.DefaultSelector():
        ...                                  |  recv, sendall, next
      conn N ------------------------------->|
      <----------------------- echoes -------|

The client sends one message on every connection (at most 64 at a time), then reads the echoes:
messages a second over 1, 10, 100 and 1,000 connections.  The same unchanged program runs over
kernel TCP and under shmstack's launcher.
"""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, launched
from perf.rates import Case, measure
from perf.rows import Options, Row, Say

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "fanin"
CONNECTIONS = (1, 10, 100, 1000)
AT_ONCE = 64
SIZE = 64


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Accept the connections, then echo the ordered number of messages."""
    raise_limit()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.settimeout(20)
    link.say(at=listener.getsockname()[1])
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(cfg["connections"]):
            sock, _ = listener.accept()
            stack.enter_context(sock)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)

        def take(order: dict[str, Any]) -> None:
            left = order["count"]
            while left:
                for key, _ in selector.select(20):
                    data = key.fileobj.recv(SIZE)  # type: ignore[union-attr]
                    key.fileobj.sendall(data)  # type: ignore[union-attr]
                    left -= 1

        link.obey(take)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Send on all connections in turn, at most AT_ONCE messages before their echoes are read."""
    raise_limit()
    number = cfg["connections"]
    socks = [socket.create_connection(("127.0.0.1", cfg["at"]), timeout=20) for _ in range(number)]
    link.say(ready=1)
    payload = b"x" * SIZE

    def ask(order: dict[str, Any]) -> None:
        for first in range(0, order["count"], AT_ONCE):
            some = [socks[i % number] for i in range(first, min(first + AT_ONCE, order["count"]))]
            for start in range(0, len(some), number):  # a connection has one message under way
                for sock in some[start : start + number]:
                    sock.sendall(payload)
                for sock in some[start : start + number]:
                    sock.recv(SIZE)

    link.obey(ask)


def raise_limit() -> None:
    """Let this process have as many descriptors as it may: 1,000 pass the usual soft limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(options: Options, say: Say) -> list[Row]:
    """Measure each number of connections."""
    rows: list[Row] = []
    for number in CONNECTIONS:
        say(f"opening {number} connections")
        with Crew(options) as crew:
            pairs = launched(crew, "perf.fanin", connections=number)
            case = Case(NAME, f"{number} connections, 64 B echo", size=SIZE)
            rows += measure(case, pairs, options, say)
    return rows
