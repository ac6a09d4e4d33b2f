"""Everything that can be seen of running stacks, or of what a dead process left: `stackdump.py [OPERATION] [STACK]`."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from shmstack import views
from shmstack.shm import layout

Rows = list[dict[str, Any]]


def _rows(things: Any) -> Rows:
    return [thing._asdict() for thing in things]


def _dump(stack: str | None) -> Rows:
    """Every word of every pair in use."""
    return [{"stack": views.shown(image.full), "pair": index, **pair, "tcbs": tcbs, "directions": ways}
            for image in views.images(stack) for index, pair, tcbs, ways in image.pairs() if pair["state"]]


def _processes(stack: str | None) -> Rows:
    return [{"stack": row.name, **process._asdict()} for row in views.stacks(stack) for process in row.processes]


def _stats(stack: str | None) -> Rows:
    return [{"stack": name, **{counter: value for counter, value in values.items() if value}}
            for name, values in views.counters(stack).items()]


def _check(stack: str | None) -> Rows:
    return [{"stack": row.name, "wrong": fault} for row in views.stacks(stack) for fault in views.check(row)]


OPERATIONS: dict[str, tuple[Callable[[str | None], Rows], str]] = {
    "stacks": (lambda stack: _rows(views.stacks(stack)), "a line a stack (the default)"),
    "netstat": (lambda stack: _rows(views.connections(stack)), "both ends of each connection"),
    "listeners": (lambda _: _rows(views.listeners()), "who can be connected to"),
    "processes": (_processes, "who uses the stacks"),
    "stats": (_stats, "what was counted"),
    "dump": (_dump, "every word of each connection"),
    "check": (_check, "what must be true and is not"),
    "layout": (lambda _: [{"layout": layout.describe()}], "where each word stands"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    text = "\n".join(f"{name:10} {what}" for name, (_, what) in OPERATIONS.items())
    parser.add_argument("operation", nargs="?", default="stacks", choices=OPERATIONS, metavar="OPERATION", help=text)
    parser.add_argument("stack", nargs="?", help="only this stack")
    parser.add_argument("--json", action="store_true", help="a JSON list")
    words = parser.parse_args()
    found = OPERATIONS[words.operation][0](words.stack)
    print(json.dumps(found, default=str, indent=2) if words.json else
          "\n\n".join("\n".join(f"{key}: {value}" for key, value in row.items()) for row in found))
