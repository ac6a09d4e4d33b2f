"""Messages in place: the stream is that of send and recv, over every kind of socket, and no view outlives its memory."""
from __future__ import annotations

import errno
import gc
import os
import random
import signal
import socket as stdlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmstack
import shmstack.socket as socket
from shmstack import nocopy
from shmstack.errors import StaleView

LARGE = 3_000_001


def connected(module):
    with module.create_server(("127.0.0.1", 0)) as listener:
        client = module.create_connection(listener.getsockname(), 20)
        server, _ = listener.accept()
    server.settimeout(20)
    return client, server


def joined():
    client, server = connected(socket)
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(b"?")
        assert receiver.recv(1) == b"?"
    assert shmstack.fd_stat(client)[-2:] == ("ring", "ring")
    return client, server


@pytest.fixture(params=["ours", "stdlib", "fresh"])
def pair(request):
    """A joined pair, one of the standard library, and one whose server has only just accepted."""
    make = {"ours": joined, "stdlib": lambda: connected(stdlib), "fresh": lambda: connected(socket)}[request.param]
    client, server = make()
    with client, server:
        yield client, server


@pytest.fixture
def ends():
    client, server = joined()
    with client, server:
        yield client, server


def put(sock, data):
    """Send all of `data` in place."""
    data, done = memoryview(data), 0
    while done < len(data):
        room = nocopy.reserve(sock, len(data) - done)
        size = len(room)
        room[:] = data[done:done + size]
        sent = 0
        while sent < size:
            sent += nocopy.commit(sock)
        done += size


def get(sock, size):
    """Receive `size` bytes in place."""
    got = bytearray()
    while len(got) < size:
        data = nocopy.peek(sock, size - len(got))
        assert data, "the stream ended"
        got += data
        nocopy.consume(sock)
    return bytes(got)


def in_background(call, *args):
    thread = threading.Thread(target=call, args=args)
    thread.start()
    return thread


# ---- the stream

@pytest.mark.parametrize(("write", "read"), [(put, get), (put, None), (None, get)], ids=["both", "sender", "receiver"])
def test_large_stream(pair, write, read):
    client, server = pair
    data = random.Random(1).randbytes(LARGE)
    thread = in_background(write, client, data) if write else in_background(client.sendall, data)
    if read:
        assert read(server, LARGE) == data
    else:
        got = bytearray()
        while len(got) < LARGE:
            got += server.recv(1 << 16)
        assert got == data
    thread.join()


def test_message_is_where_it_was_written(ends):
    client, server = ends
    room = nocopy.reserve(client, 5)
    room[:] = b"hello"
    assert nocopy.commit(client) == 5
    data = nocopy.peek(server, 100)
    assert data == b"hello"
    assert data.readonly
    nocopy.consume(server)
    for ended in (room, data):
        with pytest.raises(ValueError, match="released"):
            ended[:1]


def test_part_is_committed_and_part_consumed(pair):
    client, server = pair
    room = nocopy.reserve(client, 10)
    room[:len(room)] = b"0123456789"[:len(room)]
    assert nocopy.commit(client, 4) == 4
    client.sendall(b"rest")
    assert bytes(nocopy.peek(server, 4)) == b"0123"
    nocopy.consume(server, 2)
    assert get(server, 6) == b"23rest"


def test_look_again_without_consume(pair):
    client, server = pair
    client.sendall(b"abc")
    assert bytes(nocopy.peek(server, 3)) == bytes(nocopy.peek(server, 3)) == b"abc"
    assert server.recv(3) == b"abc"


def test_end_of_the_stream(pair):
    client, server = pair
    put(client, b"last")
    client.shutdown(socket.SHUT_WR)
    assert get(server, 4) == b"last"
    assert nocopy.peek(server, 1) == b""
    nocopy.consume(server)


def test_nothing_there_on_a_nonblocking_socket(pair):
    _, server = pair
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        nocopy.peek(server, 1)


def test_timeout(pair):
    _, server = pair
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        nocopy.peek(server, 1)


