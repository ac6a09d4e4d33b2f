"""The end of a connection: half closes, EOF after the last byte, resets, broken pipes."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from .remote import at
from .streams import MIB, pattern, receive_all, receive_exactly
from .waiting import Background, asleep, eventually

LINGER_0 = struct.pack("ii", 1, 0)
WAITALL = socket.MSG_WAITALL
TCP_FIN_WAIT2, TCP_CLOSE = 5, 7


def send_until_it_fails(sock):
    """Send until the kernel has seen the peer's reset; return the error."""
    try:
        while True:
            sock.send(b"x" * 1000)
    except OSError as error:
        return type(error), error.errno


def first_byte(sock):
    """Wait until there is something to read."""
    return sock.recv(1, socket.MSG_PEEK)


def state(sock) -> int:
    """Return the TCP state in the kernel's numbers."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_close_is_the_end_of_the_peers_stream(net, pair):
    client, server = pair()
    client.close()
    assert server.recv(10) == b""
    assert server.recv(10) == b""


def test_close_comes_after_the_last_byte(net, pair):
    for size in (1, 64, 5000, 300_000):
        client, server = pair()
        sending = Background(client.sendall, pattern(size))
        got = receive_exactly(server, size - 1)
        sending.result()
        client.close()
        assert got + receive_all(server) == pattern(size)


def test_close_with_much_in_flight_delivers_all_of_it(net, pair):
    client, server = pair()

    reading = Background(at, server, receive_all)
    client.sendall(pattern(5 * MIB))
    client.close()
    assert reading.result() == pattern(5 * MIB)


def test_close_by_the_server_is_the_end_of_the_clients_stream(net, pair):
    client, server = pair()
    server.sendall(b"bye")
    server.close()
    assert client.recv(10) == b"bye"
    assert client.recv(10) == b""


def test_close_wakes_a_reader_in_recv(net, pair):
    client, server = pair()
    reading = Background(server.recv, 10)
    client.close()
    assert reading.result() == b""


def test_half_close_ends_one_direction_only(net, pair):
    for first, second in ((0, 1), (1, 0)):
        ends = pair()
        near, far = ends[first], ends[second]
        near.sendall(b"request")
        near.shutdown(socket.SHUT_WR)
        assert receive_all(far) == b"request"
        far.sendall(b"response")
        far.sendall(b", much later")
        assert receive_exactly(near, 20) == b"response, much later"
        net.assert_ring(near, far)
        far.close()
        assert near.recv(10) == b""


def test_half_close_by_both_ends_ends_both_directions(net, pair):
    client, server = pair()
    client.sendall(b"c")
    server.sendall(b"s")
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"s"
    assert receive_all(server) == b"c"


def test_half_close_then_megabytes_the_other_way(net, pair):
    client, server = pair()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    sending = Background(server.sendall, pattern(8 * MIB))
    assert client.recv(8 * MIB, WAITALL) == pattern(8 * MIB)
    sending.result()
    net.assert_ring(client, server)


def test_send_after_shutdown_write_is_epipe(net, pair):
    client, _server = pair()
    client.shutdown(socket.SHUT_WR)
    for _ in range(2):
        with pytest.raises(BrokenPipeError) as broken:
            client.send(b"x")
        assert broken.value.errno == errno.EPIPE


def test_shutdown_write_twice_is_allowed(net, pair):
    client, server = pair()
    client.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""


def test_shutdown_read_ends_my_reads_but_not_the_peers_writes(net, pair):
    client, server = pair()
    client.shutdown(socket.SHUT_RD)
    assert client.recv(10) == b""
    assert server.send(b"x") == 1
    client.sendall(b"still sending")
    assert server.recv(100) == b"still sending"


def test_shutdown_read_wakes_a_reader_of_the_same_socket(net):
    client, _server = net.pair()
    reading = Background(client.recv, 10)
    eventually(lambda: asleep(reading), "the reader sleeps")
    client.shutdown(socket.SHUT_RD)
    assert reading.result() == b""


def test_shutdown_read_leaves_what_had_arrived(net):
    client, server = net.pair()
    server.sendall(b"already here")
    assert first_byte(client)
    client.shutdown(socket.SHUT_RD)
    assert client.recv(100) == b"already here"
    assert client.recv(100) == b""


def test_shutdown_both_ends_both_directions(net, pair):
    client, server = pair()
    client.sendall(b"last")
    client.shutdown(socket.SHUT_RDWR)
    assert server.recv(10) == b"last"
    assert server.recv(10) == b""
    assert client.recv(10) == b""
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


def test_shutdown_after_both_directions_ended_is_enotconn(net, pair):
    client, server = pair()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.close()
    assert client.recv(1) == b""
    eventually(lambda: at(client, state) != TCP_FIN_WAIT2, "the connection left FIN-WAIT-2")
    with pytest.raises(OSError) as gone:
        client.shutdown(socket.SHUT_RDWR)
    assert gone.value.errno == errno.ENOTCONN


def test_send_after_the_peers_close_works_once_and_then_breaks(net, pair):
    client, server = pair()
    server.close()
    assert client.recv(1) == b""
    assert client.send(b"x") == 1
    eventually(lambda: at(client, state) == TCP_CLOSE, "the peer's reset")
    assert at(client, send_until_it_fails) == (BrokenPipeError, errno.EPIPE)


def test_close_with_unread_data_resets_the_peer(net, pair):
    client, server = pair()
    client.sendall(b"never read")
    assert at(server, first_byte)
    server.close()
    with pytest.raises(ConnectionResetError) as reset:
        client.recv(10)
    assert reset.value.errno == errno.ECONNRESET
    assert client.recv(10) == b""
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


def test_close_with_unread_data_after_a_partial_read_resets_the_peer(net, pair):
    client, server = pair()
    client.sendall(b"half read")
    assert server.recv(4) == b"half"
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(10)


def test_close_with_unread_data_discards_what_was_on_its_way_to_the_peer(net, pair):
    client, server = pair()
    client.sendall(b"unread")
    assert at(server, first_byte)
    server.sendall(b"answer")
    assert at(client, first_byte)
    server.close()
    eventually(lambda: at(client, state) == TCP_CLOSE, "the reset")
    assert client.recv(10, socket.MSG_PEEK) == b"answer"
    assert client.recv(10) == b"answer"
    with pytest.raises(ConnectionResetError):
        client.recv(10)


def test_linger_zero_resets_the_peer(net, pair):
    client, server = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(10)
    assert server.recv(10) == b""


def test_linger_with_time_waits_for_nothing_when_all_was_read(net, pair):
    client, server = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    client.sendall(b"x" * 1000)
    assert receive_exactly(server, 1000) == b"x" * 1000
    closing = Background(client.close)
    assert server.recv(1) == b""
    closing.result()


def test_reset_wakes_a_reader_and_a_writer(net):
    client, server = net.pair()
    writing = Background(send_until_it_fails, client)
    eventually(lambda: asleep(writing), "the writer sleeps")
    reading = Background(client.recv, 10)
    eventually(lambda: asleep(reading), "the reader sleeps")
    server.close()
    endings = {writing.result()[1]}
    try:
        endings.add(reading.result() or "end")
    except ConnectionResetError as error:
        endings.add(error.errno)
    assert errno.ECONNRESET in endings
    assert endings <= {errno.ECONNRESET, errno.EPIPE, "end"}


def fill(sock, *, most):
    """Send without waiting until nothing fits, or `most` bytes are under way; return how many went."""
    sock.settimeout(0)
    sent = 0
    try:
        while sent < most:
            sent += sock.send(pattern(10_000))
    except BlockingIOError:
        pass
    sock.settimeout(10)
    return sent


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("most", [20_000, 20 * MIB])
def test_reset_reaches_a_sender_wherever_the_unread_bytes_are(net, pair, most, turns):
    client, server = pair()
    under_way = fill(client, most=most)
    for _ in range(turns):
        under_way -= len(receive_exactly(server, under_way * 9 // 10))
        under_way += fill(client, most=1)
    assert under_way
    server.close()
    eventually(lambda: at(client, state) == TCP_CLOSE, "the reset")
    with pytest.raises(ConnectionResetError):
        client.send(b"x" * 10)
    with pytest.raises(BrokenPipeError):
        client.send(b"x" * 10)
    assert client.recv(1) == b""


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_reset_is_told_once_by_the_next_call(net, pair, size):
    client, server = pair()
    client.sendall(b"never read")
    assert at(server, first_byte)
    server.close()
    eventually(lambda: at(client, state) == TCP_CLOSE, "the reset")
    with pytest.raises(ConnectionResetError):
        client.sendall(b"x" * size)
    with pytest.raises(BrokenPipeError):
        client.sendall(b"x" * size)
