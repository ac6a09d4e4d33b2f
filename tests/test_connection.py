"""shmstack.connection against the standard library's, and multiprocessing under the launcher."""
from __future__ import annotations

import array
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shmstack import connection

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60
KEY = b"secret of both"
SIZES = [0, 1, 3, 16_384, 16_385, 1 << 18, (1 << 18) + 1, 3_000_000]


@pytest.fixture(params=["stdlib", "shmstack"])
def face(request):
    return connection if request.param == "shmstack" else multiprocessing.connection


@pytest.fixture
def pipe(face):
    one, two = face.Pipe()
    yield one, two
    one.close()
    two.close()


class Child:
    """A forked process that runs `function(*args)`; `join` checks that it returned."""

    def __init__(self, function, *args):
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                function(*args)
                status = 0
            finally:
                os._exit(status)

    def join(self):
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0


def lanes(made):
    return made._endpoint.lanes() if getattr(made, "_endpoint", None) else None


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size_arrive(pipe, size):
    one, two = pipe
    data = random.Random(size).randbytes(size)
    sender = threading.Thread(target=one.send_bytes, args=(data,))
    sender.start()
    assert two.recv_bytes() == data
    sender.join()


@pytest.mark.parametrize("thing", [None, 1 << 100, "ä" * 40_000, {"a": [1, (2.5, b"x")]}, True, ValueError("x")])
def test_objects_arrive(pipe, thing):
    one, two = pipe
    sender = threading.Thread(target=one.send, args=(thing,))
    sender.start()
    got = two.recv()
    assert (type(got), repr(got)) == (type(thing), repr(thing))
    sender.join()


def test_send_bytes_takes_offset_and_size(pipe):
    one, two = pipe
    one.send_bytes(b"0123456789", 2)
    one.send_bytes(memoryview(b"0123456789"), 3, 4)
    one.send_bytes(array.array("i", [1, 2]))
    assert [two.recv_bytes() for _ in range(3)] == [b"23456789", b"3456", array.array("i", [1, 2]).tobytes()]
    for offset, size in ((-1, None), (11, None), (0, -1), (4, 7)):
        with pytest.raises(ValueError):
            one.send_bytes(b"0123456789", offset, size)


def test_recv_bytes_into_fills_a_buffer_from_an_offset(pipe):
    one, two = pipe
    room = array.array("i", [0] * 4)
    one.send_bytes(array.array("i", [7, 8]))
    assert two.recv_bytes_into(room, 4) == 8
    assert list(room) == [0, 7, 8, 0]
    one.send_bytes(b"too long")
    with pytest.raises(connection.BufferTooShort) as short:
        two.recv_bytes_into(bytearray(3))
    assert short.value.args == (b"too long",)
    for offset in (-1, 4):
        with pytest.raises(ValueError):
            two.recv_bytes_into(bytearray(3), offset)


def test_message_longer_than_allowed_is_an_error_and_ends_reading(pipe):
    one, two = pipe
    one.send_bytes(b"12345")
    with pytest.raises(OSError, match="bad message length"):
        two.recv_bytes(4)
    assert not two.readable
    with pytest.raises(OSError, match="write-only"):
        two.recv_bytes()


def test_poll_says_what_a_receive_would_find(pipe):
    one, two = pipe
    assert not two.poll()
    assert not two.poll(0.01)
    one.send(1)
    assert two.poll()
    assert two.poll(None)
    assert two.recv() == 1
    one.close()
    assert two.poll(PATIENCE_S)
    with pytest.raises(EOFError):
        two.recv()


def test_poll_wakes_for_a_message(pipe):
    one, two = pipe
    there = []
    waiter = threading.Thread(target=lambda: there.append(two.poll(PATIENCE_S)))
    waiter.start()
    one.send(1)
    waiter.join()
    assert there == [True]
    assert two.recv() == 1


def test_one_way_pipe_reads_at_one_end_and_writes_at_the_other(face):
    reader, writer = face.Pipe(duplex=False)
    with reader, writer:
        assert (reader.readable, reader.writable, writer.readable, writer.writable) == (True, False, False, True)
        writer.send("x")
        assert reader.recv() == "x"
        with pytest.raises(OSError, match="read-only"):
            reader.send(1)
        with pytest.raises(OSError, match="write-only"):
            writer.poll()


