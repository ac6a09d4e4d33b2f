"""Processes, rounds and rows: what every workload stands on.

Each transport gets its own two (or more) plain Python processes, started once and kept; a round
gives each transport its turn, so all share whatever the machine does meanwhile.  Between its
turns a pair is blocked in a read of its stdin and costs nothing.  The figure of a row is the
median over the rounds.

Every wait has a bound, and only processes that this module started are ended, by their pid.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from perf.rows import Options, Say
from perf.transports import CATALOGUE, Transport

ROOT = Path(__file__).resolve().parent.parent
# What a worker runs: perf/ is found behind everything else, for the tree has a shmstack too.
WORKER = f"import sys; sys.path.append({str(ROOT)!r}); from perf.worker import main; sys.exit(main(sys.argv[1:]))"
MOST = 100_000  # messages a turn, where nothing else is said
TURN_S = 20.0  # a turn that should take a quarter of a second
START_S = 90.0  # a worker's first answer; numba may compile the kernels of an empty cache


class WorkerFailed(RuntimeError):
    """A worker said why it can't go on, ended, or kept silent for too long."""


def python(code: str, *args: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a Python that imports the shmstack that this process imports.

    That is the installed one for the installed command, and the tree's for `python -m perf` there.
    """
    found = importlib.util.find_spec("shmstack")
    ours = found is not None and Path(str(found.origin)).resolve().parent.parent == ROOT
    path = os.pathsep.join(filter(None, (str(ROOT) if ours else "", os.environ.get("PYTHONPATH", ""))))
    return [sys.executable, "-P", "-c", code, *args], {**os.environ, "PYTHONPATH": path}


class Worker:
    """A child process in one role; see `perf.worker` for its side of the conversation."""

    def __init__(self, role: str, cfg: dict[str, Any], env: dict[str, str]) -> None:
        module, _, function = role.partition(":")
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - close() does
        command, around = python(WORKER, module, function)
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**around, **env},
        )
        self._pending = b""
        self.role = role
        self.pid = self._child.pid
        self.say(**cfg)

    def say(self, **fields: Any) -> None:
        """Send one object."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # hear() will tell why it ended
            self._child.stdin.write(json.dumps(fields).encode() + b"\n")
            self._child.stdin.flush()

    def hear(self, timeout_s: float = TURN_S) -> dict[str, Any]:
        """Return the next object that the worker says; raise WorkerFailed if there is none."""
        assert self._child.stdout is not None
        handle, ends = self._child.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left = max(ends - time.monotonic(), 0)
            if not select.select([handle], [], [], left)[0]:
                raise WorkerFailed(f"{self.role} said nothing for {timeout_s:.0f} s")
            data = os.read(handle, 1 << 20)
            if not data:
                raise WorkerFailed(f"{self.role} ended: {self._last_words()}")
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(text)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def kill(self) -> None:
        """End the process at once, wherever it is blocked."""
        self._child.kill()

    def close(self) -> None:
        """End the process: by the end of its stdin, else by force; remove what it left in shm."""
        assert self._child.stdin is not None and self._child.stdout is not None
        if self._child.stdout.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(10)
        self._child.stdout.close()
        self._stderr.close()
        for path in Path("/dev/shm").glob(f"shmperf-{self.pid}-*"):
            path.unlink(missing_ok=True)

    def _last_words(self) -> str:
        self._child.wait(5)
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        return lines[-1] if lines else f"status {self._child.returncode}"


class Crew:
    """All workers of a workload; leaving the `with` block ends them."""

    def __init__(self, options: Options, life_s: int = 280) -> None:
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="shmperf-")
        self._life_s = life_s
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def hire(
        self, role: str, transport: Transport, side: int, cores: Sequence[int] = (), **cfg: Any
    ) -> Worker:
        """Start a worker in `role` ("module:function").

        Parameters
        ----------
        side : int
            0 or 1: which core of the allowed ones it gets with --pin.
        cores : sequence of int
            Cores to bind it to whatever the options say.
        cfg
            Further fields of its configuration.
        """
        allowed = sorted(os.sched_getaffinity(0))
        if not cores and self.options.pin:
            cores = (allowed[side % len(allowed)],)
        basics = {
            "kind": transport.kind,
            "module": transport.module,
            "spin": transport.spin,
            "folder": self.folder,
            "life": self._life_s,
            "cores": list(cores),
            "allowed": allowed,
            "install": False,
        }
        worker = Worker(role, {**basics, **cfg}, transport.env)
        self._workers.append(worker)
        return worker


