"""Throughput: one side sends, the other takes what is there.

    client                                server
      |<------- 1 byte: begin ---------------|
      |==== sendall(size) again and again ==>|   recv_into(a buffer of 64 KiB or the size)
      |<------- 1 byte: all here ------------|

64 B shows what a message costs, 64 KiB and 1 MiB what a byte costs.  The time is the sender's,
from its first send to the byte that says the last one was taken, so nothing that still lies in a
buffer counts.

In place (shmstack-nocopy) means that the sender writes each byte once, into the ring, and the receiver has it there;
what a program then does with it, reading for one, is left out here as it is for every other transport.

Baseline: kernel TCP as sockets are made (its Nagle algorithm makes large segments of small
messages, at the price of latency), kernel TCP with TCP_NODELAY (each message is on its way when
sendall() returns, as on a ring), a UNIX socket, multiprocessing.Pipe.  Ceiling: the bare ring for
small messages, for large ones two memcpys by one process (shmstack's two copies are made by two
processes at the same time, so it can pass that).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, Pair
from perf.rates import Case, measure
from perf.rows import Options, Row, Say, human
from perf.transports import CATALOGUE

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "stream"
SIZES = (64, 64 * 1024, 1 << 20)
NAMES = ("kernel-blocking", "kernel-nodelay", "unix", "mp-pipe", "shmstack", "shmstack-spin", "shmstack-nocopy")
STREAMING = ("zmq-ipc", "membridge")  # the peers that carry a stream without losing any of it
MOST = 4_000_000


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Drain what the orders say."""
    from perf import ends

    channel = ends.serve(cfg, lambda address: link.say(at=address))

    def take(order: dict[str, Any]) -> None:
        channel.send(b"!")
        channel.drain(order["size"], order["count"])

    link.obey(take)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Pour what the orders say; answer with the time in ns."""
    from perf import ends

    channel = ends.dial(cfg, cfg["at"])
    link.say(ready=1)

    def send(order: dict[str, Any]) -> dict[str, Any]:
        channel.recv(1)
        began = time.perf_counter_ns()
        channel.pour(order["size"], order["count"])
        return {"took_ns": time.perf_counter_ns() - began}

    link.obey(send)


def run(options: Options, say: Say) -> list[Row]:
    """Measure each size over the main transports and the peers installed."""
    here = tuple(name for name in STREAMING if not CATALOGUE[name].missing())
    rows: list[Row] = []
    with Crew(options) as crew:
        pairs = []
        for name in options.transports or (*NAMES, "ring", "memcpy", *here):
            say(f"starting {CATALOGUE[name].title}")
            nodelay = name == "kernel-nodelay"
            pairs.append(Pair(CATALOGUE[name]).open(crew, "perf.stream", nodelay=nodelay))
        for size in options.sizes or SIZES:
            rows += _rounds(pairs, options, size, say)
    return rows


def _rounds(pairs: list[Pair], options: Options, size: int, say: Say) -> list[Row]:
    small = size < 4096
    if small:  # a memcpy of one cache line says nothing about a stream
        pairs = [pair for pair in pairs if pair.transport.kind != "memcpy"]
    case = Case(
        NAME,
        f"{human(size)} messages",
        "msg/s" if small else "GB/s",
        first=max(min(20_000, (64 << 20) // size), 4),
        most=MOST,
        scale=1.0 if small else size / 1e9,
        order={"size": size},
        size=size,
    )
    rows = measure(case, pairs, options, say)
    # The first ceiling of a group is the one that shares are taken of.
    return rows if small else sorted(rows, key=lambda row: row.transport == "ring")
