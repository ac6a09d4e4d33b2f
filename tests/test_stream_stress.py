"""Random programs of several processes around one listener, each connection checked byte by byte.

A seed makes the script: what each connection of each client process does. Both ends draw the same bytes
from the connection's seed, so nothing is stored and every byte is compared. A connection ends in a way that leaves no
doubt about what its server must have seen; only a killed client leaves it a beginning of the stream.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading

import pytest

from conformance.children import Child
from conformance.faces import FACES, Net
from conformance.streams import pieces, read_stream, write_stream
from conformance.waiting import Background, watchdog

CONNECTIONS = 40                    # of each client process
HELLO = struct.Struct("=QQB")       # seed, bytes each way, number of the act
LINGER_0 = struct.pack("ii", 1, 0)
ENDLESS = 1 << 40


@pytest.fixture(params=FACES)
def net(request):
    net = Net(request.param)
    with watchdog():
        yield net
    net.close()


def both(sock, say, hear, total):
    writing = Background(write_stream, sock, say, total)
    read_stream(sock, hear, total)
    writing.result()


def expect_end(sock):
    assert sock.recv(1) == b""


class Close:
    """Both write, both read, the client closes."""

    def client(self, sock, seed, total):
        both(sock, seed, seed + 10, total)

    def server(self, sock, seed, total):
        both(sock, seed + 10, seed, total)
        expect_end(sock)


class HalfClose:
    """The server answers after the client's end of stream."""

    def client(self, sock, seed, total):
        write_stream(sock, seed, total)
        sock.shutdown(socket.SHUT_WR)
        read_stream(sock, seed + 10, total)
        expect_end(sock)

    def server(self, sock, seed, total):
        read_stream(sock, seed, total)
        expect_end(sock)
        write_stream(sock, seed + 10, total)


class EarlyClose:
    """The client writes and leaves, maybe before it was accepted."""

    def client(self, sock, seed, total):
        write_stream(sock, seed, min(total, 5000))

    def server(self, sock, seed, total):
        read_stream(sock, seed, min(total, 5000))
        expect_end(sock)


class Fork(Close):
    """The client writes while a child of it reads."""

    def client(self, sock, seed, total):
        child = Child(lambda: read_stream(sock, seed + 10, total))
        write_stream(sock, seed, total)
        child.join()


class Kill:
    """A child of the client writes for ever and is killed."""

    def client(self, sock, seed, total):
        def write():
            threading.Timer(random.Random(seed).random() / 50, os.kill, (os.getpid(), signal.SIGKILL)).start()
            write_stream(sock, seed, ENDLESS)

        child = Child(write)
        sock.close()
        child.join(-signal.SIGKILL)

    def server(self, sock, seed, total):
        with pytest.raises((EOFError, ConnectionResetError)):
            read_stream(sock, seed, ENDLESS)


class Reset:
    """The client resets the connection when the server has read all."""

    def client(self, sock, seed, total):
        write_stream(sock, seed, total)
        assert sock.recv(1) == b"r"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)

    def server(self, sock, seed, total):
        read_stream(sock, seed, total)
        sock.sendall(b"r")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


class Timeouts(Close):
    """The client's calls time out again and again, and it goes on where it was."""

    def client(self, sock, seed, total):
        sock.settimeout(0.002)
        writing = Background(self.write, sock, seed, total)
        for want in pieces(seed + 10, total):
            got = bytearray()
            while len(got) < len(want):
                got += patiently(sock.recv, len(want) - len(got))
            assert got == want
        writing.result()

    def write(self, sock, seed, total):
        for piece in pieces(seed, total):
            rest = memoryview(piece)
            while rest:
                rest = rest[patiently(sock.send, rest):]


def patiently(call, argument):
    """Return what `call` returns, however often it times out; nothing is the end, which nobody wants here."""
    while True:
        try:
            result = call(argument)
        except TimeoutError:
            continue
        assert result
        return result


ACTS = [Close(), HalfClose(), EarlyClose(), Fork(), Kill(), Reset(), Timeouts()]


def run_client(net, address, seed):
    script = random.Random(seed)
    for _ in range(CONNECTIONS):
        number, act = script.randrange(1 << 48), script.randrange(len(ACTS))
        total = script.choice((0, 1, 100, 5000, 70_000, 400_000))
        with net.socket.create_connection(address) as sock:
            sock.sendall(HELLO.pack(number, total, act))
            ACTS[act].client(sock, number, total)


def answer(sock):
    with sock:
        seed, total, act = HELLO.unpack(sock.recv(HELLO.size, socket.MSG_WAITALL))
        ACTS[act].server(sock, seed, total)


def run_server(listener, connections):
    serving = [Background(answer, listener.accept()[0]) for _ in range(connections)]
    for thread in serving:
        thread.result()


@pytest.mark.parametrize("clients", [1, 2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_byte_of_random_programs_arrives(net, seed, clients):
    with net.listener(backlog=64) as listener:
        address = listener.getsockname()
        children = [Child(lambda: run_server(listener, clients * CONNECTIONS))]
        children += [Child(lambda number=number: run_client(net, address, 1000 * seed + number))
                     for number in range(clients)]
        for child in children:
            child.join()