def test_closed_connection_says_so(face):
    one, two = face.Pipe()
    with two:
        one.close()
        one.close()
        assert one.closed
        for act in (one.fileno, one.recv, one.poll, lambda: one.send(1)):
            with pytest.raises(OSError, match="handle is closed"):
                act()
        with pytest.raises(EOFError):
            two.recv()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(10):
                two.send(1)


def test_end_within_a_message_is_an_error(pipe):
    one, two = pipe
    os.write(one.fileno(), b"\0\0\0\x09half")
    one.close()
    with pytest.raises(OSError, match="during message"):
        two.recv_bytes()


def test_death_of_the_peer_is_the_end(pipe):
    one, two = pipe

    def die():
        two.close()
        one.send("last words")
        os.kill(os.getpid(), signal.SIGKILL)

    pid = Child(die).pid
    one.close()
    assert two.recv() == "last words"
    with pytest.raises(EOFError):
        two.recv()
    os.waitpid(pid, 0)


def test_wait_returns_what_is_ready(face):
    pipes = [face.Pipe() for _ in range(3)]
    plain, other = socket.socketpair()
    try:
        everything = [two for _, two in pipes] + [plain]
        assert face.wait(everything, 0) == []
        assert face.wait([], 0) == []
        pipes[1][0].send("x")
        assert face.wait(everything, PATIENCE_S) == [everything[1]]
        other.send(b"x")
        pipes[2][0].close()
        assert set(face.wait(everything)) == {everything[1], everything[2], plain}
    finally:
        for made in (plain, other, *sum(pipes, ())):
            made.close()


def test_pipe_is_accelerated_and_stays_so_over_a_fork():
    one, two = connection.Pipe()

    def answer():
        one.close()
        while True:
            try:
                two.send(two.recv())
            except EOFError:
                break

    child = Child(answer)
    two.close()
    for number in range(200):
        one.send(number)
        assert one.recv() == number
    assert lanes(one) == ("ring", "ring")
    one.close()
    child.join()


@pytest.mark.parametrize("near", [connection, multiprocessing.connection], ids=["shmstack", "stdlib"])
@pytest.mark.parametrize("far", [connection, multiprocessing.connection], ids=["shmstack", "stdlib"])
def test_either_end_may_be_the_standard_librarys(near, far):
    with near.Listener(("127.0.0.1", 0), authkey=KEY) as listener:
        def call():
            with far.Client(listener.address, authkey=KEY) as made:
                made.send(made.recv_bytes())
                made.send_bytes(made.recv())

        child = Child(call)
        with listener.accept() as made:
            assert listener.last_accepted[0] == "127.0.0.1"
            both = near is far is connection
            made.send_bytes(bytes(100_000))
            assert made.recv() == bytes(100_000)
            assert lanes(made) == (("ring", "ring") if both else None)
            made.send(b"x" * 100_000)
            assert made.recv_bytes() == b"x" * 100_000
            with pytest.raises(EOFError):
                made.recv()
        child.join()


def test_wrong_key_is_refused_at_both_ends(face):
    with face.Listener(("127.0.0.1", 0), authkey=KEY) as listener:
        def call():
            with pytest.raises(multiprocessing.AuthenticationError):
                face.Client(listener.address, authkey=b"another")

        child = Child(call)
        with pytest.raises(multiprocessing.AuthenticationError):
            listener.accept()
        child.join()


def test_key_that_is_no_bytes_is_refused():
    with pytest.raises(TypeError):
        connection.Client(("127.0.0.1", 1), authkey="text")


def test_listener_has_tcp_by_default_and_unix_on_demand(tmp_path):
    with connection.Listener() as listener:
        assert isinstance(listener.address, tuple)
    path = str(tmp_path / "door")
    with connection.Listener(path) as listener, connection.Client(path) as client, listener.accept() as server:
        client.send(1)
        assert server.recv() == 1
    assert not os.path.exists(path)


