"""Whole programs of the standard library, unchanged, under the launcher: every byte right, every connection accelerated."""
from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from test_launcher import _environment

from shmstack import views

PATIENCE_S = 120
SIZES = (0, 1, 100, 1000, 1460, 4096, 10_000, 65_536, 100_000)
LARGE = (1 << 20, 3_000_001, 8 << 20)

FETCH = """
import hashlib, json, sys, urllib.request
base, wanted = sys.argv[1], json.load(open(sys.argv[2]))
for path, digest in wanted.items():
    with urllib.request.urlopen(base + path) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == digest, path
print(len(wanted))
"""

XMLRPC_SERVER = """
import hashlib
from xmlrpc.server import SimpleXMLRPCServer
server = SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True)
server.register_function(lambda data: hashlib.sha256(data.data).hexdigest(), "digest")
server.register_function(lambda *words: words, "echo")
print("port", server.server_address[1], flush=True)
server.serve_forever()
"""

XMLRPC_CLIENT = """
import hashlib, random, sys, xmlrpc.client
chance = random.Random(1)
count = 0
for _ in range(20):
    with xmlrpc.client.ServerProxy(sys.argv[1], allow_none=True) as proxy:
        for _ in range(5):
            data = chance.randbytes(chance.choice((0, 1, 1000, 70_000, 400_000)))
            assert proxy.digest(xmlrpc.client.Binary(data)) == hashlib.sha256(data).hexdigest()
            assert proxy.echo(1, "two", [3.0, None]) == [1, "two", [3.0, None]]
            count += 2                              # HTTP/1.0: a connection a call
print(count)
"""

ECHO_SERVER = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            size = int(line)
            self.wfile.write(line + self.rfile.read(size))
class Server(getattr(socketserver, sys.argv[1])):
    request_queue_size = 128
    daemon_threads = True
with Server(("127.0.0.1", 0), Echo) as server:
    print("port", server.server_address[1], flush=True)
    server.serve_forever()
"""

ECHO_CLIENT = """
import random, socket, sys, threading
def run(seed):
    chance = random.Random(seed)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock, sock.makefile("rwb") as file:
            for _ in range(5):
                data = chance.randbytes(chance.choice((0, 1, 1000, 70_000)))
                file.write(b"%d\\n" % len(data) + data)
                file.flush()
                assert int(file.readline()) == len(data)
                assert file.read(len(data)) == data
threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(40)
"""


@contextmanager
def launched(name, *words, errors=subprocess.DEVNULL):
    """Start a program in the stack `name`; yield it, and end it as Ctrl-C does."""
    program = subprocess.Popen([sys.executable, "-m", "shmstack", "run", "--name", name, "--", sys.executable, *words],
                               env=_environment(PYTHONUNBUFFERED="1"), cwd="/", text=True,
                               stdout=subprocess.PIPE, stderr=errors)
    try:
        yield program
    finally:
        if program.returncode is None:
            program.send_signal(signal.SIGINT)
            program.communicate(timeout=PATIENCE_S)


def port_of(server):
    words = server.stdout.readline().split()
    return next(word for word in words[1:] if word.isdigit())


class Watch(threading.Thread):
    """Look at a stack again and again, as `shmstack netstat` does, and remember the connections that were seen whole."""

    def __init__(self, name):
        super().__init__(daemon=True)
        self.name_, self.seen, self.done = name, set(), threading.Event()

    def run(self):
        while not self.done.is_set():
            rows = {(row.local, row.remote): row for row in views.connections() if row.stack == self.name_}
            for (local, remote), row in rows.items():
                other = rows.get((remote, local))
                if other is not None and {row.tx_lane, row.rx_lane, other.tx_lane, other.rx_lane} == {"ring"}:
                    self.seen.add(frozenset((local, remote)))
            time.sleep(0.001)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


@contextmanager
def accelerated():
    """Yield a name; then every connection in its stack must have been accelerated at both ends, and some were seen so."""
    name = "prog" + secrets.token_hex(4)
    made = []
    with Watch(name) as watch:
        yield name, made
    counters, connections = made
    refused = {key: value for key, value in counters.items() if key.startswith(("not_", "accept_no")) and value}
    assert not refused
    assert counters["connect_accelerated"] == counters["accept_accelerated"] == connections
    assert watch.seen
    assert not [entry for entry in os.listdir("/dev/shm") if name in entry]


def run_client(name, *words):
    with launched(name, *words, errors=subprocess.PIPE) as client:
        out, errors = client.communicate(timeout=PATIENCE_S)
    assert client.returncode == 0, errors
    return int(out)


@pytest.fixture
def tree(tmp_path):
    """A thousand files of 0 B to 8 MiB, and a file that says path -> digest."""
    chance, wanted = random.Random(7), {}
    for number in range(1000):
        data = chance.randbytes(LARGE[number % 3] if number % 100 < 3 else chance.choice(SIZES))
        path = f"{number % 10}/{number}.bin"
        place = tmp_path / "tree" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        wanted["/" + path] = hashlib.sha256(data).hexdigest()
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    return tmp_path


def test_http_server_serves_a_tree_to_urllib(tree):
    with accelerated() as (name, made), \
            launched(name, "-m", "http.server", "0", "-b", "127.0.0.1", "-d", str(tree / "tree")) as server:
        count = run_client(name, "-c", FETCH, f"http://127.0.0.1:{port_of(server)}", str(tree / "wanted.json"))
        made += views.counters(name)[name], count
    assert count == 1000


def test_xmlrpc(tmp_path):
    with accelerated() as (name, made), launched(name, "-c", XMLRPC_SERVER) as server:
        count = run_client(name, "-c", XMLRPC_CLIENT, f"http://127.0.0.1:{port_of(server)}/")
        made += views.counters(name)[name], count


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_socketserver(kind):
    with accelerated() as (name, made), launched(name, "-c", ECHO_SERVER, kind) as server:
        count = run_client(name, "-c", ECHO_CLIENT, port_of(server))
        made += views.counters(name)[name], count
