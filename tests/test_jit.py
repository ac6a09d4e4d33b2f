"""Sockets in compiled loops: the same stream as in Python, whatever happens to it."""
from __future__ import annotations

import errno
import os
import random
import signal
import socket as stdlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy
import pytest
from conformance.faces import Net
from conformance.streams import receive_exactly
from conformance.waiting import Background

import shmstack
import shmstack.socket as socket
from shmstack import jit
from shmstack.errors import NotAccelerated

ROOT = Path(__file__).resolve().parent.parent
ENDED = (0, -errno.ECONNRESET)
BROKEN = (-errno.EPIPE, -errno.ECONNRESET)


@numba.njit(nogil=True)
def write(h, data, piece):
    """Send all, `piece` bytes a call; return the bytes sent, or the first answer that isn't a count."""
    sent = 0
    while sent < data.size:
        n = jit.send(h, data[sent:sent + piece])
        if n <= 0:
            return n
        sent += n
    return sent


@numba.njit(nogil=True)
def read(h, room, piece):
    """Receive until `room` is full; return the bytes received, or the first answer that isn't a count."""
    got = 0
    while got < room.size:
        n = jit.recv(h, room[got:got + piece])
        if n <= 0:
            return n
        got += n
    return got


@numba.njit
def read_holding(h, room):
    return jit.recv(h, room)


@numba.njit(nogil=True)
def echo(h, room):
    while True:
        n = jit.recv(h, room)
        if n <= 0:
            return n
        if jit.send(h, room[:n]) != n:
            return -1


def draw(size, seed=1):
    return numpy.frombuffer(random.Random(seed).randbytes(size), numpy.uint8)


def room(size):
    return numpy.zeros(size, numpy.uint8)


@pytest.fixture
def net():
    made = Net("shmstack")
    yield made
    made.close()


@pytest.fixture
def pair(net):
    """(client, server), both directions in the ring, and their numbers."""
    client, server = net.pair()
    return client, server, jit.handle(client), jit.handle(server)


def exchange(sending, receiving, data, pieces=(1000, 3000)):
    got = room(data.size)
    writing = Background(write, sending, data, pieces[0])
    assert read(receiving, got, pieces[1]) == data.size
    assert writing.result() == data.size
    assert numpy.array_equal(got, data)


# ---- bytes ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pieces", [(1, 1), (64, 64), (7, 1000), (70_001, 100), (3_000_000, 3_000_000)])
def test_bytes_arrive(net, pair, pieces):
    *socks, one, two = pair
    size = min(3_000_000, 30_000 * max(pieces))
    exchange(one, two, draw(size), pieces)
    exchange(two, one, draw(size, 2), pieces)
    net.assert_ring(*socks)


def test_both_ways_at_once(pair):
    _, _, one, two = pair
    answering = Background(echo, two, room(5000))
    exchange(one, one, draw(2_000_000), (3001, 10_000))
    pair[0].close()
    assert answering.result() == 0


def test_other_end_need_not_be_compiled(pair):
    client, server, one, two = pair
    data, got = draw(1_000_000), room(1_000_000)
    sending = Background(client.sendall, data)
    assert read(two, got, 5000) == data.size
    sending.result()
    sending = Background(write, one, data, 5000)
    assert server.recv(data.size, socket.MSG_WAITALL) == got.tobytes() == data.tobytes()
    sending.result()


