"""Latency: how long a message takes there and back.

    client                                server
      t0 |---- size bytes ------------------>|     closed  the next message leaves when the answer
      t1 |<----------------- size bytes -----|             is there; the time is t1 - t0
         |                                   |     open    message i is due at start + i * period
                                                           and timed from then, sent or not
                                                   asleep  2 ms of sleep before each message, so
                                                           that both sides have gone to sleep

Baseline: kernel TCP, a UNIX socket, multiprocessing.Pipe.  Ceiling: the bare ring and, for jitted
code, two cache lines.  One client, one server, one connection, like sfnt-pingpong; the CPU time
a message is that of both processes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, Pace, Pair, interleave
from perf.latency import Latencies, median
from perf.rows import Options, Row, Say, human, pack, unpack
from perf.transports import CATALOGUE, MAIN, PEERS

if TYPE_CHECKING:
    from perf.channels import Channel
    from perf.worker import Link

NAME = "pingpong"
OPEN_RATE = 4000  # messages a second that every transport here can answer
REST_S = 0.002


def server(link: Link, cfg: dict[str, Any]) -> None:
    """Echo what the orders say."""
    from perf import ends

    channel = ends.serve(cfg, lambda address: link.say(at=address))
    link.obey(lambda order: channel.echo(order["size"], order["count"]))


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Ask what the orders say; answer with the samples in ns."""
    from perf import ends

    channel = ends.dial(cfg, cfg["at"])
    link.say(ready=1)
    link.obey(lambda order: _ask(channel, order))


def _ask(channel: Channel, order: dict[str, Any]) -> dict[str, Any]:
    size, count = order["size"], order["count"]
    began = time.perf_counter_ns()
    if order["case"] == "open":
        samples = channel.ask_paced(size, count, 10**9 // OPEN_RATE)
    elif order["case"] == "asleep":
        samples = channel.ask_rested(size, count, REST_S)
    else:
        samples = channel.ask(size, count)
    return {"took_ns": time.perf_counter_ns() - began, "samples": pack(samples)}


def run(options: Options, say: Say) -> list[Row]:
    """Measure the closed loop at each size over the main transports and the peers installed."""
    here = tuple(name for name in PEERS if not CATALOGUE[name].missing())
    return measure(options, say, ("closed",), MAIN + here)


def run_open(options: Options, say: Say) -> list[Row]:
    """Measure the open loop."""
    return measure(options, say, ("open",), ("kernel-blocking", "kernel-spin", "unix", "shmstack", "shmstack-spin"))


def run_asleep(options: Options, say: Say) -> list[Row]:
    """Measure round trips between processes that have both gone to sleep before each."""
    return measure(options, say, ("asleep",), ("kernel-blocking", "unix", "mp-pipe", "shmstack"))


def measure(
    options: Options, say: Say, cases: tuple[str, ...], names: tuple[str, ...]
) -> list[Row]:
    """Measure `cases` of the ping-pong over the transports `names`, in interleaved rounds."""
    chosen = options.transports or names
    rows: list[Row] = []
    with Crew(options) as crew:
        pairs = []
        for name in chosen:
            say(f"starting {CATALOGUE[name].title}")
            pairs.append(Pair(CATALOGUE[name]).open(crew, "perf.pingpong"))
        for size in options.sizes or (64,):
            for case in cases:
                rows += rounds(pairs, options, case, size, say)
    return rows


def rounds(pairs: list[Pair], options: Options, case: str, size: int, say: Say) -> list[Row]:
    """Measure one case and size over pairs of this module's roles that are open."""
    first = 1000 if size <= 65536 else 20
    fixed = {"open": int(OPEN_RATE * options.slice_s), "asleep": int(options.slice_s / REST_S)}
    pace = {
        pair.transport.name: Pace(options, first, fixed=fixed.get(case, 0)) for pair in pairs
    }

    def take(pair: Pair) -> dict[str, Any]:
        mine = pace[pair.transport.name]
        began = time.monotonic()
        answer = pair.turn(case=case, size=size, count=mine.count)
        mine.learn(time.monotonic() - began)
        return answer

    for pair in pairs:  # a first turn that warms caches and finds the pace, and is not counted
        take(pair)
    answers = interleave(pairs, options.rounds, take, say)
    title = case if case != "open" else f"open, {OPEN_RATE} msg/s"
    return [
        latency_row(NAME, f"{title}, {human(size)}", pair, answers[pair.transport.name], size)
        for pair in pairs
    ]


def latency_row(
    workload: str, case: str, pair: Pair, answers: list[dict[str, Any]], size: int
) -> Row:
    """Make a row of the samples of some rounds: percentiles are medians over the rounds."""
    row = Row(workload, case, pair.transport.name, "us", missing=pair.missing, size=size)
    if pair.missing:
        return row
    samples = [unpack(answer["samples"]) for answer in answers]
    each = [Latencies(one).summary() for one in samples]
    row.p50, row.p99, row.p999 = (median([one[i] for one in each]) for i in range(3))
    row.max = max(one[3] for one in each)
    row.value, row.rounds = row.p50, [one[0] for one in each]
    trips = sum(len(one) for one in samples)
    if pair.transport.kind in ("lines", "jit"):
        trips *= 10
        row.note = "means of ten round trips"
    if pair.transport.kind != "sockperf":  # its processes are not the workers
        row.cpu_us = sum(answer["cpu_ns"] for answer in answers) / 1e3 / trips
    if max(row.rounds) > 3 * min(row.rounds):
        row.note = f"rounds from {min(row.rounds):.1f} to {max(row.rounds):.1f} us"
    whole = Latencies()
    for one in samples:
        whole.add(one)
    row.curve = whole.curve()
    return row
