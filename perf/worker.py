"""The life of a worker: a plain Python process that plays one role of a workload.

    harness ---- stdin: one JSON object a line: first the configuration, then orders ----> worker
    harness <--- stdout: one JSON object a line: "ready", then one answer for each order ---- worker

`main(["perf.pingpong", "server"])` imports the module and calls `server(link, cfg)`.
Whatever a role raises is told as {"error": ...}: the harness turns it into a row that says why
there is no figure.  A worker that nobody wants any more sees the end of its stdin; one that hangs
in a call is ended by SIGALRM after its `life`, even if the harness was killed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


class Link:
    """The worker's end of the line to the harness."""

    def say(self, **fields: Any) -> None:
        """Send one object."""
        sys.__stdout__.write(json.dumps(fields) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]

    def hear(self) -> dict[str, Any]:
        """Return the next object, or an empty one when the harness is done with us."""
        text = sys.__stdin__.readline()  # type: ignore[union-attr]
        return json.loads(text) if text else {}

    def obey(self, action: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Carry out orders until there are no more.

        Answers each with what `action(order)` returned, its wall time as `took_ns` (unless the
        action timed itself) and the CPU time of this process as `cpu_ns`.
        """
        while order := self.hear():
            cpu, began = time.process_time_ns(), time.perf_counter_ns()
            fields = action(order) or {}
            took = time.perf_counter_ns() - began
            self.say(**{"took_ns": took, "cpu_ns": time.process_time_ns() - cpu, **fields})


def main(argv: list[str]) -> int:
    """Play the role named by `argv` = [module, function]; return the exit status."""
    link = Link()
    cfg = link.hear()
    if not cfg:
        return 1
    # The default action of SIGALRM ends the process: it works inside a kernel that spins, too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(cfg["life"]))
    if cfg["cores"]:
        os.sched_setaffinity(0, cfg["cores"])
    try:
        if cfg["install"]:
            importlib.import_module("shmstack.run").install()
        role = getattr(importlib.import_module(argv[0]), argv[1])
        gc.collect()
        gc.disable()  # as timeit does: a collection is the program's cost, not the transport's
        role(link, cfg)
    except Exception as error:  # noqa: BLE001 - whatever it was, the row must say it
        link.say(error=f"{type(error).__name__}: {error}")
        return 1
    return 0
