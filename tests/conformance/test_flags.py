"""MSG_PEEK, MSG_WAITALL, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, MSG_MORE and flags that make no sense."""

from __future__ import annotations

import errno
import signal
import socket

import pytest

from .streams import MIB, pattern, receive_exactly
from .waiting import Background, asleep, eventually

PEEK, WAITALL, DONTWAIT = int(socket.MSG_PEEK), int(socket.MSG_WAITALL), int(socket.MSG_DONTWAIT)


def test_peek_shows_the_bytes_and_leaves_them(net, pair):
    client, server = pair()
    client.sendall(b"look")
    assert server.recv(2, PEEK) == b"lo"
    assert server.recv(10, PEEK) == b"look"
    assert server.recv(10) == b"look"
    net.assert_ring(client, server)


def test_peek_waits_for_the_first_byte(net):
    client, server = net.pair()
    peeking = Background(server.recv, 10, PEEK)
    eventually(lambda: asleep(peeking), "the peeker sleeps")
    client.sendall(b"x")
    assert peeking.result() == b"x"
    assert server.recv(10) == b"x"


def test_peek_into_a_buffer_leaves_the_bytes(net):
    client, server = net.pair()
    client.sendall(b"abc")
    buffer = bytearray(3)
    assert server.recv_into(buffer, 0, PEEK) == 3
    assert server.recvfrom_into(buffer, 2, PEEK) == (2, None)
    assert server.recvfrom(2, PEEK) == (b"ab", None)
    assert server.recv(10) == b"abc"


def test_peek_at_the_end_of_the_stream_is_empty_and_stays_so(net, pair):
    client, server = pair()
    client.sendall(b"last")
    client.close()
    assert server.recv(10, PEEK) == b"last"
    assert server.recv(10) == b"last"
    assert server.recv(10, PEEK) == b""
    assert server.recv(10) == b""


def test_peek_of_everything_that_is_there_spans_the_wrap(net):
    client, server = net.pair()
    client.sendall(pattern(60_000))
    assert receive_exactly(server, 60_000) == pattern(60_000)
    for _ in range(20):
        client.sendall(pattern(50_000, 3))
        seen = eventually(lambda: (got := server.recv(50_000, PEEK)) and len(got) == 50_000 and got, "all peeked")
        assert seen == pattern(50_000, 3)
        assert receive_exactly(server, 50_000) == seen


def test_waitall_waits_for_every_byte(net):
    client, server = net.pair()
    receiving = Background(server.recv, 10, WAITALL)
    for piece in (b"012", b"34", b"5678"):
        client.sendall(piece)
    eventually(lambda: asleep(receiving), "the reader sleeps")
    client.sendall(b"9rest")
    assert receiving.result() == b"0123456789"
    assert server.recv(10) == b"rest"


@pytest.mark.parametrize("first", [b"ab", b"a" * 5000])
def test_peek_and_waitall_wait_for_every_byte_and_leave_them(net, first):
    client, server = net.pair()
    size = len(first) + 100_004
    client.sendall(first)
    peeking = Background(server.recv, size, PEEK | WAITALL)
    eventually(lambda: asleep(peeking), "the peeker sleeps")
    client.sendall(b"c" * 100_000)
    client.sendall(b"last")
    wanted = first + b"c" * 100_000 + b"last"
    assert peeking.result() == wanted
    assert receive_exactly(server, size) == wanted


def test_peek_and_waitall_end_with_the_stream(net, pair):
    client, server = pair()
    client.sendall(b"short")
    client.shutdown(socket.SHUT_WR)
    assert server.recv(100, PEEK | WAITALL) == b"short"
    assert server.recv(100) == b"short"


def test_waitall_gathers_more_than_the_buffers_hold(net, pair):
    client, server = pair()
    sending = Background(client.sendall, pattern(6 * MIB))
    assert server.recv(6 * MIB, WAITALL) == pattern(6 * MIB)
    sending.result()
    net.assert_ring(client, server)


def test_waitall_returns_what_there_is_at_the_end_of_the_stream(net, pair):
    client, server = pair()
    client.sendall(b"short")
    client.shutdown(socket.SHUT_WR)
    assert server.recv(100, WAITALL) == b"short"
    assert server.recv(100, WAITALL) == b""


def test_waitall_on_a_nonblocking_socket_takes_what_is_there(net):
    client, server = net.pair()
    server.setblocking(False)
    client.sendall(b"abc")
    assert net.select.select([server], [], [], 20)[0] == [server]
    assert server.recv(100, WAITALL) == b"abc"
    with pytest.raises(BlockingIOError):
        server.recv(100, WAITALL)


def test_waitall_under_a_timeout_takes_what_is_there_as_python_does(net):
    client, server = net.pair()
    server.settimeout(20)
    client.sendall(b"abc")
    assert server.recv(100, WAITALL) == b"abc"


def test_dontwait_makes_one_call_nonblocking(net):
    client, server = net.pair()
    with pytest.raises(BlockingIOError) as empty:
        server.recv(1, DONTWAIT)
    assert empty.value.errno == errno.EAGAIN
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    with pytest.raises(BlockingIOError):
        while True:
            client.send(b"y" * 65536, DONTWAIT)
    assert client.getblocking()


def test_dontwait_under_a_timeout_still_waits_as_python_does(net):
    _client, server = net.pair()
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(1, DONTWAIT)


def test_nosignal_after_the_peers_end_is_epipe_without_a_signal(net):
    got = []
    before = signal.signal(signal.SIGPIPE, lambda *_: got.append("pipe"))
    try:
        client, server = net.pair()
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            client.send(b"x", socket.MSG_NOSIGNAL)
        assert got == []
        with pytest.raises(BrokenPipeError):
            client.send(b"x")
        assert got == ["pipe"]
        assert server.recv(1) == b""
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_trunc_on_a_stream_discards_bytes_without_a_copy(net):
    client, server = net.pair()
    client.sendall(b"discarded, kept")
    buffer = bytearray(b"." * 11)
    assert server.recv_into(buffer, 11, socket.MSG_TRUNC) == 11
    assert buffer == b"." * 11
    assert server.recv(100) == b"kept"


def test_more_may_hold_bytes_back_but_loses_none(net):
    client, server = net.pair()
    client.send(b"one ", socket.MSG_MORE)
    client.send(b"two ", socket.MSG_MORE)
    client.send(b"three")
    assert receive_exactly(server, 13) == b"one two three"


def test_more_is_sent_when_the_stream_ends(net, pair):
    client, server = pair()
    client.send(b"held", socket.MSG_MORE)
    client.shutdown(socket.SHUT_WR)
    assert receive_exactly(server, 4) == b"held"
    assert server.recv(1) == b""


def test_errqueue_is_empty(net):
    client, _server = net.pair()
    with pytest.raises(BlockingIOError):
        client.recvmsg(100, 100, socket.MSG_ERRQUEUE)


def test_flags_that_mean_nothing_are_ignored(net):
    client, server = net.pair()
    assert client.send(b"ab", socket.MSG_EOR | socket.MSG_CONFIRM | socket.MSG_DONTROUTE) == 2
    assert server.recv(10, socket.MSG_CMSG_CLOEXEC) == b"ab"
