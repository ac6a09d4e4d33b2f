"""`shmstack perf WORKLOAD`: measure, print, compare.

    shmstack perf pingpong                  the table of the README, in less than 20 s
    shmstack perf pingpong --sizes all --plot latency.png
    shmstack perf stream connect            several workloads
    shmstack perf all --json                everything, with the table of targets
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from perf import machine, report, targets
from perf.rows import Options, Row
from perf.transports import CATALOGUE

# Name on the command line -> module.  The order is that of `all`: what people look at first, first.
WORKLOADS = {
    "pingpong": "pingpong:run",
    "openloop": "pingpong:run_open",
    "asleep": "pingpong:run_asleep",
    "jit": "jit:run",
    "stream": "stream:run",
    "connect": "connect:run",
    "fanin": "fanin:run",
    "asyncio": "aio:run",
    "requests": "http:run",
    "mp": "mp:run",
    "oversubscribed": "oversubscribed:run",
    "idle": "idle:run",
    "startup": "startup:run",
    "memory": "memory:run",
    "migrate": "migrate:run",
}
SIZES = (1, 64, 512, 4096, 65536, 1 << 20, 8 << 20)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    names = ", ".join((*WORKLOADS, "all"))
    p = argparse.ArgumentParser(
        prog="shmstack perf",
        description="Measure shmstack beside kernel TCP, other transports and the ceiling.",
    )
    p.add_argument("workloads", nargs="+", metavar="WORKLOAD", help=f"one or more of: {names}")
    p.add_argument("--json", action="store_true", help="print one JSON document")
    p.add_argument("--plot", metavar="FILE", help="draw latency distribution and size sweep")
    p.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give each process of a pair a core of its own (default), or let the scheduler choose",
    )
    p.add_argument("--sizes", type=_sizes, default=(), help="bytes: 64,4096 or 64K,1M, or all")
    p.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds (default 5)")
    p.add_argument("--transports", type=_transports, default=(), help="names, comma between")
    p.add_argument("--quick", action="store_true", help="2 short rounds: to see that it works")
    return p


def _sizes(text: str) -> tuple[int, ...]:
    if text == "all":
        return SIZES
    scale = {"K": 1 << 10, "M": 1 << 20}
    try:
        sizes = tuple(
            int(part.rstrip("KM")) * scale.get(part[-1:], 1)
            for part in text.upper().replace("IB", "").split(",")
        )
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list of sizes: {text!r}") from None
    if not all(0 < size <= 64 << 20 for size in sizes):
        raise argparse.ArgumentTypeError(f"sizes are 1 B to 64 MiB: {text!r}")
    return sizes


def _transports(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {unknown}; known: {', '.join(CATALOGUE)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Run workloads and print their rows.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after `shmstack perf`; `sys.argv[1:]` by default.

    Returns
    -------
    int
        0, or 2 for an argument that makes no sense, or 130 after Ctrl-C.
    """
    p = parser()
    args = p.parse_args(argv)
    whole = "all" in args.workloads
    names = list(WORKLOADS) if whole else args.workloads
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        p.error(f"unknown workload {', '.join(unknown)}; known: {', '.join((*WORKLOADS, 'all'))}")
    options = Options(
        rounds=args.rounds or (2 if args.quick else 3 if whole else 5),
        slice_s=0.05 if args.quick else 0.15 if whole else 0.25,
        sizes=args.sizes or (SIZES if args.plot else ()),
        transports=args.transports,
        pin=args.pin,
    )
    about = machine.describe()
    try:
        rows = measure(names, options)
    except KeyboardInterrupt:
        return 130
    verdicts = targets.judge(rows) if whole else []
    if args.json:
        print(report.as_json(rows, about, verdicts))
    else:
        report.show(rows, about)
        if verdicts:
            report.draw("targets", targets.HEAD, [targets.cells(one) for one in verdicts])
    if args.plot:
        from perf import plot

        print(f"drawn: {plot.draw(rows, about, args.plot)}", file=sys.stderr)
    return 0


def measure(names: Sequence[str], options: Options) -> list[Row]:
    """Run the named workloads one after the other and return all their rows."""
    progress = report.Progress()
    rows: list[Row] = []
    try:
        for name in names:
            progress.begin(name)
            module, _, function = WORKLOADS[name].partition(":")
            rows += getattr(importlib.import_module(f"perf.{module}"), function)(options, progress)
    finally:
        progress.end()
    return rows
