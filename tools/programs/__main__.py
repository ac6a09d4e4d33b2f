"""Well-known programs, unchanged, both ends under `shmstack run`: are the bytes right, and which way did they go?

    python -m tools.programs [NAME ...]

Each server gets bodies of 0 B to 3 MB and sends each back with its hash.  Meanwhile `shmstack netstat` is read, from
outside: a connection counts as accelerated when both its ends were seen in a stack, and `ring` when both sent by it.
What the kernel carried is taken from lo's byte counter, so other loopback traffic at the time is in it.

What isn't installed is left out: `pip install '.[programs]'` has all but redis-server, which Debian has.
"""
from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shmstack import views
from shmstack.errors import StackNotFound

HERE = Path(__file__).parent
PATIENCE_S = 120
OURS = (sys.executable, str(HERE / "servers.py"))
PORT = "PORT"


class Case(NamedTuple):
    """A server's command line, a client of `clients`, and what both need."""

    name: str
    server: tuple[str, ...]
    client: str
    needs: tuple[str, ...]
    plain: bool = False               # the server is no Python: kernel TCP is right


def _ours(server: str, client: str, *needs: str) -> Case:
    return Case(f"{server} + {client}", (*OURS, server, PORT), client, (server, *needs))


def _module(name: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *words)


CASES = (
    _ours("aiohttp", "httpx_async", "httpx"),
    Case("uvicorn (asyncio) + httpx", _module("uvicorn", "--loop", "asyncio", "--log-level", "error", "--port", PORT,
                                              "servers:asgi"), "httpx", ("uvicorn", "httpx")),
    Case("uvicorn (uvloop) + httpx", _module("uvicorn", "--loop", "uvloop", "--log-level", "error", "--port", PORT,
                                             "servers:asgi"), "httpx", ("uvicorn", "uvloop", "httpx")),
    Case("gunicorn, 4 sync workers + requests", _module("gunicorn", "-w", "4", "-b", f"127.0.0.1:{PORT}", "--log-level",
                                                        "error", "servers:wsgi"), "requests", ("gunicorn", "requests")),
    Case("gunicorn, gevent + requests", _module("gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{PORT}", "--log-level",
                                                "error", "servers:wsgi"), "requests", ("gunicorn", "gevent", "requests")),
    _ours("cheroot", "urllib3"),
    _ours("waitress", "requests"),
    _ours("eventlet", "requests"),
    _ours("websockets", "websockets"),
    _ours("trio", "plain"),
    _ours("rpyc", "rpyc"),
    _ours("distributed", "distributed"),
    Case("execnet + execnet", _module("execnet.script.socketserver", f"127.0.0.1:{PORT}"), "execnet", ("execnet",)),
    Case("redis-server + redis", ("redis-server", "--port", PORT, "--save", "", "--bind", "127.0.0.1"), "redis",
         ("redis",), plain=True),
)


class Seen:
    """The connections of a stack as netstat shows them while a program runs."""

    def __init__(self, stack: str) -> None:
        self._stack, self._over = stack, threading.Event()
        self.lanes: dict[frozenset[object], set[tuple[str, str]]] = {}

    def _look(self) -> None:
        while not self._over.wait(0.0005):
            rows = {(row.local, row.remote): row for row in views.connections() if row.stack == self._stack}
            for ends, row in rows.items():
                if ends[::-1] in rows:
                    self.lanes.setdefault(frozenset(ends), set()).add((row.tx_lane, row.rx_lane))

    @contextmanager
    def looking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def kernel_bytes() -> int:
    """Return how many bytes lo ever carried."""
    return int(Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number: int = sock.getsockname()[1]
    return number


def missing(case: Case) -> str:
    """Return what a case lacks, "" if nothing."""
    lacks = [name for name in case.needs if importlib.util.find_spec(name) is None]
    if case.plain and shutil.which(case.server[0]) is None:
        lacks.append(case.server[0])
    return ", ".join(lacks)


@contextmanager
def serving(case: Case, run: list[str], port: int) -> Iterator[None]:
    """Have the server of a case listen."""
    words = [word.replace(PORT, str(port)) for word in case.server]
    with subprocess.Popen([*run, *words], cwd=HERE, start_new_session=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            while f":{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{case.name}: the server does not listen\n{process.communicate()[1]}")
                time.sleep(0.02)
            yield
        finally:
            process.send_signal(signal.SIGTERM if case.plain else signal.SIGINT)
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def play(case: Case) -> str:
    """Run a case; return its line."""
    name, port = f"programs-{secrets.token_hex(3)}", free_port()
    run = [sys.executable, "-m", "shmstack", "run", "--name", name, "--"]
    seen = Seen(name)
    with serving(case, run, port):
        began, carried = time.monotonic(), kernel_bytes()
        with seen.looking():
            done = subprocess.run([*run, sys.executable, str(HERE / "clients.py"), case.client, str(port)], cwd=HERE,
                                  capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        took, carried = time.monotonic() - began, kernel_bytes() - carried
        try:
            counters = views.counters(name).get(name, {})
        except StackNotFound:
            counters = {}                                     # a server that makes its sockets in C
    if done.returncode:
        raise SystemExit(f"{case.name}: exit {done.returncode}\n{done.stderr}")
    rings = sum(("ring", "ring") in lanes for lanes in seen.lanes.values())
    return LINE.format(case.name, int(done.stdout), f"{took:.1f}", f"{carried / 1e6:.1f}",
                       counters.get("accept_accelerated", 0), len(seen.lanes), rings)


LINE = "{:36} {:>7} {:>7} {:>10} {:>12} {:>8} {:>6}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.programs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only those whose name has one of these words")
    words = parser.parse_args()
    print(LINE.format("program", "answers", "s", "kernel MB", "accelerated", "seen", "ring"), flush=True)
    for case in CASES:
        if words.names and not any(name in case.name for name in words.names):
            continue
        lacks = missing(case)
        print(f"{case.name:36} not here: {lacks}" if lacks else play(case), flush=True)
    left = [entry for entry in os.listdir("/dev/shm") if "programs-" in entry]
    if left:
        print("left behind:", *left)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
