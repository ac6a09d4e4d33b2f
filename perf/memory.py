"""Memory: the bytes that a connection takes, idle and used.

    client (one process) ==== N connections ==== server (one process)

    idle       connected and accepted, never a byte sent
    used       after one message of 64 B each way
    filled     after 64 KiB each way

Figure: growth of the anonymous and shared memory of both processes together for each connection,
as PSS (a page's size is shared among those who map it, so rings count once).  The note has the growth of the mapped
POSIX shared memory, by blocks, and of RSS.  The kernel's own socket buffers are in none of
these: for kernel TCP the figure is the Python objects alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf.fanin import raise_limit
from perf.harness import Crew, Pair
from perf.rows import Options, Row, Say
from perf.transports import CATALOGUE

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "memory"
NAMES = ("kernel-blocking", "shmstack")
NUMBER = 200
STEPS = (("idle", 0), ("used, 64 B each way", 64), ("filled, 64 KiB each way", 65536))


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Accept what comes and echo one message on each connection."""
    raise_limit()
    socket = importlib.import_module(cfg["module"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.settimeout(20)
    link.say(at=listener.getsockname()[1])
    socks: list[Any] = []

    def take(order: dict[str, Any]) -> None:
        for _ in range(order["open"]):
            socks.append(listener.accept()[0])
        _exchange(socks, order["size"], first=False)

    link.obey(take)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Connect as often as ordered, then send a message on each connection and read it back."""
    raise_limit()
    socket = importlib.import_module(cfg["module"])
    link.say(ready=1)
    socks: list[Any] = []

    def make(order: dict[str, Any]) -> None:
        for _ in range(order["open"]):
            socks.append(socket.create_connection(("127.0.0.1", cfg["at"]), timeout=20))
        _exchange(socks, order["size"], first=True)

    link.obey(make)


def _exchange(socks: list[Any], size: int, first: bool) -> None:
    buffer = bytearray(size)
    for sock in socks if size else ():
        if first:
            sock.sendall(buffer)
        left = size
        while left:
            left -= sock.recv_into(buffer, left)
        if not first:
            sock.sendall(buffer)


def sizes(pids: list[int]) -> dict[str, int]:
    """Return what some processes take, in bytes.

    Returns
    -------
    dict
        `pss` of anonymous and shared memory, `rss`, and `shm`: the blocks of the POSIX shared
        memory that they map, each file once.
    """
    told = {"pss": 0, "rss": 0, "shm": 0}
    files = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            word, _, rest = line.partition(":")
            # Not Pss as a whole: a library's share in it shrinks whenever some other program starts.
            if word in ("Pss_Anon", "Pss_Shmem", "Rss"):
                told[word[:3].lower()] += int(rest.split()[0]) * 1024
        # A segment may have no name any more: map_files leads to it all the same.
        for entry in Path(f"/proc/{pid}/map_files").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("/dev/shm/"):
                    status = entry.stat()
                    files.add((status.st_ino, status.st_blocks))
    told["shm"] = sum(blocks * 512 for _, blocks in files)
    return told


def run(options: Options, say: Say) -> list[Row]:
    """Measure each step on NUMBER connections beside one that was there before."""
    rows: dict[str, list[Row]] = {title: [] for title, _ in STEPS}
    number = options.count or NUMBER
    with Crew(options) as crew:
        for name in NAMES:
            say(f"{number} connections of {CATALOGUE[name].title}")
            pair = Pair(CATALOGUE[name]).open(crew, "perf.memory")
            pair.turn(open=1, size=65536)
            before = _sizes(pair)
            for i, (title, size) in enumerate(STEPS):
                pair.turn(open=0 if i else number, size=size)
                rows[title].append(_row(title, pair, before, _sizes(pair), number))
    return [row for some in rows.values() for row in some]


def _sizes(pair: Pair) -> dict[str, int]:
    return {} if pair.missing else sizes([worker.pid for worker in (pair.server, pair.client) if worker])


def _row(title: str, pair: Pair, before: dict[str, int], after: dict[str, int], number: int) -> Row:
    row = Row(NAME, title, pair.transport.name, "B/conn", missing=pair.missing)
    if not pair.missing:
        each = {key: (after[key] - before[key]) // number for key in after}
        row.value = float(max(each["pss"], 0))  # a heap that was trimmed takes nothing
        row.rounds = [row.value]
        row.shared = each["shm"]
        row.note = f"shared memory {each['shm']:,} B, RSS {each['rss']:,} B a connection"
    return row
