"""The accelerated connections of this host, a line for each end: like netstat, and like it read from outside."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from shmstack import views

HEAD = "{:16} {:>4} {:>9} {:>9}  {:24} {:24} {:12} {:13} {:>7}"


def _address(address: tuple[str, int]) -> str:
    return "{}:{}".format(f"[{address[0]}]" if ":" in address[0] else address[0], address[1] or "*")


def _connections(stack: str | None) -> list[Any]:
    return views.connections(stack)


def _listeners(stack: str | None) -> list[Any]:
    return [row for row in views.listeners() if stack in (None, row.stack)]


KINDS: dict[str, tuple[Callable[[str | None], list[Any]], str]] = {
    "connections": (_connections, "connected sockets"),
    "listeners": (_listeners, "listening sockets"),
}


def _line(row: Any) -> str:
    if isinstance(row, views.Listener):
        return HEAD.format(row.stack, "", 0, 0, _address(row.local), "*:*", "LISTEN", "", "")
    return HEAD.format(row.stack, row.endpoint, row.recv_q, row.send_q, _address(row.local), _address(row.remote),
                       row.state, f"{row.tx_lane}/{row.rx_lane}", row.pid)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", nargs="?", help="only this stack")
    parser.add_argument("-l", "--listening", action="store_true", help="only listening sockets")
    parser.add_argument("-a", "--all", action="store_true", help="listening sockets too")
    parser.add_argument("--json", action="store_true", help="a JSON list")
    words = parser.parse_args()
    kinds = list(KINDS) if words.all else ["listeners"] if words.listening else ["connections"]
    rows = [row for kind in kinds for row in KINDS[kind][0](words.stack)]
    if words.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        print(HEAD.format("stack", "id", "recv-q", "send-q", "local", "remote", "state", "tx/rx lane", "pid"),
              *map(_line, rows), sep="\n")
