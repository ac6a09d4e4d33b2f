"""sendmsg, recvmsg, recvmsg_into: gathered, scattered, with and without ancillary data."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket

import pytest

from .streams import MIB, pattern, receive_exactly
from .waiting import Background, asleep, eventually


def test_sendmsg_gathers_its_buffers(net, pair):
    client, server = pair()
    assert client.sendmsg([b"one ", bytearray(b"two "), b"", b"three"]) == 13
    assert receive_exactly(server, 13) == b"one two three"
    net.assert_ring(client, server)


def test_sendmsg_of_no_buffers_sends_nothing(net, pair):
    client, server = pair()
    assert client.sendmsg([]) == 0
    assert client.sendmsg([b"", b""]) == 0
    client.sendall(b"x")
    assert server.recv(10) == b"x"


def test_sendmsg_takes_a_generator_and_any_buffer(net):
    client, server = net.pair()
    numbers = array.array("i", [1, 2, 3])
    assert client.sendmsg(piece for piece in (b"a", numbers, memoryview(b"xyz")[1:])) == 15
    assert receive_exactly(server, 15) == b"a" + numbers.tobytes() + b"yz"


def test_sendmsg_blocking_takes_all(net):
    client, server = net.pair()
    pieces = [pattern(3 * MIB, seed) for seed in range(4)]
    sending = Background(client.sendmsg, pieces)
    assert receive_exactly(server, 12 * MIB) == b"".join(pieces)
    assert sending.result() == 12 * MIB


def test_sendmsg_of_as_many_buffers_as_the_kernel_takes_and_no_more(net):
    client, server = net.pair()
    limit = os.sysconf("SC_IOV_MAX")
    assert client.sendmsg([b"x"] * limit) == limit
    assert receive_exactly(server, limit) == b"x" * limit
    with pytest.raises(OSError) as many:
        client.sendmsg([b"x"] * (limit + 1))
    assert many.value.errno == errno.EMSGSIZE


def test_sendmsg_nonblocking_fills_up_then_says_eagain(net):
    client, server = net.pair()
    client.setblocking(False)
    piece, sent = pattern(10_000), 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.sendmsg([piece, piece])
    data = piece * (sent // len(piece) + 2)
    got = receive_exactly(server, sent)
    assert len(got) == sent
    assert got[:10_000] == data[:10_000]


def test_sendmsg_to_an_address_on_a_connected_stream_ignores_it(net):
    client, server = net.pair()
    assert client.sendmsg([b"x"], [], 0, ("127.0.0.9", 9)) == 1
    assert server.recv(1) == b"x"


def test_recvmsg_returns_bytes_no_ancillary_data_no_flags_no_address(net, pair):
    client, server = pair()
    client.sendall(b"hello")
    assert server.recvmsg(3) == (b"hel", [], 0, None)
    assert server.recvmsg(10, 1000) == (b"lo", [], 0, None)
    net.assert_ring(client, server)


def test_recvmsg_at_the_end_of_the_stream_is_empty(net, pair):
    client, server = pair()
    client.close()
    assert server.recvmsg(10) == (b"", [], 0, None)


def test_recvmsg_peeks(net, pair):
    client, server = pair()
    client.sendall(b"hello")
    assert server.recvmsg(3, 0, socket.MSG_PEEK)[0] == b"hel"
    assert server.recvmsg(10)[0] == b"hello"


def test_recvmsg_nonblocking_with_nothing_there_is_eagain(net):
    _client, server = net.pair()
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recvmsg(1)
    with pytest.raises(BlockingIOError):
        server.recvmsg_into([bytearray(1)])


def test_recvmsg_into_scatters_over_its_buffers(net):
    client, server = net.pair()
    client.sendall(b"abcdefghij")
    buffers = [bytearray(3), bytearray(0), bytearray(4), bytearray(b"......")]
    assert server.recvmsg_into(buffers) == (10, [], 0, None)
    assert buffers == [b"abc", b"", b"defg", b"hij..."]


def test_recvmsg_into_of_less_than_the_buffers_leaves_the_rest_alone(net):
    client, server = net.pair()
    client.sendall(b"ab")
    buffers = [bytearray(b"."), bytearray(b"...")]
    assert server.recvmsg_into(buffers)[0] == 2
    assert buffers == [b"a", b"b.."]


def test_recvmsg_into_waits_for_all_if_told(net):
    client, server = net.pair()
    buffers = [bytearray(3), bytearray(3)]
    receiving = Background(server.recvmsg_into, buffers, 0, socket.MSG_WAITALL)
    for piece in (b"ab", b"cd", b"ef"):
        client.sendall(piece)
    assert receiving.result()[0] == 6
    assert buffers == [b"abc", b"def"]


def test_recvmsg_of_nothing_waits_for_a_byte_and_leaves_it(net):
    client, server = net.pair()
    receiving = Background(server.recvmsg, 0)
    eventually(lambda: asleep(receiving), "the reader sleeps")
    client.sendall(b"x")
    assert receiving.result()[0] == b""
    assert server.recvmsg_into([])[0] == 0
    assert server.recv(10) == b"x"


def test_buffers_of_structures_are_sent_and_received_by_their_bytes(net):
    client, server = net.pair()
    numbers = (ctypes.c_int * 500_000)(*range(500_000))
    sending = Background(client.sendall, numbers)
    there = [(ctypes.c_int * 3)(), (ctypes.c_short * 4)()]
    assert server.recvmsg_into(there, 0, socket.MSG_WAITALL)[0] == 20
    assert (list(there[0]), list(there[1])) == ([0, 1, 2], [3, 0, 4, 0])
    assert receive_exactly(server, 2_000_000 - 20) == bytes(numbers)[20:]
    sending.result()
    assert client.sendmsg([there[0], there[1]]) == 20
    assert receive_exactly(server, 20) == bytes(numbers)[:20]


def test_sendmsg_of_descriptors_over_tcp_carries_the_bytes_only(net):
    client, server = net.pair()
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))]
    assert client.sendmsg([b"x"], passed) == 1
    assert server.recvmsg(10, 1000) == (b"x", [], 0, None)


def test_sendmsg_refuses_malformed_ancillary_data(net):
    client, _server = net.pair()
    for wrong in ([()], [(1, 2)], [("x", 1, b"")], [(1, 1, "text")], 5):
        with pytest.raises(TypeError):
            client.sendmsg([b"x"], wrong)
