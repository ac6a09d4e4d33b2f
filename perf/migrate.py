"""Moves: how often a second a live connection can change its stack, and what a stream feels.

    client                                   server
      stack A <--- shmstack.move_fd() ---> stack B
      |<=========== 1 KiB messages ============|     never stops sending

    moves     the connection is idle; the client moves its end from one stack to the other and back
    pause     the server streams; every 2 MiB the client moves its end, and the pause is the time
              from just before the move until the next bytes are there.  Kernel TCP has nothing to
              move: its pause is that of an ordinary recv at the same places.
"""

from __future__ import annotations

import importlib
import os
import time
from array import array
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, Pair, interleave
from perf.pingpong import latency_row
from perf.rates import Case, measure
from perf.rows import Options, Row, Say, pack
from perf.transports import CATALOGUE

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "migrate"
SIZE = 1024
APART = 2048  # messages between two moves
MOVES = 20  # in a turn


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Stream the ordered number of messages."""
    socket = importlib.import_module(cfg["module"])
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    link.say(at=listener.getsockname()[1])
    sock, _ = listener.accept()

    def pour(order: dict[str, Any]) -> None:
        payload = b"x" * SIZE
        for _ in range(order.get("messages", 0)):
            sock.sendall(payload)

    link.obey(pour)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Move as ordered: an idle connection as often as it goes, or one that is streaming."""
    socket = importlib.import_module(cfg["module"])
    sock = socket.create_connection(("127.0.0.1", cfg["at"]), timeout=20)
    move = _mover(sock) if cfg["moves"] else lambda: None
    move()
    link.say(ready=1)

    def act(order: dict[str, Any]) -> dict[str, Any] | None:
        if "messages" in order:
            return {"samples": pack(_pauses(sock, order["messages"], move))}
        for _ in range(order["count"]):
            move()
        return None

    link.obey(act)


def _mover(sock: Any) -> Any:
    # Each call moves the socket to the other one of two stacks.  A socket in each keeps them both
    # alive, so that a move is not the making of a stack.
    shmstack = importlib.import_module("shmstack")
    names = [f"perf{os.getpid()}{letter}" for letter in "ab"]
    turn = 0

    def move() -> None:
        nonlocal turn
        turn ^= 1
        shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, names[turn])
        shmstack.move_fd(sock)

    module = importlib.import_module("shmstack.socket")
    for name in names:
        shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, name)
        listener = module.create_server(("127.0.0.1", 0))
        move.__dict__[name] = listener
    return move


def _pauses(sock: Any, messages: int, move: Any) -> array[int]:
    # Drain the stream and move after every APART messages; return the pauses in ns.
    clock, view, pauses = time.perf_counter_ns, memoryview(bytearray(65536)), array("q")
    left, until = messages * SIZE, APART * SIZE
    while left > 0:
        if until > 0:
            got = sock.recv_into(view)
        else:
            began = clock()
            move()
            got = sock.recv_into(view)
            pauses.append(clock() - began)
            until += APART * SIZE
        if not got:
            raise EOFError("the stream ended early")
        left -= got
        until -= got
    return pauses


def run(options: Options, say: Say) -> list[Row]:
    """Measure the moves of an idle connection, then the pauses of a stream."""
    with Crew(options) as crew:
        ours = Pair(CATALOGUE["shmstack"]).open(crew, "perf.migrate", moves=True)
        still = Pair(CATALOGUE["kernel-blocking"]).open(crew, "perf.migrate", moves=False)
        rows = measure(Case(NAME, "moves of an idle connection", "moves/s", first=20), [ours], options, say)
        messages = APART * (MOVES + 1)
        answers = interleave([still, ours], options.rounds, lambda pair: pair.turn(messages=messages), say)
        case = "pause of a stream of 1 KiB messages"
        rows += [
            latency_row(NAME, case, pair, answers[pair.transport.name], SIZE) for pair in (still, ours)
        ]
    return rows
