"""multiprocessing: objects between a program and the process that it started.

    program (one worker)                   its child, started by multiprocessing (spawn)
      Pipe    |---- send(64 B bytes) -------->|  recv, send
      Queue   |---- put into one Queue ------>|  get, put into another
      Client  |---- send over AF_INET ------->|  Listener's connection: recv, send

Each message is pickled, as these interfaces do.  Pipe and Queue come from multiprocessing and
from `shmstack.connection`; Client and Listener are the unchanged module over kernel TCP and under
shmstack's launcher.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, Pair, launched
from perf.rates import Case, measure
from perf.rows import Options, Row, Say
from perf.transports import CATALOGUE, Transport

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "mp"
SIZE = 64
PIPES = "shmstack.connection"


def child(first: Any, second: Any, core: int | None) -> None:
    """Echo until None comes; `second` is the queue of answers, or None if `first` is a Connection.

    `core` is the one to run on, as its parent is bound to another, or None.
    """
    if core is not None:
        os.sched_setaffinity(0, [core])
    get, put = (first.get, second.put) if second is not None else (first.recv, first.send)
    while (data := get()) is not None:
        put(data)


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Echo on a Listener's connection; do nothing where the client starts its own child."""
    if cfg["what"] != "Client":
        link.say(at=0)
        link.obey(lambda order: None)
        return
    with Listener(("127.0.0.1", 0)) as listener:
        link.say(at=listener.address[1])
        conn = listener.accept()

    def echo(order: dict[str, Any]) -> None:
        for _ in range(order["count"]):
            conn.send(conn.recv())

    link.obey(echo)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Ask the other process over a Pipe, a Queue or a Client."""
    process = None
    core = cfg["allowed"][0] if cfg["cores"] else None
    context = multiprocessing.get_context("spawn")
    # shmstack.connection has Pipe and Queue as functions of the module, like multiprocessing itself.
    source = context if cfg["pipes"] == "multiprocessing" else importlib.import_module(cfg["pipes"])
    if cfg["what"] == "Client":
        conn: Any = Client(("127.0.0.1", cfg["at"]))
        put, get = conn.send, conn.recv
    elif cfg["what"] == "Pipe":
        conn, theirs = source.Pipe()
        process = context.Process(target=child, args=(theirs, None, core), daemon=True)
        put, get = conn.send, conn.recv
    else:
        # A queue's locks belong to the way its processes are started.
        named = {} if source is context else {"ctx": context}
        out, back = source.Queue(**named), source.Queue(**named)
        process = context.Process(target=child, args=(out, back, core), daemon=True)
        put, get = out.put, back.get
    if process:
        process.start()
        put(b"")
        get()
    link.say(ready=1)
    payload = b"x" * SIZE

    def ask(order: dict[str, Any]) -> None:
        for _ in range(order["count"]):
            put(payload)
            get()

    link.obey(ask)
    if process:
        put(None)
        process.join(5)
        if process.is_alive():
            process.kill()


def run(options: Options, say: Say) -> list[Row]:
    """Measure Pipe, Queue and Client."""
    rows: list[Row] = []
    kernel = CATALOGUE["mp-pipe"]
    ours = replace(CATALOGUE["shmstack"], name=PIPES, title=PIPES, needs=(PIPES,))
    sides: tuple[tuple[Transport, str], ...] = ((kernel, "multiprocessing"), (ours, PIPES))
    for what in ("Pipe", "Queue"):
        with Crew(options) as crew:
            pairs = [
                Pair(transport).open(crew, "perf.mp", what=what, pipes=pipes) for transport, pipes in sides
            ]
            rows += measure(Case(NAME, f"{what}, 64 B there and back", size=SIZE), pairs, options, say)
    with Crew(options) as crew:
        pairs = launched(crew, "perf.mp", what="Client", pipes="multiprocessing")
        rows += measure(Case(NAME, "Client and Listener, 64 B there and back", size=SIZE), pairs, options, say)
    return rows