def test_bytes_before_accept_and_lanes_after_it(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
        one = jit.handle(client)
        assert write(one, draw(5000), 100) == 5000
        assert net.lane(client)[0] == "kernel"
        server = net.accept(listener)
    two, got = jit.handle(server), room(5000)
    assert read(two, got, 77) == 5000
    assert numpy.array_equal(got, draw(5000))
    for seed in range(5):
        exchange(one, two, draw(100_000, seed))
        exchange(two, one, draw(100_000, seed))
    net.assert_ring(client, server)


def test_exposed_descriptor_sends_bytes_by_the_kernel_and_none_is_lost(pair):
    client, server, one, two = pair
    for seed in range(20):
        server.fileno()
        data, got = draw(20_000, seed), room(20_000)
        half = write(one, data[:10_000], 999)
        client.fileno()
        assert half + write(one, data[10_000:], 999) == data.size
        assert read(two, got, 1234) == data.size
        assert numpy.array_equal(got, data)
        exchange(two, one, data)


def test_connection_goes_on_when_it_is_left_to_the_kernel(pair):
    client, server, one, two = pair
    assert write(one, draw(5000), 100) == 5000
    client.set_inheritable(True)
    server.set_inheritable(True)
    got = room(5000)
    assert read(two, got, 100) == 5000
    assert numpy.array_equal(got, draw(5000))
    exchange(two, one, draw(500_000))
    with pytest.raises(NotAccelerated):
        jit.handle(client)


def test_number_survives_a_move_to_another_stack(pair):
    client, server, one, two = pair
    answering = Background(echo, two, room(5000))
    for turn in range(4):
        shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, f"j{os.getpid()}{turn % 2}")
        try:
            shmstack.move_fd((client, server)[turn // 2])
        finally:
            shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_NOCHANGE, "")
        exchange(one, one, draw(200_000, turn), (500, 700))
    client.close()
    assert answering.result() == 0


def test_forked_child_uses_the_same_number(pair):
    _client, _, one, two = pair
    pid = os.fork()
    if pid == 0:
        os._exit(0 if write(one, draw(300_000), 1000) == 300_000 else 1)
    got = room(300_000)
    assert read(two, got, 1000) == got.size
    assert os.waitpid(pid, 0)[1] == 0
    assert numpy.array_equal(got, draw(300_000))
    exchange(one, two, draw(1000))


# ---- full, late, ended ---------------------------------------------------------------------------------------

def test_full_connection_that_does_not_block_says_so_and_loses_nothing(pair):
    client, _, one, two = pair
    client.settimeout(0)
    data, sent = draw(16 << 20), 0
    while (n := jit.send(one, data[sent:sent + 50_000])) > 0:
        sent += n
    assert n == -errno.EAGAIN
    assert sent > 1 << 18
    got = room(sent)
    assert read(two, got, 100_000) == sent
    assert numpy.array_equal(got, data[:sent])


def test_empty_connection_that_does_not_block_says_so_until_bytes_come(pair):
    client, server, _one, two = pair
    server.settimeout(0)
    got = room(10)
    assert [read(two, got, 10) for _ in range(1000)] == [-errno.EAGAIN] * 1000
    client.send(b"0123456789")
    while (n := jit.recv(two, got)) == -errno.EAGAIN:
        pass
    assert got[:n].tobytes() == b"0123456789"[:n]
    client.close()
    while (n := read(two, got, 10)) == -errno.EAGAIN:
        pass
    assert n == 0


def test_timeouts(pair):
    client, server, one, two = pair
    server.settimeout(0.05)
    client.settimeout(0.05)
    assert read(two, room(10), 10) == -errno.ETIMEDOUT
    assert jit.send(one, draw(10)) == 10
    assert read(two, room(10), 10) == 10
    data, sent = draw(16 << 20), 0
    while (n := jit.send(one, data[sent:sent + 300_000])) > 0:
        sent += n
    assert n == -errno.ETIMEDOUT
    got = room(sent)
    assert read(two, got, 100_000) == sent
    assert numpy.array_equal(got, data[:sent])


@pytest.mark.parametrize("end", ["shutdown", "close"])
def test_end_of_stream_comes_after_the_last_byte(pair, end):
    client, _, one, two = pair
    assert write(one, draw(100_000), 1000) == 100_000
    client.shutdown(socket.SHUT_WR) if end == "shutdown" else client.close()
    got = room(100_000)
    assert read(two, got, 999) == got.size
    assert numpy.array_equal(got, draw(100_000))
    assert read(two, room(1), 1) == 0
    assert jit.send(one, draw(1)) == (-errno.EPIPE if end == "shutdown" else -errno.EBADF)


def test_waiting_receiver_sees_the_end(pair):
    client, _, _, two = pair
    reading = Background(read, two, room(10), 10)
    time.sleep(0.05)
    client.close()
    assert reading.result() == 0


def test_reset(pair):
    client, server, one, _two = pair
    client.send(b"never read")
    server.close()
    answers = [jit.send(one, draw(1000)) for _ in range(3)]
    assert answers[-1] in BROKEN
    assert read(one, room(1), 1) in ENDED


@pytest.mark.parametrize("what", ["reading", "writing", "full"])
def test_killed_peer(net, what):
    with net.listener() as listener:
        pid = os.fork()
        if pid == 0:
            sock = socket.create_connection(listener.getsockname())
            sock.sendall(b"x")
            sock.recv(1)
            sock.sendall(b"y")
            signal.pause()
        server = net.accept(listener)
    two, got = jit.handle(server), room(1)
    assert read(two, got, 1) == 1
    assert write(two, got, 1) == 1
    assert read(two, got, 1) == 1
    act = {"reading": (read, two, room(10), 10), "writing": (write, two, room(1 << 30), 100),
           "full": (write, two, room(1 << 26), 1 << 26)}[what]
    running = Background(*act)
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if what == "full":
        assert running.result() in range(1, 1 << 26) or running.result() in BROKEN
        assert write(two, room(100), 100) in BROKEN
    else:
        assert running.result() in (ENDED if what == "reading" else BROKEN)


# ---- numbers -------------------------------------------------------------------------------------------------

def test_number_is_that_of_one_socket_until_it_is_closed(net, pair):
    client, _server, one, two = pair
    assert jit.handle(client) == one != two
    client.close()
    assert jit.recv(one, room(1)) == jit.send(one, room(1)) == -errno.EBADF
    del client, pair
    other, _ = net.pair()
    assert jit.handle(other) != one
    assert jit.recv(one, room(1)) == jit.send(one, room(1)) == -errno.EBADF


@pytest.mark.parametrize("number", [0, 1, 12345678901, -1, -(1 << 63), (1 << 63) - 1])
def test_number_of_nothing(number):
    assert read(number, room(1), 1) == write(number, room(1), 1) == -errno.EBADF


def test_socket_that_is_not_accelerated_is_refused(net):
    one, two = stdlib.socketpair()
    for sock in (one, two, net.new()):
        with pytest.raises(NotAccelerated, match="accelerated socket"):
            jit.handle(sock)
    one.close()
    two.close()


def test_tickets_are_used_again():
    net, before = Net("shmstack"), len(jit._free)
    for _ in range(3):
        jit.handle(net.pair()[0])
    net.close()
    del net
    assert len(jit._free) >= before


def test_arrays_that_are_not_contiguous_are_refused(pair):
    number, array = pair[2], room(10)
    readonly = array.view()
    readonly.flags.writeable = False
    with pytest.raises(numba.TypingError, match="contiguous"):
        numba.njit(lambda h, a: jit.send(h, a[::2]))(number, array)
    with pytest.raises(numba.TypingError, match="writable"):
        numba.njit(lambda h, a: jit.recv(h, a))(number, readonly)
    with pytest.raises(TypeError, match="contiguous"):
        jit.send(number, array[::2])
    with pytest.raises(TypeError, match="writable"):
        jit.recv(number, readonly)


# ---- the interpreter -----------------------------------------------------------------------------------------

def test_waiting_loop_that_holds_the_gil_lets_others_run(pair):
    client, _, _, two = pair
    read_holding(-1, room(1))                                     # compile
    for _ in range(5):
        sender = threading.Timer(0.02, client.send, (b"now",))
        sender.start()
        got = room(3)
        assert read_holding(two, got) == 3
        assert got.tobytes() == b"now"
        sender.join()


class Rung(Exception):
    """Raised by a signal's handler."""


@pytest.fixture
def alarm():
    """Return a function (seconds, handler) that sets an alarm."""
    before = signal.getsignal(signal.SIGALRM)

    def ring(seconds, handler):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield ring
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_signal_is_handled_during_a_wait(pair, alarm):
    client, _, _, two = pair
    read(-1, room(1), 1)
    alarm(0.05, lambda *_: client.send(b"z"))
    assert read(two, room(1), 1) == 1


@pytest.mark.parametrize("loop", [lambda h: read(h, room(1), 1), lambda h: read_holding(h, room(1))],
                         ids=["nogil", "gil"])
def test_exception_of_a_handler_ends_the_wait_and_is_raised_afterwards(pair, alarm, loop):
    client, _, _, two = pair
    loop(-1)
    said = Rung("the very one")
    answers = []

    def handler(*_):
        raise said

    alarm(0.05, handler)
    with pytest.raises(Rung) as caught:
        answers.append(loop(two))
        for _ in range(100):
            time.sleep(0)
    assert caught.value is said
    assert answers in ([], [-errno.EINTR])
    client.send(b"z")
    assert loop(two) == 1


def test_send_that_is_cut_short_says_what_went(pair, alarm):
    _, server, one, _ = pair
    data, answer = draw(64 << 20), room(1).astype(numpy.int64)

    @numba.njit(nogil=True)
    def send(h, data, answer):
        answer[0] = jit.send(h, data)

    def handler(*_):
        raise Rung

    send(-1, data, answer)
    alarm(0.1, handler)
    with pytest.raises(Rung):
        send(one, data, answer)
        for _ in range(100):
            time.sleep(0)
    sent = int(answer[0])
    assert 0 < sent < data.size
    server.settimeout(5)
    assert receive_exactly(server, sent) == data[:sent].tobytes()
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.recv(1)


PROGRAM = """
import sys
import numba, numpy
import shmstack.socket as socket
from shmstack import jit

@numba.njit(cache=True)
def one_way(h, g, data):
    return jit.send(h, data) + jit.recv(g, data)

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
print(one_way(jit.handle(client), jit.handle(server), numpy.zeros(64, numpy.uint8)),
      sum(one_way.stats.cache_hits.values()))
"""


def run(program, tmp_path, **settings):
    path = tmp_path / "program.py"
    path.write_text(program)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "cache"), **settings}
    return subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=120, check=False)


def test_loop_is_cached_on_disk(tmp_path):
    for hits in (0, 1):
        done = run(PROGRAM, tmp_path)
        assert (done.stdout, done.stderr) == (f"128 {hits}\n", "")


def test_loop_that_is_not_compiled_works_too(tmp_path):
    done = run(PROGRAM.replace(",\n      sum(one_way.stats.cache_hits.values())", ""), tmp_path, NUMBA_DISABLE_JIT="1")
    assert (done.stdout, done.stderr) == ("128\n", "")


def test_numba_that_is_missing_is_asked_for(tmp_path):
    done = run("import sys; sys.modules['numba'] = None\nimport shmstack.socket, shmstack.jit", tmp_path)
    assert done.stderr.splitlines()[-1].startswith("ImportError: shmstack.jit: wanted numba")
    assert done.stderr.endswith("pip install numba\n")
