"""What `shmstack list`, `netstat` and `stats` print: rows from `views`, as a table or as JSON.

A row is a dictionary, and its keys are the columns, so that the table and the JSON can't differ.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def stacks(name: str | None) -> list[Row]:
    """Return a row for each stack: who made it, who uses it, how full it is."""
    from shmstack import views
    return [{"stack": stack.name, "owner": stack.owner_name, "uid": stack.owner_uid,
             "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stack.created_ns / 1e9)),
             "endpoints": stack.endpoints_used, "max": stack.endpoints_max,
             "processes": [{"pid": process.pid, "comm": process.comm, "alive": bool(process.alive)}
                           for process in stack.processes]}
            for stack in views.stacks() if name in (None, stack.name)]


def connections(name: str | None) -> list[Row]:
    """Return a row for each end of a connection: addresses, state, queues, lanes."""
    from shmstack import views
    return [{column: getattr(row, column) for column in
             ("stack", "local", "remote", "state", "recv_q", "send_q", "tx_lane", "rx_lane")}
            for row in views.connections(name)]


def counters(name: str | None) -> list[Row]:
    """Return a row for each counter that has counted."""
    from shmstack import views
    return [{"stack": stack, "counter": counter, "value": value}
            for stack, values in views.counters(name).items() for counter, value in values.items() if value]


VIEWS: dict[str, tuple[Callable[[str | None], list[Row]], str]] = {
    "list": (stacks, "the stacks of this host, their owners and processes"),
    "netstat": (connections, "the accelerated connections, a line for each end"),
    "stats": (counters, "what the stacks counted, each reason not to accelerate among it"),
}


def show(rows: Callable[[str | None], list[Row]], name: str | None, as_json: bool, watch: float | None) -> None:
    """Print the rows once, or every `watch` seconds until interrupted."""
    while True:
        found = rows(name)
        if as_json:
            print_json(found, None if watch else 2)
        else:
            if watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            _print_table(found)
        sys.stdout.flush()
        if not watch:
            return
        time.sleep(watch)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print one JSON value."""
    print(json.dumps(value, indent=indent, default=str))


def _cell(value: Any) -> str:
    if isinstance(value, tuple) and len(value) >= 2:
        host, port = value[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(value, list):
        return ", ".join(f"{item['pid']} {item['comm']}" + ("" if item["alive"] else " (dead)") for item in value)
    return str(value)


def _print_table(rows: list[Row]) -> None:
    if not rows:
        return
    heads = [column.replace("_", "-") for column in rows[0]]
    numbers = [isinstance(value, int) for value in rows[0].values()]
    lines = [[_cell(value) for value in row.values()] for row in rows]
    if sys.stdout.isatty() and _print_rich(heads, numbers, lines):
        return
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, *lines):
        cells = [cell.rjust(width) if number else cell.ljust(width)
                 for cell, width, number in zip(line, widths, numbers, strict=True)]
        print("  ".join(cells).rstrip())


def _print_rich(heads: list[str], numbers: list[bool], lines: list[list[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, number in zip(heads, numbers, strict=True):
        table.add_column(head, justify="right" if number else "left", no_wrap=number)
    for line in lines:
        table.add_row(*[Text(cell) for cell in line])    # names come from other processes: text, not markup
    Console().print(table)
    return True
