"""MSG_OOB and SO_OOBINLINE: the urgent byte is beside the stream, or in it, and its mark is kept."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import signal
import socket

import pytest

from .streams import receive_exactly
from .waiting import eventually

SIOCATMARK = 0x8905


def at_mark(sock) -> bool:
    answer = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), SIOCATMARK, answer)
    return bool(answer[0])


def test_urgent_byte_is_read_beside_the_stream(net):
    client, server = net.pair()
    client.sendall(b"before")
    assert client.send(b"!", socket.MSG_OOB) == 1
    client.sendall(b"after")
    assert net.select.select([], [], [server], 20)[2] == [server]
    assert server.recv(1, socket.MSG_OOB) == b"!"
    assert receive_exactly(server, 11) == b"beforeafter"


def test_urgent_byte_is_the_last_of_what_was_sent_urgently(net):
    client, server = net.pair()
    assert client.send(b"abc", socket.MSG_OOB) == 3
    assert net.select.select([], [], [server], 20)[2] == [server]
    assert server.recv(10, socket.MSG_OOB) == b"c"
    assert receive_exactly(server, 2) == b"ab"


def test_recv_stops_at_the_mark(net):
    client, server = net.pair()
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    assert net.select.select([], [], [server], 20)[2] == [server]
    eventually(lambda: len(server.recv(100, socket.MSG_PEEK)) == 6, "all of what was sent before the mark")
    assert server.recv(100) == b"before"
    assert at_mark(server)
    assert receive_exactly(server, 5) == b"after"
    assert not at_mark(server)


def test_urgent_byte_stays_in_the_stream_if_asked(net):
    client, server = net.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    assert receive_exactly(server, 12) == b"before!after"
    with pytest.raises(OSError) as inline:
        server.recv(1, socket.MSG_OOB)
    assert inline.value.errno == errno.EINVAL


def test_recv_of_an_urgent_byte_that_nobody_sent_is_einval(net):
    client, server = net.pair()
    client.sendall(b"plain")
    with pytest.raises(OSError) as none:
        server.recv(1, socket.MSG_OOB)
    assert none.value.errno == errno.EINVAL
    assert receive_exactly(server, 5) == b"plain"


def test_urgent_byte_is_read_once(net):
    client, server = net.pair()
    client.send(b"!", socket.MSG_OOB)
    assert net.select.select([], [], [server], 20)[2] == [server]
    assert server.recv(1, socket.MSG_OOB) == b"!"
    with pytest.raises(OSError) as again:
        server.recv(1, socket.MSG_OOB)
    assert again.value.errno == errno.EINVAL


def test_urgent_byte_raises_sigurg_in_the_owner(net):
    got = []
    before = signal.signal(signal.SIGURG, lambda *_: got.append("urgent"))
    try:
        client, server = net.pair()
        fcntl.fcntl(server.fileno(), fcntl.F_SETOWN, os.getpid())
        client.send(b"!", socket.MSG_OOB)
        eventually(lambda: got, "SIGURG")
        assert server.recv(1, socket.MSG_OOB) == b"!"
    finally:
        signal.signal(signal.SIGURG, before)


def test_stream_goes_on_both_ways_after_an_urgent_byte(net):
    client, server = net.pair()
    for turn in range(5):
        client.sendall(b"x" * 5000)
        client.send(b"%d" % turn, socket.MSG_OOB)
        assert net.select.select([], [], [server], 20)[2] == [server]
        assert server.recv(1, socket.MSG_OOB) == b"%d" % turn
        assert receive_exactly(server, 5000) == b"x" * 5000
        server.sendall(b"y" * 5000)
        assert receive_exactly(client, 5000) == b"y" * 5000
