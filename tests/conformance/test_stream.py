"""send and recv: sizes, order, buffers, both ways at once."""

from __future__ import annotations

import array
import errno
import socket

import pytest

from .remote import at
from .streams import MIB, both_ways, pattern, read_stream, receive_all, receive_exactly, write_stream
from .waiting import Background

SIZES = [1, 2, 7, 8, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 16383, 16384, 16385, 65535, 65536, 65537]
LARGE = [MIB - 1, MIB, MIB + 1, 5 * MIB + 3]


@pytest.mark.parametrize("size", SIZES)
def test_sendall_of_any_size_arrives_whole(net, pair, size):
    client, server = pair()
    for sender, receiver in ((client, server), (server, client)):
        data = pattern(size)
        sender.sendall(data)
        assert receive_exactly(receiver, size) == data
    net.assert_ring(client, server)


@pytest.mark.parametrize("size", LARGE)
def test_sendall_of_more_than_the_buffers_hold_arrives_whole(net, pair, size):
    client, server = pair()
    for sender, receiver in ((client, server), (server, client)):
        sending = Background(sender.sendall, pattern(size))
        assert receive_exactly(receiver, size) == pattern(size)
        assert sending.result() is None
    net.assert_ring(client, server)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4095, 8191, 12289])
def test_round_trips_wrap_around_the_buffers_unharmed(net, pair, size):
    client, server = pair()
    for turn in range(3 * MIB // 4 // size if size > 1000 else 300):
        data = pattern(size, turn)
        client.sendall(data)
        assert receive_exactly(server, size) == data
        server.sendall(data)
        assert receive_exactly(client, size) == data
    net.assert_ring(client, server)


@pytest.mark.parametrize("largest", [100, 5000, 70_000, MIB])
def test_streams_both_ways_at_once_keep_their_bytes(net, pair, largest):
    client, server = pair()
    total = MIB if largest == 100 else 16 * MIB
    other = Background(at, server, both_ways, 1, 2, total, largest)
    assert at(client, both_ways, 2, 1, total, largest) == total
    assert other.result() == total
    net.assert_ring(client, server)


def test_stream_by_single_bytes_keeps_its_order(net, pair):
    client, server = pair()
    writing = Background(at, client, write_stream, 5, 20_000, 1)
    assert at(server, read_stream, 5, 20_000, 1) == 20_000
    assert writing.result() == 20_000
    net.assert_ring(client, server)


def test_send_returns_how_much_it_took(net, pair):
    client, server = pair()
    assert client.send(b"abc") == 3
    assert client.send(b"defg") == 4
    assert receive_exactly(server, 7) == b"abcdefg"


def test_send_of_nothing_sends_nothing(net, pair):
    client, server = pair()
    assert client.send(b"") == 0
    assert client.sendall(b"") is None
    client.sendall(b"x")
    assert server.recv(10) == b"x"


def test_recv_joins_what_was_sent_in_pieces(net, pair):
    client, server = pair()
    for piece in (b"a", b"bc", b"def"):
        client.sendall(piece)
    assert server.recv(100) == b"abcdef"


def test_recv_takes_no_more_than_asked_and_leaves_the_rest(net, pair):
    client, server = pair()
    client.sendall(b"0123456789")
    assert [server.recv(size) for size in (1, 2, 3, 100)] == [b"0", b"12", b"345", b"6789"]


def test_recv_of_nothing_returns_nothing_and_leaves_all(net, pair):
    client, server = pair()
    client.sendall(b"kept")
    assert server.recv(0) == b""
    assert server.recv(10) == b"kept"


def test_recv_of_nothing_on_an_empty_stream_does_not_wait(net):
    client, _server = net.pair()
    assert client.recv(0) == b""
    assert client.recv_into(bytearray(0)) == 0


def test_recv_into_fills_the_buffer_and_returns_the_count(net, pair):
    client, server = pair()
    client.sendall(b"abcdef")
    buffer = bytearray(b"........")
    assert server.recv_into(buffer, 2) == 2
    assert buffer == b"ab......"
    assert server.recv_into(buffer) == 4
    assert buffer == b"cdef...."


def test_recv_into_takes_any_writable_buffer(net):
    client, server = net.pair()
    client.sendall(bytes(range(48)))
    numbers = array.array("i", [0] * 4)
    assert server.recv_into(numbers) == 16
    assert numbers.tobytes() == bytes(range(16))
    window = memoryview(bytearray(20))[3:11]
    assert server.recv_into(window) == 8
    assert bytes(window) == bytes(range(16, 24))
    grid = memoryview(bytearray(24)).cast("B", (4, 6))
    assert server.recv_into(grid) == 24
    assert grid.tobytes() == bytes(range(24, 48))


def test_send_takes_any_contiguous_buffer(net):
    client, server = net.pair()
    numbers = array.array("H", range(10))
    grid = memoryview(bytes(range(24))).cast("B", (4, 6))
    for data in (bytearray(b"xyz"), memoryview(b"hello")[1:3], numbers, grid, memoryview(b"0123456789")[::1]):
        assert client.send(data) == memoryview(data).nbytes
        assert receive_exactly(server, memoryview(data).nbytes) == memoryview(data).tobytes()
    with pytest.raises(BufferError):
        client.send(memoryview(b"0123456789")[::2])


def test_recvfrom_returns_the_bytes_and_no_address(net, pair):
    client, server = pair()
    client.sendall(b"hello")
    assert server.recvfrom(3) == (b"hel", None)
    buffer = bytearray(5)
    assert server.recvfrom_into(buffer) == (2, None)
    assert buffer == b"lo\0\0\0"


def test_sendto_on_a_connected_stream_ignores_the_address(net):
    client, server = net.pair()
    assert client.sendto(b"one", ("127.0.0.9", 9)) == 3
    assert client.sendto(b"two", 0, client.getpeername()) == 3
    assert receive_exactly(server, 6) == b"onetwo"


def test_send_nonblocking_fills_up_then_says_eagain_then_goes_on(net):
    client, server = net.pair()
    client.setblocking(False)
    data, sent = pattern(64 * MIB), 0
    with pytest.raises(BlockingIOError) as full:
        while True:
            sent += client.send(memoryview(data)[sent:])
    assert full.value.errno == errno.EAGAIN
    assert 0 < sent < len(data)
    assert receive_exactly(server, sent) == data[:sent]
    assert client.send(b"again") == 5
    assert server.recv(10) == b"again"


def test_send_nonblocking_of_a_huge_buffer_takes_a_part(net):
    client, server = net.pair()
    client.setblocking(False)
    data = pattern(64 * MIB)
    sent = client.send(data)
    assert 0 < sent < len(data)
    client.close()
    assert receive_all(server) == data[:sent]


def test_send_blocking_takes_all_even_of_a_huge_buffer(net):
    client, server = net.pair()
    data = pattern(24 * MIB)
    sending = Background(client.send, data)
    assert receive_exactly(server, len(data)) == data
    assert sending.result() == len(data)


def test_recv_nonblocking_with_nothing_there_is_eagain(net):
    client, server = net.pair()
    server.setblocking(False)
    with pytest.raises(BlockingIOError) as empty:
        server.recv(1)
    assert empty.value.errno == errno.EAGAIN
    client.sendall(b"x")
    assert net.select.select([server], [], [], 20)[0] == [server]
    assert server.recv(1) == b"x"


def test_recv_with_a_huge_limit_returns_what_is_there(net):
    client, server = net.pair()
    client.sendall(b"little")
    assert server.recv(64 * MIB) == b"little"


def test_many_pairs_at_once_do_not_mix(net):
    pairs = [net.pair() for _ in range(40)]
    for number, (client, server) in enumerate(pairs):
        client.sendall(b"to server %d" % number)
        server.sendall(b"to client %d" % number)
    for number, (client, server) in enumerate(pairs):
        assert server.recv(100) == b"to server %d" % number
        assert client.recv(100) == b"to client %d" % number
        net.assert_ring(client, server)


def test_socketpair_talks_both_ways(net):
    one, two = map(net.keep, net.socket.socketpair())
    one.sendall(b"one")
    two.sendall(b"two")
    assert (one.recv(10), two.recv(10)) == (b"two", b"one")
    assert one.family == socket.AF_UNIX
    one.shutdown(socket.SHUT_WR)
    assert two.recv(10) == b""
