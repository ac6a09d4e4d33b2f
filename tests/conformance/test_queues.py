"""FIONREAD, SIOCOUTQ, FIONBIO: what is queued, asked through the descriptor."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import termios

import pytest

from .remote import at
from .streams import receive_exactly
from .waiting import Background, asleep, eventually

SIOCOUTQ, SIOCOUTQNSD = termios.TIOCOUTQ, 0x894B


def ask(sock, request: int) -> int:
    answer = array.array("i", [-1])
    fcntl.ioctl(sock, request, answer)
    return answer[0]


def test_fionread_counts_what_can_be_read(net, pair):
    client, server = pair()
    assert at(server, ask, termios.FIONREAD) == 0
    client.sendall(b"0123456789")
    eventually(lambda: at(server, ask, termios.FIONREAD) == 10, "ten bytes queued")
    assert server.recv(4) == b"0123"
    assert at(server, ask, termios.FIONREAD) == 6
    assert server.recv(100) == b"456789"
    assert at(server, ask, termios.FIONREAD) == 0


def test_fionread_is_not_changed_by_a_peek_and_stays_after_the_end(net, pair):
    client, server = pair()
    client.sendall(b"abc")
    client.close()
    assert server.recv(100, socket.MSG_PEEK) == b"abc"
    assert at(server, ask, termios.FIONREAD) == 3
    assert server.recv(100) == b"abc"
    assert server.recv(100) == b""
    assert at(server, ask, termios.FIONREAD) == 0


def test_siocoutq_falls_to_zero_when_the_peer_has_read(net, pair):
    client, server = pair()
    assert at(client, ask, SIOCOUTQ) == 0
    client.sendall(b"x" * 10_000)
    assert receive_exactly(server, 10_000) == b"x" * 10_000
    eventually(lambda: at(client, ask, SIOCOUTQ) == 0, "an empty send queue")


def test_siocoutq_counts_what_nobody_reads(net):
    client, _server = net.pair()
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(b"x" * 65536)
    waiting = ask(client, SIOCOUTQ)
    assert 0 < waiting <= sent
    assert ask(client, SIOCOUTQNSD) <= waiting


def test_fionread_and_siocoutq_add_up_to_what_was_sent(net):
    client, server = net.pair()
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(b"x" * 65536)
    # A difference that stays: an ioctl is the kernel's to answer, which doesn't see a full ring in front of its own queue.
    unseen = server._endpoint.stack.capacity if net.accelerated else 0
    eventually(lambda: ask(server, termios.FIONREAD) + ask(client, SIOCOUTQ) >= sent - unseen, "all bytes accounted for")


def test_fionread_of_a_listener_is_einval(net):
    with net.listener() as listener, pytest.raises(OSError):
        ask(listener, termios.FIONREAD)


def test_fionbio_by_ioctl_makes_calls_nonblocking(net):
    client, server = net.pair()
    fcntl.ioctl(server.fileno(), termios.FIONBIO, array.array("i", [1]))
    with pytest.raises(BlockingIOError):
        server.recv(1)
    fcntl.ioctl(server.fileno(), termios.FIONBIO, array.array("i", [0]))
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_o_nonblock_by_fcntl_makes_calls_nonblocking(net):
    client, server = net.pair()
    os.set_blocking(server.fileno(), False)
    assert server.getblocking()
    with pytest.raises(BlockingIOError):
        server.recv(1)
    os.set_blocking(server.fileno(), True)
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_o_nonblock_taken_off_by_fcntl_makes_calls_wait(net):
    client, server = net.pair()
    server.setblocking(False)
    os.set_blocking(server.fileno(), True)
    assert server.gettimeout() == 0
    receiving = Background(server.recv, 10, socket.MSG_WAITALL)
    eventually(lambda: asleep(receiving), "the reader sleeps")
    client.sendall(b"01234")
    client.sendall(b"56789")
    assert receiving.result() == b"0123456789"


def test_mode_of_a_duplicate_is_that_of_the_descriptor(net):
    client, server = net.pair()
    twin = net.keep(server.dup())
    twin.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    with pytest.raises(BlockingIOError):
        while True:
            server.send(b"x" * 65536)
    twin.setblocking(True)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
