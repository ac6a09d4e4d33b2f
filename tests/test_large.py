"""Messages larger than the ring, and those that wake a poller: how they travel, and in what pieces they come."""
from __future__ import annotations

import hashlib
import threading

import pytest

import shmstack.select as select
import shmstack.socket as socket

PATIENCE_S = 20
IN = select.EPOLLIN


@pytest.fixture
def pair():
    """A client that doesn't wait, in an epoll set as event loops have it, and a server that does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.settimeout(PATIENCE_S)
    server.settimeout(PATIENCE_S)
    for _ in range(10):
        client.sendall(b"x")
        server.sendall(server.recv(1))
        client.recv(1)
    with client, server:
        yield client, server


def capacity(sock):
    return sock._endpoint.stack.capacity


def poll_for(sock, event):
    with select.epoll() as epoll:
        epoll.register(sock, event)
        assert epoll.poll(PATIENCE_S)


def send_all(sock, data):
    """Send without waiting, as an event loop does; return how many bytes the first send took."""
    first = sent = 0
    with memoryview(data) as view:
        while sent < len(data):
            try:
                sent += sock.send(view[sent:])
                first = first or sent
            except BlockingIOError:
                poll_for(sock, select.EPOLLOUT)
    return first


def received(sock, size, most=1 << 20):
    """Receive `size` bytes; return (their hash, the sizes they came in)."""
    digest, sizes = hashlib.sha256(), []
    while sum(sizes) < size:
        try:
            data = sock.recv(most)
        except BlockingIOError:
            poll_for(sock, IN)
            continue
        assert data
        digest.update(data)
        sizes.append(len(data))
    return digest.digest(), sizes


def noise(size):
    return hashlib.shake_128(b"%d" % size).digest(size)


@pytest.mark.parametrize("polls", [False, True])
@pytest.mark.parametrize("before", [0, 1000])
def test_what_is_larger_than_the_ring_arrives_whole(pair, polls, before):
    client, server = pair
    client.setblocking(False)
    server.setblocking(not polls)
    for size in (capacity(client) + 1, 1 << 20, 5 << 20, 1 << 10, 3 << 20):
        data = noise(before) + noise(size)
        if before:
            client.sendall(data[:before])                     # unread in the ring
        sender = threading.Thread(target=send_all, args=(client, data[before:]))
        sender.start()
        assert received(server, len(data))[0] == hashlib.sha256(data).digest()
        sender.join()


def test_event_loop_is_not_kept_waiting_for_a_ring(pair):
    client, server = pair
    client.setblocking(False)
    data = noise(2 << 20)
    assert send_all(client, data) > capacity(client)          # nobody reads meanwhile
    sender = threading.Thread(target=send_all, args=(client, data))
    sender.start()
    assert received(server, 2 * len(data))[0] == hashlib.sha256(2 * data).digest()
    sender.join()


def test_ring_is_used_again_after_a_large_message(pair):
    client, server = pair
    client.setblocking(False)
    data = noise(1 << 20)
    sender = threading.Thread(target=send_all, args=(client, data))
    sender.start()
    assert received(server, len(data))[0] == hashlib.sha256(data).digest()
    sender.join()
    for _ in range(3):
        client.send(b"x" * 100)
        assert received(server, 100)[1] == [100]
    assert client._endpoint.lanes()[0] == "ring"


def test_sleeping_receiver_is_woken_by_a_large_message(pair):
    client, server = pair
    client.setblocking(False)
    for _ in range(5):
        timer = threading.Timer(0.05, send_all, (client, noise(1 << 20)))
        timer.start()
        assert received(server, 1 << 20)[0] == hashlib.sha256(noise(1 << 20)).digest()
        timer.join()


def test_blocking_receive_takes_all_that_is_there(pair):
    client, server = pair
    client.sendall(noise(200_000))
    assert received(server, 200_000)[1] == [200_000]


def test_receive_of_who_polls_takes_what_a_loop_can_use_at_once(pair):
    client, server = pair
    server.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(server, IN)
        client.sendall(noise(200_000))
        digest, sizes = received(server, 200_000)
    assert digest == hashlib.sha256(noise(200_000)).digest()
    assert sizes == [65536] * 3 + [200_000 - 3 * 65536]


@pytest.mark.parametrize("most", [300, 1 << 20])
def test_rest_of_a_message_comes_with_what_woke_the_set(pair, most):
    client, server = pair
    server.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(server, IN)
        for _ in range(3):
            timer = threading.Timer(0.1, client.sendall, (noise(50_000),))
            timer.start()
            assert epoll.poll(PATIENCE_S)
            timer.join()
            digest, sizes = received(server, 50_000, most)
            assert digest == hashlib.sha256(noise(50_000)).digest()
            assert sizes[0] == min(most, 50_000)
            assert epoll.poll(0) == []