class Pair:
    """The server and the client of one transport; `missing` says why there is none.

    The server's role first says {"at": address}, the client is then started with it, and says
    {"ready": 1} once connected.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.missing = transport.missing()
        self.server: Worker | None = None
        self.client: Worker | None = None

    def open(self, crew: Crew, module: str, **cfg: Any) -> Pair:
        """Start both workers of `module`."""
        if self.missing:
            return self
        try:
            self.server = crew.hire(f"{module}:server", self.transport, 0, **cfg)
            at = self.server.hear(START_S)["at"]
            self.client = crew.hire(f"{module}:client", self.transport, 1, at=at, **cfg)
            self.client.hear(START_S)
        except WorkerFailed as error:
            self._fail(error)
        return self

    def begin(self, **order: Any) -> None:
        """Give both sides the same order."""
        if not self.missing:
            assert self.server and self.client
            self.server.say(**order)
            self.client.say(**order)

    def finish(self, timeout_s: float = TURN_S) -> dict[str, Any]:
        """Return the client's answer with both sides' `cpu_ns`; empty if `missing` says why."""
        if self.missing:
            return {}
        assert self.server and self.client
        try:
            answer = self.client.hear(timeout_s)
            answer["cpu_ns"] += self.server.hear(timeout_s)["cpu_ns"]
        except WorkerFailed as error:
            self._fail(error)
            return {}
        return answer

    def turn(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        self.begin(**order)
        return self.finish()

    def close(self) -> None:
        """End both workers."""
        for worker in (self.server, self.client):
            if worker:
                worker.close()

    def _fail(self, error: WorkerFailed) -> None:
        # One transport down is no reason to stop, but its other half may be spinning.
        self.missing = str(error)
        self.close()


def launched(crew: Crew, module: str, **cfg: Any) -> list[Pair]:
    """Start the same unchanged program twice: over kernel TCP, and under shmstack's launcher."""
    ours = replace(CATALOGUE["shmstack"], needs=("shmstack.socket", "shmstack.run"))
    return [
        Pair(CATALOGUE["kernel-blocking"]).open(crew, module, **cfg),
        Pair(ours).open(crew, module, install=True, **cfg),
    ]


def interleave(
    pairs: Sequence[Pair], rounds: int, take: Callable[[Pair], dict[str, Any]], say: Say
) -> dict[str, list[dict[str, Any]]]:
    """Give each pair its turn, round after round; return the answers by transport name."""
    answers: dict[str, list[dict[str, Any]]] = {pair.transport.name: [] for pair in pairs}
    for number in range(rounds):
        for pair in pairs:
            if not pair.missing:
                say(f"round {number + 1} of {rounds}: {pair.transport.title}")
                answer = take(pair)
                if answer:
                    answers[pair.transport.name].append(answer)
    return answers


class Pace:
    """How many messages a turn has, so that it fills `slice_s`.

    It learns from each turn, carefully: kernel TCP between two blocking processes takes 6 us a
    round trip while the scheduler has both on one core and 80 us when it has not, and changes
    its mind.
    """

    def __init__(self, options: Options, first: int, most: int = MOST, fixed: int = 0) -> None:
        self._slice_s = options.slice_s
        self._most = most
        self._fixed = bool(options.count or fixed)
        self.count = options.count or fixed or first

    def learn(self, took_s: float) -> None:
        """Set the count of the next turn from the time in s that this one took."""
        if not self._fixed:
            fitting = int(self.count * self._slice_s / max(took_s, 1e-6))
            self.count = max(min(fitting, 8 * self.count, self._most), 10)
