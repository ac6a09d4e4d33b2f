"""The processes that use stacks: their numbers on one line, or with -v a line each; -k ends them."""
from __future__ import annotations

import argparse
import json
import os
import pwd
import signal
from collections.abc import Callable
from typing import Any

from shmstack import views

Users = dict[int, dict[str, Any]]


def users(stack: str | None) -> Users:
    """Return pid -> user, comm and stacks of each living process that this process can see."""
    found: Users = {}
    for row in views.stacks(stack):
        for process in row.processes:
            if process.alive and os.path.exists(f"/proc/{process.pid}"):
                entry = found.setdefault(process.pid, {"user": _user(process.uid), "comm": process.comm, "stacks": []})
                entry["stacks"].append(row.name)
    return found


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _kill(found: Users) -> None:
    for pid in found:
        if pid != os.getpid():
            os.kill(pid, signal.SIGKILL)


OPERATIONS: dict[str, tuple[Callable[[Users], None], str]] = {
    "kill": (_kill, "end them with SIGKILL"),
    "json": (lambda found: print(json.dumps([{"pid": pid, **entry} for pid, entry in found.items()])), "as JSON"),
    "verbose": (lambda found: print(*(f"{entry['user']}\t{pid}\t{entry['comm']}\t{' '.join(entry['stacks'])}"
                                      for pid, entry in found.items()), sep="\n"), "user, pid, command, stacks"),
    "plain": (lambda found: print(*found), "only the numbers (the default)"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", nargs="?", help="only this stack's")
    for name, (_, text) in OPERATIONS.items():
        short = [f"-{name[0]}"] if name in ("kill", "verbose") else []
        parser.add_argument(*short, f"--{name}", action="store_true", help=text)
    words = parser.parse_args()
    chosen = [name for name in OPERATIONS if getattr(words, name)] or ["plain"]
    for name in chosen:
        OPERATIONS[name][0](users(words.stack))
