"""Rows for people and for programs: an aligned table, JSON, and progress while a run goes on.

Columns as netperf and sfnt-pingpong have them: the figure, then percentiles, then the CPU time of
all processes a message.  Two columns put a figure in its place: `x kernel`, how many times better
than the group's baseline it is, and `of ceiling`, how much of the ceiling's speed it reaches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TextIO

from perf import machine
from perf.rows import Row
from perf.transports import CATALOGUE

HEAD = ("transport", "figure", "p50", "p99", "p99.9", "max", "CPU us/msg", "x kernel", "of ceiling")


def title(row: Row) -> str:
    """Return the words for a row's transport."""
    known = CATALOGUE.get(row.transport)
    return known.title if known else row.transport


def ratio(row: Row, other: Row | None) -> float | None:
    """Return how many times better `row` is than `other`, None where that has no meaning."""
    if other is None or row.missing or other.missing or not row.value or not other.value:
        return None
    return other.value / row.value if row.better == "less" else row.value / other.value


def baseline(group: list[Row]) -> Row | None:
    """Return what a group is compared with: its first baseline, kernel TCP if it is there."""
    return next((row for row in group if row.role == "baseline" and not row.missing), None)


def ceiling(group: list[Row]) -> Row | None:
    """Return the first ceiling of a group."""
    return next((row for row in group if row.role == "ceiling" and not row.missing), None)


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Split rows into those that are compared with each other: one workload, one case."""
    return [list(group) for _, group in groupby(rows, key=lambda row: (row.workload, row.case))]


def number(value: float | None) -> str:
    """Write a figure with three digits that count."""
    if value is None:
        return ""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cells(row: Row, group: list[Row]) -> list[str]:
    """Return the texts of a row, in the order of HEAD."""
    if row.missing:
        return [title(row), "-", "-", *[""] * 6]
    best, share = ratio(row, baseline(group)), ratio(row, ceiling(group))
    return [
        title(row),
        f"{number(row.value)} {row.unit}",
        *(number(value) for value in (row.p50, row.p99, row.p999, row.max, row.cpu_us)),
        "" if best is None else f"{number(best)}x",
        "" if share is None else f"{share:.0%}",
    ]


def show(rows: list[Row], about: dict[str, Any], out: TextIO | None = None) -> None:
    """Print the machine line and a table for each group of rows.

    Parameters
    ----------
    rows : list of Row
        What the workloads gave.
    about : dict
        `machine.describe()`.
    out : text stream, optional
        Where to; a terminal gets rich tables when rich is installed.
    """
    out = out or sys.stdout
    print(machine.line(about), file=out)
    for group in groups(rows):
        table = [cells(row, group) for row in group]
        used = [i for i in range(len(HEAD)) if i < 2 or any(line[i].strip("-") for line in table)]
        head = f"{group[0].workload}: {group[0].case}"
        if all(row.value == row.p50 for row in group if not row.missing) and 2 in used:
            used.remove(1)  # a latency's figure is its p50
            head += f", {group[0].unit}"
        draw(head, [HEAD[i] for i in used], [[line[i] for i in used] for line in table], out)
        for row in group:
            if row.missing or row.note:
                note = f"not available: {row.missing}" if row.missing else row.note
                print(f"  {title(row)}: {note}", file=out)


def draw(head: str, columns: Sequence[str], table: list[list[str]], out: TextIO | None = None) -> None:
    """Print one table: texts, the first column to the left, the others to the right."""
    out = out or sys.stdout
    if out.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            rich = Table(title=head, title_justify="left")
            for i, column in enumerate(columns):
                rich.add_column(column, justify="right" if i else "left")
            for line in table:
                rich.add_row(*line)
            Console(file=out).print(rich)
            return
    widths = [max(map(len, texts)) for texts in zip(columns, *table, strict=True)]
    print(f"\n{head}", file=out)
    for line in [list(columns), *table]:
        first, *rest = (
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(("", first, *rest)).rstrip(), file=out)


def as_json(rows: list[Row], about: dict[str, Any], verdicts: list[dict[str, Any]]) -> str:
    """Return everything as one JSON document: machine, rows (with ratios) and targets."""
    told = []
    for group in groups(rows):
        for row in group:
            fields = row.as_json()
            fields["x_baseline"] = ratio(row, baseline(group))
            fields["of_ceiling"] = ratio(row, ceiling(group))
            told.append(fields)
    return json.dumps({"machine": about, "rows": told, "targets": verdicts}, indent=1)


class Progress:
    """One line on stderr that says what runs now: rewritten on a terminal, else one a workload."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._head = ""

    def begin(self, head: str) -> None:
        """Name the workload that starts."""
        self._head = head
        if not self._live:
            print(f"{head} ...", file=self._out, flush=True)

    def __call__(self, text: str) -> None:
        """Say what is done now."""
        if self._live:
            print(f"\r\033[K{self._head}: {text}", end="", file=self._out, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._live:
            print("\r\033[K", end="", file=self._out, flush=True)
