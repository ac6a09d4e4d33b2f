"""`fileno()` for event loops: those that only register it with a set of ours leave the connection in the ring."""
from __future__ import annotations

import asyncio
import os
import selectors as standard
import threading

import pytest

import shmstack.socket as socket
from shmstack import selectors

ROUNDS = 200
PATIENCE_S = 60
TORNADO = "class IOLoop:\n    def split_fd(self, fd):\n        return fd.fileno(), fd\n"


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener, \
            socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            yield client, server


def echo(sock, rounds):
    for _ in range(rounds):
        sock.sendall(sock.recv(100_000))


def run(loop, main):
    try:
        return loop.run_until_complete(asyncio.wait_for(main, PATIENCE_S))
    finally:
        loop.close()


async def talk(loop, sock, rounds):
    """Return the lanes that each answer came by."""
    sock.setblocking(False)
    seen = []
    for number in range(rounds):
        await loop.sock_sendall(sock, b"%04d" % number)
        assert await loop.sock_recv(sock, 100) == b"%04d" % number
        seen.append(sock._endpoint.lanes()[1])
    return seen


@pytest.mark.parametrize("ours", [True, False])
def test_sock_calls_of_asyncio_use_the_ring_where_the_loops_selector_is_ours(pair, ours):
    client, server = pair
    echoing = threading.Thread(target=echo, args=(server, ROUNDS))
    echoing.start()
    loop = asyncio.SelectorEventLoop(selectors.EpollSelector() if ours else standard.EpollSelector())
    seen = run(loop, talk(loop, client, ROUNDS))
    echoing.join()
    if ours:
        assert "ring" in seen[ROUNDS // 2:], seen          # a loop that sleeps is woken by the kernel
    else:
        assert seen[-1] == "kernel"


def test_file_sent_past_us_between_calls_of_asyncio_keeps_its_place(pair, tmp_path):
    client, server = pair
    (tmp_path / "file").write_bytes(body := os.urandom(300_000))
    loop = asyncio.SelectorEventLoop(selectors.EpollSelector())
    client.setblocking(False)

    async def send():
        for number in range(20):
            await loop.sock_sendall(client, b"%04d" % number)
            with open(tmp_path / "file", "rb") as file:
                assert await loop.sock_sendfile(client, file, fallback=False) == len(body)
        return True

    got = bytearray()

    def read():
        while data := server.recv(50_000):
            got.extend(data)

    reading = threading.Thread(target=read)
    reading.start()
    assert run(loop, send())
    client.close()
    reading.join()
    assert got == b"".join(b"%04d" % number + body for number in range(20))


@pytest.mark.parametrize("ours", [True, False])
def test_tornado_is_believed_only_over_a_selector_of_ours(pair, ours):
    client, server = pair
    told = {"__name__": "tornado.ioloop"}
    exec(TORNADO, told)
    tornado = told["IOLoop"]()
    tornado.selector_loop = asyncio.SelectorEventLoop(selectors.EpollSelector() if ours else standard.EpollSelector())
    client.sendall(b"a")
    assert server.recv(1) == b"a"
    assert tornado.split_fd(server) == (server._descriptor(), server)
    assert server._endpoint.exposed is not ours
    client.sendall(b"b")
    assert server._endpoint.lanes()[1] == ("ring" if ours else "kernel")
    assert server.recv(1) == b"b"
    tornado.selector_loop.close()
