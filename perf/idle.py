"""Idle: the CPU that a blocked pair uses.

    client: recv(1), nobody sends          server: recv(1), nobody sends

Both have exchanged a message, so both know a busy connection, and then wait.  After half a second
of settling, the scheduler's own account of both processes (all threads) is read at the start and
at the end of a window of two seconds.  Figure: CPU time of both in us a second of waiting.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, Pair
from perf.latency import median
from perf.rows import Options, Row, Say
from perf.transports import CATALOGUE

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "idle"
NAMES = ("kernel-blocking", "unix", "mp-pipe", "shmstack")
SETTLE_S = 0.5
WINDOW_S = 2.0


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Echo one message, then wait for another for ever."""
    from perf import ends

    channel = ends.serve(cfg, lambda address: link.say(at=address))
    channel.echo(64, 0)
    channel.recv(1)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Ask once, then wait for a message that never comes."""
    from perf import ends

    channel = ends.dial(cfg, cfg["at"])
    channel.ask(64, 0)
    link.say(ready=1)
    channel.recv(1)


def cpu_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process in ns, as the scheduler counts it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def switches(pid: int) -> int:
    """Return how often a process went to sleep."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("voluntary_ctxt_switches:")[2].split()[0])


def run(options: Options, say: Say) -> list[Row]:
    """Watch all pairs wait at the same time, once for each round."""
    window_s = min(WINDOW_S, 8 * options.slice_s)
    with Crew(options) as crew:
        pairs = [Pair(CATALOGUE[name]).open(crew, "perf.idle") for name in NAMES]
        say("letting all settle")
        time.sleep(SETTLE_S)
        told: dict[str, list[float]] = {name: [] for name in NAMES}
        slept = dict.fromkeys(NAMES, 0)
        for _ in range(min(options.rounds, 3)):
            say(f"watching for {window_s:.1f} s")
            for name, (cpu, times) in _watch(pairs, window_s).items():
                told[name].append(cpu / 1e3 / window_s)
                slept[name] = round(times / window_s)
        rows = [_row(pair, told[pair.transport.name], slept[pair.transport.name]) for pair in pairs]
        for pair in pairs:  # blocked for ever, as they should be
            for worker in (pair.server, pair.client):
                if worker:
                    worker.kill()
    return rows


def _watch(pairs: list[Pair], window_s: float) -> dict[str, tuple[int, int]]:
    # CPU time in ns and sleeps of both sides of each pair in the window.
    pids = {p.transport.name: [w.pid for w in (p.server, p.client) if w] for p in pairs if not p.missing}
    before = {name: [(cpu_ns(pid), switches(pid)) for pid in both] for name, both in pids.items()}
    time.sleep(window_s)
    grown = {}
    for name, both in pids.items():
        after = [(cpu_ns(pid), switches(pid)) for pid in both]
        grown[name] = tuple(
            sum(new[i] - old[i] for new, old in zip(after, before[name], strict=True)) for i in (0, 1)
        )
    return grown  # type: ignore[return-value]


def _row(pair: Pair, values: list[float], sleeps: int) -> Row:
    row = Row(NAME, "a blocked pair", pair.transport.name, "us/s", missing=pair.missing)
    if not pair.missing:
        row.rounds, row.value = values, median(values)
        row.note = f"{sleeps} wake-ups a second" if sleeps else ""
    return row