def test_queue_carries_objects_between_processes():
    queue, back = connection.Queue(), connection.Queue(maxsize=2)

    def work():
        while (thing := queue.get()) is not None:
            back.put(thing * 2)
        back.close()
        back.join_thread()

    child = Child(work)
    for number in range(300):
        queue.put(number)
    assert sorted(back.get(timeout=PATIENCE_S) for _ in range(300)) == list(range(0, 600, 2))
    queue.put(None)
    child.join()
    for some in (queue, back):
        some.close()
        some.join_thread()
        some._reader.close()


# ---- under the launcher --------------------------------------------------------------------------------------

PROGRAM = """
import multiprocessing as mp, os, socket, sys, threading
from multiprocessing.connection import Client, Listener, wait
from multiprocessing.managers import BaseManager

class Manager(BaseManager):
    pass

class Thing:
    def twice(self, x):
        return 2 * x

Manager.register("Thing", Thing)

def lanes(made):
    end = getattr(made, "_endpoint", None)
    return end and end.lanes()

def call(address):
    with Client(address, authkey=b"k") as made:
        seen = [made.send(made.recv()) or lanes(made) for _ in range(100)]
        assert seen.count(("ring", "ring")) > 50, seen        # one that slept for long is woken by the kernel

def answer(made):
    with made:
        made.send(made.recv() * 2)

def answer_socket(sock):
    with sock:
        data = b""
        while len(data) < 5:
            data += sock.recv(5 - len(data))
        sock.sendall(data.upper())

def answer_passed(pipe):
    answer(pipe.recv())
    answer_socket(pipe.recv())

def main(method):
    context = mp.get_context(method)
    def start(function, *args):
        made = context.Process(target=function, args=args)
        made.start()
        return made
    children = []
    with Listener(("127.0.0.1", 0), authkey=b"k") as listener:
        children.append(start(call, listener.address))
        with listener.accept() as made:
            seen = []
            for number in range(100):
                made.send({"n": number})
                assert wait([made], 60) == [made]
                assert made.recv() == {"n": number}
                seen.append(lanes(made))
            assert seen.count(("ring", "ring")) > 50, seen
            assert wait([made], 60) == [made]
            try:
                made.recv()
            except EOFError:
                pass

        def pair():
            got = []
            thread = threading.Thread(target=lambda: got.append(Client(listener.address, authkey=b"k")))
            thread.start()
            server = listener.accept()
            thread.join()
            return got[0], server

        client, server = pair()
        client.send([1, 2])                           # in flight when the other end moves
        children.append(start(answer, server))
        server.close()
        assert client.recv() == [1, 2, 1, 2]
        client.close()

        client, server = pair()
        near, far = context.Pipe()
        children.append(start(answer_passed, far))
        client.send("x")
        near.send(server)
        assert client.recv() == "xx"
        server.close()
        client.close()
        with socket.create_server(("127.0.0.1", 0)) as door:
            caller = socket.create_connection(door.getsockname())
            taken, _ = door.accept()
        caller.sendall(b"hello")
        near.send(taken)
        assert caller.recv(5) == b"HELLO"
        taken.close()
        caller.close()

    manager = Manager(address=("127.0.0.1", 0), ctx=context)
    manager.start()
    thing = manager.Thing()
    seen = []
    for n in range(50):
        assert thing.twice(n) == 2 * n
        seen.append(lanes(thing._tls.connection))
    assert seen.count(("ring", "ring")) > 25, seen
    manager.shutdown()
    for child in children:
        child.join(60)
        assert child.exitcode == 0, child
    a, b = mp.Pipe()
    assert type(a).__module__ == "multiprocessing.connection"
    print("good")

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_unchanged_program_is_accelerated_under_the_launcher(tmp_path, method):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "shmstack", "run", "--", sys.executable, str(path), method]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


def test_install_and_uninstall_change_and_restore_the_standard_module():
    before = multiprocessing.connection.SocketListener, multiprocessing.connection.SocketClient
    connection.install()
    try:
        assert multiprocessing.connection.SocketClient is connection.SocketClient
    finally:
        connection.uninstall()
    assert (multiprocessing.connection.SocketListener, multiprocessing.connection.SocketClient) == before
