"""Forks and exec'd children: who accepts, who serves, who holds a connection, and where new sockets live."""
from __future__ import annotations

import os
import socket as standard
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

import shmstack.socket as socket
from shmstack import selectors
from shmstack.stack import names

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60
CAT = "import os\nwhile data := os.read(0, 100): os.write(1, data.upper())\n"


def python(code, *args, **options):
    """Start a Python program that can import what we test."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, **options)


class Child:
    """A forked process that runs `function(*args)`; `join` checks that it returned."""

    def __init__(self, function, *args):
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                function(*args)
                status = 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)

    def join(self):
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=64) as made:
        yield made


def lanes(sock):
    return sock._endpoint.lanes() if sock._endpoint else None


def exactly(sock, size):
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def serve(sock):
    """Say who we are and whether the connection is accelerated; end with the client."""
    with sock:
        exactly(sock, 5)
        sock.sendall(f"{os.getpid()} {bool(sock._endpoint):d}".ljust(20).encode())
        sock.recv(1)


def ask(address):
    """Return (who served, whether accelerated there, and here)."""
    with socket.create_connection(address) as sock:
        sock.sendall(b"hello")
        pid, there = exactly(sock, 20).split()
        return int(pid), there == b"1", sock._endpoint is not None and sock._endpoint.joined


def worker(listener):
    while True:
        serve(listener.accept()[0])


def served_by(address, workers, times=40):
    """Ask until each of `workers` has answered; all that is answered is accelerated."""
    seen = set()
    for _ in range(times):
        pid, there, here = ask(address)
        assert there and here
        seen.add(pid)
    assert seen <= workers
    return seen


def stop(children):
    for child in children:
        os.kill(child.pid, 9)
        os.waitpid(child.pid, 0)


@pytest.mark.parametrize("choice", [0, 1, 2, 3])
def test_pre_forked_workers_accelerate_what_they_accept(listener, monkeypatch, choice):
    monkeypatch.setenv("EF_FORK_NETIF", str(choice))
    names.forget_environment()
    try:
        children = [Child(worker, listener) for _ in range(3)]
        try:
            assert served_by(listener.getsockname(), {child.pid for child in children})
        finally:
            stop(children)
    finally:
        monkeypatch.undo()
        names.forget_environment()


def test_workers_are_found_again_after_the_parent_closed_the_listener():
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    child = Child(worker, listener)
    try:
        assert ask(address) == (child.pid, True, True)
        listener.close()
        ask(address)                                           # it was waiting before its parent's record went
        assert ask(address) == (child.pid, True, True)
    finally:
        stop([child])


PARENT_EXITS = """
import os, sys
import shmstack.socket as socket
from shmstack import selectors
listener = socket.create_server(("127.0.0.1", 0))
pid = os.fork()
if pid:
    print(listener.getsockname()[1], pid, flush=True)
    sys.exit()
for _ in range(6):
    sock, _ = listener.accept()
    with sock:
        sock.recv(5)
        sock.sendall(f"{os.getpid()} {bool(sock._endpoint):d}".ljust(20).encode())
        sock.recv(1)
