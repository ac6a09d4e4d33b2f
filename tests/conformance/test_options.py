"""Socket options: stored, reported, and doing what they say."""

from __future__ import annotations

import errno
import socket
import struct
import sys

import pytest

from .streams import receive_exactly
from .waiting import Background, asleep, eventually

SOL, TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP
ON_OFF = [
    (SOL, socket.SO_KEEPALIVE), (SOL, socket.SO_REUSEADDR), (SOL, socket.SO_REUSEPORT), (SOL, socket.SO_OOBINLINE),
    (SOL, socket.SO_DONTROUTE), (TCP, socket.TCP_NODELAY), (TCP, socket.TCP_CORK), (TCP, socket.TCP_QUICKACK),
]
NUMBERS = [
    (TCP, socket.TCP_KEEPIDLE, 77), (TCP, socket.TCP_KEEPINTVL, 7), (TCP, socket.TCP_KEEPCNT, 5),
    (TCP, socket.TCP_SYNCNT, 3), (TCP, socket.TCP_USER_TIMEOUT, 12_345), (TCP, socket.TCP_LINGER2, 9),
    (SOL, socket.SO_PRIORITY, 3), (SOL, socket.SO_RCVLOWAT, 100), (SOL, socket.SO_MARK, 7),
    (socket.IPPROTO_IP, socket.IP_TOS, 16), (socket.IPPROTO_IP, socket.IP_TTL, 33),
]


def tcp_info(sock) -> dict[str, int]:
    """Return the leading words of struct tcp_info by name."""
    raw = sock.getsockopt(TCP, socket.TCP_INFO, 104)
    return {"state": raw[0], "retransmits": raw[2], "snd_mss": struct.unpack_from("=I", raw, 16)[0]}


@pytest.mark.parametrize(("level", "option"), ON_OFF)
def test_switch_is_kept(net, level, option):
    client, server = net.pair()
    for value in (1, 0):
        client.setsockopt(level, option, value)
        assert client.getsockopt(level, option) == value
    client.sendall(b"x")
    assert server.recv(1) == b"x"


@pytest.mark.parametrize(("level", "option", "value"), NUMBERS)
def test_number_is_kept(net, level, option, value):
    client, server = net.pair()
    client.setsockopt(level, option, value)
    assert client.getsockopt(level, option) == value
    server.sendall(b"y" * 200)
    assert receive_exactly(client, 200) == b"y" * 200


def test_options_set_before_connect_and_listen_are_inherited(net):
    listener = net.new()
    listener.setsockopt(SOL, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(SOL, socket.SO_RCVLOWAT, 50)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client = net.connect(listener.getsockname())
    server = net.accept(listener)
    assert server.getsockopt(SOL, socket.SO_KEEPALIVE) == 1
    assert server.getsockopt(TCP, socket.TCP_NODELAY) == 1
    assert server.getsockopt(SOL, socket.SO_RCVLOWAT) == 50
    assert client.getsockopt(SOL, socket.SO_KEEPALIVE) == 0


def test_identity_options_tell_what_the_socket_is(net):
    client, server = net.pair(("::1", 0))
    for sock in (client, server):
        assert sock.getsockopt(SOL, socket.SO_TYPE) == socket.SOCK_STREAM
        assert sock.getsockopt(SOL, socket.SO_DOMAIN) == socket.AF_INET6
        assert sock.getsockopt(SOL, socket.SO_PROTOCOL) == TCP
        assert sock.getsockopt(SOL, socket.SO_ERROR) == 0
        assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 0


def test_socket_can_be_recognised_from_its_descriptor(net):
    client, server = net.pair()
    same = net.socket.socket(fileno=client.fileno())
    try:
        assert (same.family, same.type, same.proto) == (socket.AF_INET, socket.SOCK_STREAM, TCP)
        assert same.getpeername() == server.getsockname()
    finally:
        same.detach()
    client.sendall(b"x")
    assert server.recv(1) == b"x"


@pytest.mark.parametrize("option", [socket.SO_SNDBUF, socket.SO_RCVBUF])
def test_buffer_size_reads_back_doubled_as_the_kernel_does(net, option):
    client, _server = net.pair()
    client.setsockopt(SOL, option, 50_000)
    assert client.getsockopt(SOL, option) == 100_000
    client.setsockopt(SOL, option, 1)
    assert 1000 < client.getsockopt(SOL, option) < 10_000


def test_small_buffers_hold_back_a_fast_sender(net):
    with net.listener() as listener:
        listener.setsockopt(SOL, socket.SO_RCVBUF, 4096)
        client = net.new()
        client.setsockopt(SOL, socket.SO_SNDBUF, 4096)
        client.connect(listener.getsockname())
        server = net.accept(listener)
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(b"x" * 1000)
    assert 0 < sent < 8 << 20
    assert receive_exactly(server, sent) == b"x" * sent


def test_low_water_mark_makes_recv_wait_for_that_many_bytes(net):
    client, server = net.pair()
    server.setsockopt(SOL, socket.SO_RCVLOWAT, 10)
    reading = Background(server.recv, 100)
    eventually(lambda: asleep(reading), "the reader sleeps")
    client.sendall(b"01234")
    client.sendall(b"56789")
    assert reading.result() == b"0123456789"


def test_low_water_mark_does_not_hold_back_a_smaller_recv_or_the_end(net):
    client, server = net.pair()
    server.setsockopt(SOL, socket.SO_RCVLOWAT, 10)
    client.sendall(b"01234")
    assert server.recv(3) == b"012"
    client.close()
    assert server.recv(100) == b"34"
    assert server.recv(100) == b""


def test_low_water_mark_holds_back_select(net):
    client, server = net.pair()
    server.setsockopt(SOL, socket.SO_RCVLOWAT, 10)
    client.sendall(b"01234")
    assert net.select.select([server], [], [], 0.1)[0] == []
    client.sendall(b"56789")
    assert net.select.select([server], [], [], 20)[0] == [server]


def test_cork_holds_bytes_until_it_is_pulled_and_loses_none(net):
    client, server = net.pair()
    client.setsockopt(TCP, socket.TCP_CORK, 1)
    client.sendall(b"one ")
    client.sendall(b"two")
    client.setsockopt(TCP, socket.TCP_CORK, 0)
    assert receive_exactly(server, 7) == b"one two"


def test_error_option_reports_a_reset_once(net):
    client, server = net.pair()
    server.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    assert eventually(lambda: client.getsockopt(SOL, socket.SO_ERROR)) == errno.ECONNRESET
    assert client.getsockopt(SOL, socket.SO_ERROR) == 0
    assert client.recv(1) == b""


def test_linger_reads_back(net):
    client, _server = net.pair()
    client.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 5))
    assert struct.unpack("ii", client.getsockopt(SOL, socket.SO_LINGER, 8)) == (1, 5)