def test_peer_is_gone(pair):
    client, server = pair
    server.close()
    with pytest.raises(OSError) as error:
        for _ in range(1000):
            put(client, b"x" * 1000)
    assert error.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_full_ring_takes_the_other_way(ends):
    client, server = ends
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        for _ in range(10_000):
            room = nocopy.reserve(client, 1 << 16)
            room[:] = bytes(place % 251 for place in range(sent, sent + len(room)))
            sent += nocopy.commit(client)
    assert get(server, sent) == bytes(place % 251 for place in range(sent))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 200_000)), max_size=12))
def test_mixed_with_send_and_recv(steps):
    client, server = joined()
    chance = random.Random(len(steps))
    with client, server:
        for inplace_send, inplace_recv, size in steps:
            data = chance.randbytes(size)
            thread = in_background(put, client, data) if inplace_send else in_background(client.sendall, data)
            assert (get if inplace_recv else exactly)(server, size) == data
            thread.join()


def exactly(sock, size):
    got = bytearray()
    while len(got) < size:
        got += sock.recv(size - len(got))
    return bytes(got)


# ---- others on the same connection

def test_send_between_reserve_and_commit(ends):
    client, server = ends
    room = nocopy.reserve(client, 5)
    room[:] = b"mine."
    client.sendall(b"yours")
    with pytest.raises(StaleView):
        nocopy.commit(client)
    put(client, b"again")
    assert exactly(server, 10) == b"yoursagain"


def test_recv_between_peek_and_consume(ends):
    client, server = ends
    client.sendall(b"0123456789")
    assert bytes(nocopy.peek(server, 5)) == b"01234"
    assert server.recv(2) == b"01"
    with pytest.raises(StaleView):
        nocopy.consume(server)
    assert exactly(server, 8) == b"23456789"


def test_descriptor_given_away_between(ends):
    client, server = ends
    room = nocopy.reserve(client, 5)
    room[:] = b"hello"
    assert server.fileno() >= 0                                # from here on its input goes by the kernel
    nocopy.commit(client)
    client.sendall(b" there")
    assert get(server, 11) == b"hello there"


def test_moved_between_reserve_and_commit(ends):
    client, server = ends
    room = nocopy.reserve(client, 5)
    size = len(room)
    room[:] = b"hello"[:size]
    shmstack.stackname_save()
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, f"nocopy{os.getpid()}")
    try:
        shmstack.move_fd(client)
    finally:
        shmstack.stackname_restore()
    assert nocopy.commit(client) == size
    client.sendall(b"!")
    assert exactly(server, size + 1) == b"hello"[:size] + b"!"


def test_killed_between_reserve_and_commit():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            with socket.create_connection(listener.getsockname(), 20) as client:
                client.sendall(b"?")
                client.recv(1)
                put(client, b"sent")
                nocopy.reserve(client, 100)[:] = b"x" * 100
                os.kill(os.getpid(), signal.SIGKILL)
        server, _ = listener.accept()
        with server:
            server.settimeout(20)
            assert server.recv(1) == b"?"
            server.sendall(b"!")
            assert get(server, 4) == b"sent"
            assert nocopy.peek(server, 1) == b""
        os.waitpid(pid, 0)


# ---- lifetimes

def test_slice_keeps_its_memory():
    client, server = joined()
    client.sendall(b"kept")
    kept = nocopy.peek(server, 4)[1:3]
    nocopy.consume(server)
    client.close()
    server.close()
    gc.collect()
    assert len(bytes(kept)) == 2                                # whatever it shows, it is there


def test_views_end_with_the_socket(ends):
    client, server = ends
    client.sendall(b"abcd")
    room, data = nocopy.reserve(client, 4), nocopy.peek(server, 4)
    server.close()
    client.close()
    assert len(bytes(data)) in (0, 4)
    room[:] = b"zzzz"
    with pytest.raises(OSError, match="Bad file descriptor"):
        nocopy.commit(client)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_checked(ends, size):
    client, server = ends
    with pytest.raises(ValueError, match="wanted the number of bytes"):
        nocopy.reserve(client, size)
    with pytest.raises(ValueError, match="wanted the number of bytes"):
        nocopy.peek(server, size)
    nocopy.reserve(client, 3)
    with pytest.raises(ValueError, match="found 4"):
        nocopy.commit(client, 4)
    with pytest.raises(ValueError, match="found 1"):
        nocopy.consume(server, 1)
