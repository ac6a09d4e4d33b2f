"""Which receives rest: those of a stream that emptied the ring, and no others."""
from __future__ import annotations

import selectors as stdlib_selectors

import pytest
from conformance.streams import receive_exactly

import shmstack.socket as socket
from shmstack import _native, selectors
from shmstack.tcp import pace
from shmstack.tcp.handle import HANDLE


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        yield client, server


def rests(sock):
    """Return whether the next receive of `sock` would rest, had none of the rest's time passed."""
    return _native.call.load(sock._endpoint.handle + HANDLE.at.emptied) != 0


def stream(client, server, count, take):
    for _ in range(count):
        client.sendall(b"12345678")
        assert take(server) == b"12345678"


def by_recv(server):
    return server.recv(100)


def by_recv_into(server):
    room = bytearray(100)
    return bytes(room[:server.recv_into(room)])


@pytest.mark.parametrize("take", [by_recv, by_recv_into])
def test_stream_rests(ends, take):
    client, server = ends
    stream(client, server, pace.STREAM, take)
    assert rests(server)
    stream(client, server, 100, take)


def test_conversation_does_not(ends):
    client, server = ends
    for _ in range(2 * pace.STREAM):
        stream(client, server, 1, by_recv)
        assert not rests(server)
        server.sendall(b"yes")
        assert client.recv(10) == b"yes"
        assert not rests(client)


def test_answer_ends_the_stream(ends):
    client, server = ends
    stream(client, server, pace.STREAM, by_recv)
    server.send(b"thanks")
    assert not rests(server)


def test_what_left_bytes_behind_does_not(ends):
    client, server = ends
    stream(client, server, pace.STREAM, by_recv)
    client.sendall(b"head" + b"body" * 20)
    assert server.recv(4) == b"head"
    assert not rests(server)
    assert receive_exactly(server, 80) == b"body" * 20


def test_large_receive_does_not(ends):
    client, server = ends
    stream(client, server, pace.STREAM, by_recv)
    client.sendall(bytes(pace.LARGE))
    assert len(server.recv(2 * pace.LARGE)) == pace.LARGE
    assert not rests(server)


def test_nonblocking_and_polled_sockets_do_not(ends):
    client, server = ends
    server.setblocking(False)
    stream(client, server, 2 * pace.STREAM, by_recv)
    assert not rests(server)
    server.setblocking(True)
    with selectors.DefaultSelector() as selector:
        selector.register(server, stdlib_selectors.EVENT_READ)
        for _ in range(2 * pace.STREAM):
            client.sendall(b"12345678")
            assert selector.select(20)
            assert server.recv(100) == b"12345678"
            assert not rests(server)


def test_chosen_spin_does_not_rest(ends):
    client, server = ends
    _native.call.store(server._endpoint.handle + HANDLE.at.adapts, 0)
    stream(client, server, 2 * pace.STREAM, by_recv)
    assert not rests(server)
