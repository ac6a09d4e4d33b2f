"""What shmstack has set itself to reach, as data: each target says which rows it is computed from.

A verdict's `ratio` is how far the measured figure reaches: 1 is the target, more is better, for
times as for rates.  All figures of a ratio come from the same run, in interleaved rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from perf.report import number
from perf.rows import Row

HEAD = ("what", "target", "measured", "ratio", "")
Look = Callable[[str, str, str], Row]


class NotMeasured(LookupError):
    """A row that a target needs is not there, or has no figure; says why."""


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes
    ----------
    what : str
        In words.
    goal : str
        What to reach: "<=" or ">=", a figure and its unit; unit "x" is a ratio of two rows.
    figure : callable
        Computes it; gets a function that finds a row by workload, start of the case, transport.
    """

    what: str
    goal: str
    figure: Callable[[Look], float]

    def reached(self, measured: float) -> float:
        """Return how much of the goal is reached: 1 is the goal, more is better."""
        sign, text, _ = self.goal.split()
        goal = float(text)
        if sign == ">=":
            return round(measured / goal, 2)
        # A cost of nothing (or less, in the noise) is far better than any goal.
        return round(goal / measured, 2) if measured > goal / 1000 else 1000.0


def _figure(workload: str, case: str, transport: str) -> Callable[[Look], float]:
    return lambda look: look(workload, case, transport).value


def _times(workload: str, case: str, ours: str, theirs: str = "kernel-blocking", of: str = "value") -> Any:
    # How many times better `ours` is than `theirs`.
    def figure(look: Look) -> float:
        mine, other = look(workload, case, ours), look(workload, case, theirs)
        a, b = getattr(mine, of), getattr(other, of)
        if not a or not b:
            raise NotMeasured(f"no {of}")
        return float(b / a if mine.better == "less" else a / b)

    return figure


def _within(workload: str, case: str, ours: str, best: str) -> Callable[[Look], float]:
    # How many times worse `ours` is than `best`.
    times = _times(workload, case, ours, best)
    return lambda look: 1 / times(look)


def _beyond(workload: str, case: str, ours: str, theirs: str) -> Callable[[Look], float]:
    return lambda look: look(workload, case, ours).value - look(workload, case, theirs).value


def _mode(mode: int) -> Callable[[Look], float]:
    figure: Callable[[Look], float] = _times("connect", "connect", f"shmstack-mode{mode}")
    return figure


def _shared(look: Look) -> float:
    return float(look("memory", "idle", "shmstack").shared or 0)


PING, STREAM, CROWD = "pingpong", "stream", "oversubscribed"
SPIN, OURS, KERNEL, NODELAY = "shmstack-spin", "shmstack", "kernel-blocking", "kernel-nodelay"
ECHO, JIT = "closed, 64 B", "shmstack-jit"
TARGETS = (
    Target("64 B round trip, spinning, p50", "<= 0.9 us", _figure(PING, ECHO, SPIN)),
    Target("... kernel TCP spinning / ours", ">= 10 x", _times(PING, ECHO, SPIN, "kernel-spin")),
    Target("... kernel TCP blocking / ours", ">= 40 x", _times(PING, ECHO, SPIN)),
    Target("64 B round trip in numba-jitted code, p50", "<= 0.2 us", _figure("jit", "closed", JIT)),
    Target("... ours / two cache lines", "<= 1.7 x", _within("jit", "closed", JIT, "lines")),
    Target("64 B round trip, defaults / spinning", "<= 1.5 x", _within(PING, ECHO, OURS, SPIN)),
    Target("p99.9, kernel TCP spinning / ours spinning", ">= 8 x", _times(PING, ECHO, SPIN, "kernel-spin", "p999")),
    Target("p99.9, kernel TCP blocking / ours spinning", ">= 8 x", _times(PING, ECHO, SPIN, KERNEL, "p999")),
    Target("both asleep between messages, kernel / ours", ">= 1 x", _times(PING, "asleep", OURS)),
    Target("both ends on one core, kernel / ours", ">= 1 x", _times(CROWD, "both ends", OURS)),
    Target("4 pairs on 2 cores, ours / kernel", ">= 1 x", _times(CROWD, "4 pairs", OURS)),
    Target("stream of 64 B, ours / kernel", ">= 20 x", _times(STREAM, "64 B", OURS)),
    Target("stream of 64 B, ours / kernel TCP_NODELAY", ">= 20 x", _times(STREAM, "64 B", OURS, NODELAY)),
    Target("stream of 64 KiB, ours / kernel", ">= 2.5 x", _times(STREAM, "64 KiB", OURS)),
    Target("stream of 1 MiB, ours / kernel", ">= 2.5 x", _times(STREAM, "1 MiB", OURS)),
    Target("stream of 64 KiB, two memcpys / ours", "<= 1.5 x", _within(STREAM, "64 KiB", OURS, "memcpy")),
    Target("stream of 1 MiB, two memcpys / ours", "<= 1.5 x", _within(STREAM, "1 MiB", OURS, "memcpy")),
    Target("stream of 1 MiB without a copy, ours / kernel", ">= 4 x", _times(STREAM, "1 MiB", "shmstack-nocopy")),
    Target("connect + byte + close, mode 1, ours / kernel", ">= 0.8 x", _mode(1)),
    Target("connect + byte + close, mode 2, ours / kernel", ">= 0.8 x", _mode(2)),
    Target("connect + byte + close, mode 3, ours / kernel", ">= 0.8 x", _mode(3)),
    Target("connect + byte + close, mode 4, ours / kernel", ">= 0.5 x", _mode(4)),
    Target("import shmstack.socket, beyond import socket", "<= 60 ms", _beyond("startup", "import", OURS, KERNEL)),
    Target("CPU of a blocked pair, a second", "<= 100 us", _figure("idle", "a blocked pair", OURS)),
    Target("shared memory of an idle connection", "<= 16384 B", _shared),
)


def judge(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return a verdict for each target.

    Returns
    -------
    list of dict
        `what`, `target`; `measured`, `ratio` (1 is the target) and `met`, or `missing`, which says
        why there is no figure.
    """
    known = list(rows)

    def look(workload: str, case: str, transport: str) -> Row:
        for row in known:
            if row.workload == workload and row.case.startswith(case) and row.transport == transport:
                if row.missing:
                    raise NotMeasured(row.missing)
                return row
        raise NotMeasured(f"{workload} has not measured {transport}")

    verdicts = []
    for target in TARGETS:
        verdict: dict[str, Any] = {"what": target.what, "target": target.goal}
        try:
            measured = target.figure(look)
        except (NotMeasured, ZeroDivisionError) as error:
            verdict["missing"] = str(error)
        else:
            verdict["measured"] = round(measured, 4)
            verdict["ratio"] = target.reached(measured)
            verdict["met"] = verdict["ratio"] >= 1
        verdicts.append(verdict)
    return verdicts


def cells(verdict: dict[str, Any]) -> list[str]:
    """Return a verdict's texts: what, target, measured, ratio, whether it is met."""
    if "missing" in verdict:
        return [verdict["what"], verdict["target"], "-", "", f"not available: {verdict['missing']}"]
    unit = verdict["target"].split()[-1]
    measured = f"{number(verdict['measured'])} {unit}"
    met = "met" if verdict["met"] else "short"
    return [verdict["what"], verdict["target"], measured, f"{verdict['ratio']:.2f}", met]
