"""Start-up: what the import costs, and how long until a program's first byte is back.

    python -c "import M"                   M = socket, shmstack.socket: time of the import alone,
                                           in a fresh interpreter
    python -c "import M; connect; ..."     from the start of the process until the first byte has
                                           come back from a server that waits, and the exit

Figures in ms, medians of interleaved fresh processes.  `shmstack.socket` includes `socket`; the
first import after installation, which may build kernels, is not counted.
"""

from __future__ import annotations

import subprocess
import time

from perf.harness import START_S, Crew, WorkerFailed, python
from perf.latency import median
from perf.rows import Options, Row, Say
from perf.transports import CATALOGUE

NAME = "startup"
NAMES = ("kernel-blocking", "shmstack")
IMPORT = """
import time
began = time.perf_counter_ns()
import {module}
print(time.perf_counter_ns() - began)
"""
FIRST = """
import {module} as socket
sock = socket.create_connection(("127.0.0.1", {port}), timeout=20)
sock.sendall(b"?")
sock.recv(1)
sock.close()
"""


def fresh(code: str) -> tuple[str, int]:
    """Run `code` in a new interpreter; return what it printed and the ns it took."""
    command, env = python(code)
    began = time.perf_counter_ns()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    took = time.perf_counter_ns() - began
    if done.returncode:
        raise WorkerFailed((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return done.stdout, took


def run(options: Options, say: Say) -> list[Row]:
    """Measure the import and the first connection."""
    rounds = options.rounds + 1  # the first fills the page cache and is left out
    imports: dict[str, Row] = {}
    firsts: dict[str, Row] = {}
    with Crew(options) as crew:
        for name in NAMES:
            transport = CATALOGUE[name]
            imports[name] = Row(NAME, "import", name, "ms", missing=transport.missing(), note=transport.module)
            firsts[name] = Row(NAME, "process start to first byte back", name, "ms", missing=transport.missing())
        ports = {}
        for name in NAMES:
            if not firsts[name].missing:
                worker = crew.hire("perf.connect:server", CATALOGUE[name], 0)
                ports[name] = worker.hear(START_S)["at"]
                worker.say(count=rounds)
        for number in range(rounds):
            for name in ports:
                say(f"round {number} of {options.rounds}: {CATALOGUE[name].title}")
                try:
                    _once(imports[name], firsts[name], CATALOGUE[name].module, ports[name])
                except WorkerFailed as error:
                    imports[name].missing = firsts[name].missing = str(error)
    rows = [*imports.values(), *firsts.values()]
    for row in rows:
        row.rounds = row.rounds[1:]
        row.value = median(row.rounds)
    return rows


def _once(imported: Row, first: Row, module: str, port: int) -> None:
    if not imported.missing:
        imported.rounds.append(int(fresh(IMPORT.format(module=module))[0]) / 1e6)
        first.rounds.append(fresh(FIRST.format(module=module, port=port))[1] / 1e6)