"""


def test_worker_goes_on_after_the_parent_that_listened_ended():
    with python(PARENT_EXITS, stdout=subprocess.PIPE) as parent:
        port, pid = map(int, parent.stdout.readline().split())
        assert parent.wait(PATIENCE_S) == 0
    assert ask(("127.0.0.1", port))[0] == pid                  # its parent's record is gone, its own may not be there yet
    for _ in range(5):
        assert ask(("127.0.0.1", port)) == (pid, True, True)


def test_daemon_that_forks_twice_accepts():
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def become_a_daemon():
        os.setsid()
        if os.fork() == 0:
            for _ in range(4):
                serve(listener.accept()[0])
            os._exit(0)

    Child(become_a_daemon).join()
    listener.close()
    ask(address)
    assert [ask(address)[1:] for _ in range(3)] == [(True, True)] * 3


def test_parent_accepts_and_a_child_serves_each_connection(listener):
    def call():
        for _ in range(5):
            assert ask(listener.getsockname())[1:] == (True, True)

    caller = Child(call)
    for _ in range(5):
        sock, _ = listener.accept()
        child = Child(serve, sock)
        sock.close()
        child.join()
    caller.join()


def pair(listener):
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0]


def test_connection_is_used_by_both_processes_and_ends_with_the_last(listener):
    client, server = pair(listener)
    ready, go = os.pipe()

    def hold():
        os.close(go)
        client.close()
        assert exactly(server, 5) == b"first"
        server.sendall(b"from the child")
        os.read(ready, 1)
        server.sendall(b", last")

    child = Child(hold)
    client.sendall(b"first")
    assert exactly(client, 14) == b"from the child"
    server.sendall(b", from the parent")
    server.close()
    assert exactly(client, 17) == b", from the parent"
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(PATIENCE_S)
    os.close(ready)
    os.close(go)
    assert exactly(client, 6) == b", last"
    assert client.recv(1) == b""
    child.join()
    client.close()


def test_fork_in_a_process_whose_threads_stream(listener):
    client, server = pair(listener)
    stream = bytes(range(256)) * 4096

    def pour():
        for _ in range(8):
            server.sendall(stream)

    thread = threading.Thread(target=pour)
    thread.start()
    children = []
    for _ in range(8):
        assert exactly(client, len(stream)) == stream
        children.append(Child(ask, listener.getsockname()))
        serve(listener.accept()[0])
    thread.join()
    for child in children:
        child.join()
    client.close()
    server.close()


@pytest.mark.parametrize("choice", [0, 1, 2, 3])
def test_new_sockets_after_a_fork_live_where_the_option_says(monkeypatch, choice):
    monkeypatch.setenv("EF_FORK_NETIF", str(choice))
    names.forget_environment()
    try:
        with socket.socket() as sock:
            before = names.current(sock).name
            there, out = os.pipe()

            def tell():
                os.write(out, names.current(sock).name.encode())

            Child(tell).join()
            after, child = names.current(sock).name, os.read(there, 100).decode()
            os.close(there)
            os.close(out)
    finally:
        monkeypatch.undo()
        names.forget_environment()
    assert (child != before, after != before) == (choice in (1, 3), choice in (2, 3))
    assert child != after or choice == 0


# ---- descriptors that go to other programs -------------------------------------------------------------------

def test_subprocess_talks_through_a_socket_as_its_standard_streams(listener):
    client, server = pair(listener)
    client.sendall(b"before, ")
    assert exactly(server, 3) == b"bef"
    with subprocess.Popen([sys.executable, "-c", CAT], stdin=server, stdout=server) as child:
        server.close()
        client.sendall(b"after")
        client.shutdown(socket.SHUT_WR)
        assert exactly(client, 10) == b"ORE, AFTER"
        assert client.recv(1) == b""
        assert child.wait(PATIENCE_S) == 0
    client.close()


def test_subprocess_gets_a_socket_by_pass_fds_and_the_parent_goes_on_with_it(listener):
    client, server = pair(listener)
    code = "import os, sys; fd = int(sys.argv[1]); os.write(fd, os.read(fd, 5).upper())"
    client.sendall(b"hello")
    assert python(code, server.fileno(), pass_fds=[server.fileno()]).wait(PATIENCE_S) == 0
    assert exactly(client, 5) == b"HELLO"
    server.sendall(b", parent")
    client.sendall(b"again")
    assert exactly(client, 8) == b", parent"
    assert exactly(server, 5) == b"again"
    client.close()
    server.close()


def test_dup2_of_the_descriptor_serves_an_execd_program(listener):
    client, server = pair(listener)

    def become_cat():
        client.close()
        os.dup2(server.fileno(), 0)
        os.dup2(server.fileno(), 1)
        os.execv(sys.executable, [sys.executable, "-c", CAT])

    client.sendall(b"one, ")
    child = Child(become_cat)
    server.close()
    client.sendall(b"two")
    client.shutdown(socket.SHUT_WR)
    assert exactly(client, 8) == b"ONE, TWO"
    child.join()
    client.close()


LISTEN_ON = """
import os, sys
MODULE
listener = socket.socket(fileno=int(sys.argv[1]))
for _ in range(3):
    sock, _ = listener.accept()
    with sock:
        sock.recv(5)
        sock.sendall(f"{os.getpid()} {bool(getattr(sock, '_endpoint', None)):d}".ljust(20).encode())
        sock.recv(1)
"""


@pytest.mark.parametrize(("module", "accelerated"), [("shmstack.socket as socket", True), ("socket", False)])
def test_execd_program_accepts_on_an_inherited_listener(module, accelerated):
    code = LISTEN_ON.replace("MODULE", f"import {module}")
    with standard.create_server(("127.0.0.1", 0)) as listener:
        address, fd = listener.getsockname(), listener.fileno()
        child = python(code, fd, pass_fds=[fd])
    answers = [ask(address) for _ in range(3)]
    assert child.wait(PATIENCE_S) == 0
    assert {pid for pid, *_ in answers} == {child.pid}
    assert [there for _, there, _ in answers[1:]] == [accelerated] * 2


TAKE = """
import os, sys
MODULE
with socket.socket(fileno=int(sys.argv[1])) as channel:
    _, [fd], _, _ = socket.recv_fds(channel, 10, 1)
with socket.socket(fileno=fd) as sock:
    while data := sock.recv(100):
        sock.sendall(data.upper())
"""


@pytest.mark.parametrize("module", ["shmstack.socket as socket", "socket"])
def test_socket_passed_by_scm_rights_is_served_there(listener, module):
    client, server = pair(listener)
    client.sendall(b"before, ")
    here, there = socket.socketpair()
    child = python(TAKE.replace("MODULE", f"import {module}"), there.fileno(), pass_fds=[there.fileno()])
    there.close()
    socket.send_fds(here, [b"x"], [server.fileno()])
    server.close()
    here.close()
    client.sendall(b"after")
    client.shutdown(socket.SHUT_WR)
    assert exactly(client, 13) == b"BEFORE, AFTER"
    assert client.recv(1) == b""
    assert child.wait(PATIENCE_S) == 0
    client.close()


def test_child_that_ended_holds_nothing(listener):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    with client, server:
        reading, gate = os.pipe()
        child = Child(lambda: (os.close(gate), os.read(reading, 1)))
        os.close(reading)
        assert client._endpoint.held_by_others() and server._endpoint.held_by_others()
        os.close(gate)
        child.join()
        assert not client._endpoint.held_by_others() and not server._endpoint.held_by_others()
        with selectors.DefaultSelector() as watching:
            watching.register(server, selectors.EVENT_READ)
            for _ in range(3):
                assert not watching.select(0)
                client.send(b"x" * 100)
                assert watching.select(PATIENCE_S)
                assert lanes(server)[1] == "ring"
                assert server.recv(200) == b"x" * 100
        client.close()
        assert server.recv(1) == b""


def test_child_that_ends_last_ends_the_connection(listener):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    with client:
        reading, gate = os.pipe()
        child = Child(lambda: (os.close(gate), os.read(reading, 1), server.send(b"last")))
        server.close()
        os.close(reading)
        os.close(gate)
        assert exactly(client, 4) == b"last"
        assert client.recv(1) == b""
        child.join()