def test_receive_timeout_option_times_a_blocking_recv_out_with_eagain(net):
    _client, server = net.pair()
    server.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    with pytest.raises(BlockingIOError) as late:
        server.recv(1)
    assert late.value.errno == errno.EAGAIN


def test_send_timeout_option_times_a_blocking_send_out(net):
    client, _server = net.pair()
    client.setsockopt(SOL, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
    with pytest.raises(BlockingIOError):
        while True:
            client.send(b"x" * 65536)


def test_receive_timeout_option_ends_a_wait_for_all_with_what_has_come(net):
    client, server = net.pair()
    server.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    client.sendall(b"abc")
    assert server.recv(10, socket.MSG_WAITALL) == b"abc"


def test_send_timeout_option_ends_sendall(net):
    client, server = net.pair()
    client.setsockopt(SOL, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50_000))
    with pytest.raises(BlockingIOError):
        client.sendall(b"x" * (64 << 20))
    client.setsockopt(SOL, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
    assert set(server.recv(65536)) == set(b"x")


def test_timeout_options_of_a_listener_are_inherited(net):
    listener = net.listener()
    listener.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    client = net.connect(listener.getsockname())
    server = net.accept(listener)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_timeout_of_the_socket_object_wins_over_the_option(net):
    _client, server = net.pair()
    server.setsockopt(SOL, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
    server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.recv(1)


def test_tcp_info_follows_the_state(net):
    listener = net.listener()
    assert tcp_info(listener)["state"] == 10
    client = net.connect(listener.getsockname())
    server = net.accept(listener)
    assert tcp_info(client)["state"] == tcp_info(server)["state"] == 1
    assert tcp_info(client)["snd_mss"] > 500
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert tcp_info(server)["state"] == 8
    eventually(lambda: tcp_info(client)["state"] == 5, "FIN-WAIT-2")
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    eventually(lambda: tcp_info(server)["state"] == 7, "CLOSE after LAST-ACK")
    assert tcp_info(net.new())["state"] == 7


def test_tcp_info_may_be_asked_for_in_part(net):
    client, _server = net.pair()
    assert len(client.getsockopt(TCP, socket.TCP_INFO, 1)) == 1
    assert len(client.getsockopt(TCP, socket.TCP_INFO, 10)) == 10
    assert client.getsockopt(TCP, socket.TCP_INFO, 1) == b"\1"


def test_congestion_algorithm_is_named(net):
    client, _server = net.pair()
    name = client.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
    client.setsockopt(TCP, socket.TCP_CONGESTION, name)
    assert client.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == name


def test_device_option_takes_the_loopback_device(net):
    listener = net.listener()
    client = net.new()
    client.setsockopt(SOL, socket.SO_BINDTODEVICE, b"lo")
    client.connect(listener.getsockname())
    server = net.accept(listener)
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_unknown_option_is_enoprotoopt(net):
    client, _server = net.pair()
    for call in (lambda: client.getsockopt(TCP, 9999), lambda: client.setsockopt(TCP, 9999, 1)):
        with pytest.raises(OSError) as unknown:
            call()
        assert unknown.value.errno == errno.ENOPROTOOPT


def test_option_value_may_be_bytes_or_none_with_a_length(net):
    client, _server = net.pair()
    client.setsockopt(TCP, socket.TCP_NODELAY, (1).to_bytes(4, sys.byteorder))
    assert client.getsockopt(TCP, socket.TCP_NODELAY, 4) == (1).to_bytes(4, sys.byteorder)
    with pytest.raises(OSError) as null:
        client.setsockopt(TCP, socket.TCP_NODELAY, None, 4)
    assert null.value.errno == errno.EFAULT


def test_small_buffers_bound_what_a_peer_that_does_not_read_is_sent(net):
    with net.listener() as listener:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            listener.setsockopt(socket.SOL_SOCKET, option, 4096)
        with net.socket.socket() as client:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                client.setsockopt(socket.SOL_SOCKET, option, 4096)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                for one, other in ((client, server), (server, client)):
                    one.setblocking(False)
                    sent = 0
                    with pytest.raises(BlockingIOError):
                        while True:
                            sent += one.send(bytes(10_000))
                    assert 0 < sent < 150_000
                    other.setblocking(True)
                    while sent:
                        sent -= len(other.recv(10_000))
