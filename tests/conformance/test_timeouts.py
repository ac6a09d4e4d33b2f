"""settimeout, setblocking, setdefaulttimeout: what waits, how it ends, what it raises."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from .streams import MIB, pattern, receive_exactly
from .waiting import Background, asleep, eventually

SHORT_S = 0.05


def elapsed(call, *args):
    """Return how long `call` took to raise TimeoutError."""
    started = time.monotonic()
    with pytest.raises(TimeoutError) as late:
        call(*args)
    assert late.value.errno is None
    assert str(late.value) == "timed out"
    return time.monotonic() - started


@pytest.mark.parametrize(("name", "args"), [
    ("recv", (1,)), ("recv_into", (bytearray(1),)), ("recvfrom", (1,)), ("recvfrom_into", (bytearray(1),)),
    ("recvmsg", (1,)), ("recvmsg_into", ([bytearray(1)],)),
])
def test_every_receive_times_out_after_the_time_and_not_before(net, name, args):
    _client, server = net.pair()
    server.settimeout(SHORT_S)
    assert elapsed(getattr(server, name), *args) >= SHORT_S
    net.assert_ring(_client, server)


def test_receive_after_a_timeout_goes_on(net):
    client, server = net.pair()
    server.settimeout(SHORT_S)
    elapsed(server.recv, 1)
    client.sendall(b"late")
    assert server.recv(10) == b"late"
    server.sendall(b"x")
    assert client.recv(1) == b"x"
    net.assert_ring(client, server)


def test_receive_with_a_timeout_waits_for_what_comes_in_time(net):
    client, server = net.pair()
    server.settimeout(20)
    reading = Background(server.recv, 10)
    eventually(lambda: asleep(reading), "the reader sleeps")
    client.sendall(b"in time")
    assert reading.result() == b"in time"


def test_send_times_out_when_nobody_reads_and_goes_on_when_somebody_does(net):
    client, server = net.pair()
    client.settimeout(SHORT_S)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            sent += client.send(b"x" * 65536)
    assert receive_exactly(server, sent) == b"x" * sent
    client.sendall(b"again")
    assert server.recv(10) == b"again"


def test_sendall_times_out_after_all_its_pieces_together(net):
    client, _server = net.pair()
    client.settimeout(SHORT_S)
    assert elapsed(client.sendall, bytes(64 * MIB)) >= SHORT_S


def test_sendall_with_a_timeout_sends_all_to_a_reader(net):
    client, server = net.pair()
    client.settimeout(20)
    sending = Background(client.sendall, pattern(20 * MIB))
    assert receive_exactly(server, 20 * MIB) == pattern(20 * MIB)
    sending.result()


def test_send_with_a_timeout_takes_a_part_of_a_huge_buffer(net):
    client, server = net.pair()
    client.settimeout(20)
    data = pattern(64 * MIB)
    sent = client.send(data)
    assert 0 < sent < len(data)
    assert receive_exactly(server, sent) == data[:sent]


def test_accept_times_out(net):
    with net.listener() as listener:
        listener.settimeout(SHORT_S)
        assert elapsed(listener.accept) >= SHORT_S
        client = net.connect(listener.getsockname())
        server = net.accept(listener)
        assert server.gettimeout() is None
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_waitall_with_a_timeout_returns_what_has_come(net):
    client, server = net.pair()
    server.settimeout(20)
    client.sendall(b"abc")
    eventually(lambda: server.recv(3, socket.MSG_PEEK) == b"abc")
    assert server.recv(10, socket.MSG_WAITALL) == b"abc"


def test_timeout_words_agree_with_each_other(net):
    sock = net.new()
    for timeout, blocking in ((None, True), (0.0, False), (1.5, True), (3, True)):
        sock.settimeout(timeout)
        assert sock.gettimeout() == timeout
        assert sock.getblocking() is blocking
        assert sock.timeout == timeout
        assert os.get_blocking(sock.fileno()) is (timeout is None)
    sock.setblocking(False)
    assert sock.gettimeout() == 0.0
    sock.setblocking(True)
    assert sock.gettimeout() is None


def test_timeout_refuses_what_is_no_time(net):
    sock = net.new()
    for wrong in (-1, -0.001):
        with pytest.raises(ValueError, match="out of range"):
            sock.settimeout(wrong)
    for wrong in ("1", object(), 1j, [1]):
        with pytest.raises(TypeError):
            sock.settimeout(wrong)
    with pytest.raises(OverflowError):
        sock.settimeout(1e300)
    with pytest.raises(ValueError):
        sock.settimeout(float("nan"))
    with pytest.raises(TypeError):
        sock.setblocking()
    assert sock.gettimeout() is None


def test_timeout_may_change_while_connected(net):
    client, server = net.pair()
    server.settimeout(SHORT_S)
    elapsed(server.recv, 1)
    server.setblocking(False)
    with pytest.raises(BlockingIOError) as nothing:
        server.recv(1)
    assert nothing.value.errno == errno.EAGAIN
    server.settimeout(None)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    net.assert_ring(client)


def test_default_timeout_reaches_new_and_accepted_sockets(net):
    net.socket.setdefaulttimeout(7.5)
    try:
        assert net.socket.getdefaulttimeout() == socket.getdefaulttimeout() == 7.5
        client, server = net.pair()
        assert client.gettimeout() == server.gettimeout() == 7.5
    finally:
        net.socket.setdefaulttimeout(None)
    assert net.new().gettimeout() is None
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    server.sendall(b"y")
    assert client.recv(1) == b"y"
    net.assert_ring(client, server)


def test_default_timeout_of_zero_makes_nonblocking_sockets(net):
    net.socket.setdefaulttimeout(0)
    try:
        assert not net.new().getblocking()
        with pytest.raises(BlockingIOError):
            net.listener().accept()
    finally:
        net.socket.setdefaulttimeout(None)


def test_sock_nonblock_makes_a_nonblocking_socket(net):
    sock = net.new(kind=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    assert sock.gettimeout() == 0.0
    assert sock.type == socket.SOCK_STREAM
    with net.listener() as listener:
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS


def test_reader_and_writer_with_a_timeout_stream_both_ways(net):
    client, server = net.pair()
    for sock in (client, server):
        sock.settimeout(20)
    back = Background(server.sendall, pattern(8 * MIB, 1))
    forth = Background(client.sendall, pattern(8 * MIB, 2))
    reading = Background(receive_exactly, server, 8 * MIB)
    assert receive_exactly(client, 8 * MIB) == pattern(8 * MIB, 1)
    assert reading.result() == pattern(8 * MIB, 2)
    back.result()
    forth.result()
    net.assert_ring(client, server)
