"""Connections a second: connect, one byte each way, close.

    client                                 server (one thread)
      |---- connect -------------------------->| accept
      |---- 1 byte --------------------------->|
      |<--------------------------- 1 byte ----|
      |---- close ---------------------------->| recv gives b"", close
      ... the next one

One connection at a time, so this is the latency of a connection's whole life, told as a rate.
Kernel TCP is the baseline; shmstack is measured for each way that EF_TCP_CLIENT_LOOPBACK can place
a connection: 1 in the stack that both processes share by EF_NAME, 2 in the client's, 3 in the
listener's, 4 in a new one.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, Pair
from perf.rates import Case, measure
from perf.rows import Options, Row, Say
from perf.transports import CATALOGUE, Transport

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "connect"
MODES = (1, 2, 3, 4)
WAIT_S = 20.0


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Serve the ordered number of connections, one after the other."""
    socket = importlib.import_module(cfg["module"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    listener.settimeout(WAIT_S)
    link.say(at=listener.getsockname()[1])

    def take(order: dict[str, Any]) -> None:
        for _ in range(order["count"]):
            sock, _ = listener.accept()
            with sock:
                sock.sendall(sock.recv(1))
                sock.recv(1)

    link.obey(take)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Make the ordered number of connections; answer with the time in ns."""
    socket = importlib.import_module(cfg["module"])
    link.say(ready=1)
    address = ("127.0.0.1", cfg["at"])

    def make(order: dict[str, Any]) -> None:
        for _ in range(order["count"]):
            with socket.socket() as sock:
                sock.connect(address)
                sock.sendall(b"?")
                sock.recv(1)

    link.obey(make)


def transports() -> list[Transport]:
    """Return kernel TCP and shmstack in each client mode."""
    modes = []
    for mode in MODES:
        env = {"EF_TCP_CLIENT_LOOPBACK": str(mode), "EF_TCP_SERVER_LOOPBACK": "2"}
        if mode == 1:
            env["EF_NAME"] = f"perf{os.getpid()}"
        name = f"shmstack-mode{mode}"
        modes.append(replace(CATALOGUE["shmstack"], name=name, title=f"shmstack, client mode {mode}", env=env))
    return [CATALOGUE["kernel-blocking"], *modes]


def run(options: Options, say: Say) -> list[Row]:
    """Measure all of them in interleaved rounds."""
    with Crew(options) as crew:
        pairs = [Pair(transport).open(crew, "perf.connect") for transport in transports()]
        case = Case(NAME, "connect + 1 byte each way + close", "conn/s", first=200, most=5000)
        return measure(case, pairs, options, say)
