"""select and poll: the sockets that are ready, and why."""

from __future__ import annotations

import select
import socket
import struct
import time

import pytest

from .waiting import Background, eventually

IN, OUT, PRI = select.POLLIN, select.POLLOUT, select.POLLPRI
ERR, HUP, RDHUP, NVAL = select.POLLERR, select.POLLHUP, select.POLLRDHUP, select.POLLNVAL


def fill(sock):
    """Send until the buffers are full; return how much that was."""
    sock.setblocking(False)
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except BlockingIOError:
        return sent


def drain(sock, count):
    while count:
        count -= len(sock.recv(count))


def test_select_says_readable_only_with_bytes(net):
    client, server = net.pair()
    assert net.select.select([client, server], [], [], 0) == ([], [], [])
    client.sendall(b"x")
    assert net.select.select([client, server], [], [], 20) == ([server], [], [])
    assert server.recv(10) == b"x"
    assert net.select.select([client, server], [], [], 0) == ([], [], [])
    net.assert_accelerated(client, server)


def test_select_says_writable_until_full(net):
    client, server = net.pair()
    assert net.select.select([], [client, server], [], 20) == ([], [client, server], [])
    sent = fill(client)
    assert net.select.select([], [client], [], 0.05) == ([], [], [])
    reading = Background(drain, server, sent)
    assert net.select.select([], [client], [], 20) == ([], [client], [])
    reading.result()


def test_select_wakes_for_bytes_that_come_later(net):
    client, server = net.pair()
    waiting = Background(net.select.select, [server], [], [], 20)
    eventually(waiting.is_alive)
    client.sendall(b"x")
    assert waiting.result() == ([server], [], [])


def test_select_wakes_for_bytes_from_another_process(net, pair):
    client, server = pair()
    here, there = (server, client) if isinstance(server, socket.socket) else (client, server)
    waiting = Background(net.select.select, [here], [], [], 20)
    there.sendall(b"x")
    assert waiting.result() == ([here], [], [])
    assert here.recv(10) == b"x"


def test_select_says_a_listener_is_readable_when_somebody_waits(net):
    listener = net.listener()
    assert net.select.select([listener], [], [], 0) == ([], [], [])
    client = net.connect(listener.getsockname())
    assert net.select.select([listener, client], [], [], 20) == ([listener], [], [])
    net.accept(listener)
    assert net.select.select([listener], [], [], 0) == ([], [], [])


def test_select_says_the_end_is_readable(net):
    client, server = net.pair()
    client.close()
    for _ in range(2):
        assert net.select.select([server], [], [], 20) == ([server], [], [])
        assert server.recv(1) == b""


def test_select_says_a_reset_is_readable_and_writable(net):
    client, server = net.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert net.select.select([server], [], [], 20) == ([server], [], [])
    assert net.select.select([server], [server], [], 20) == ([server], [server], [])


def test_select_mixes_sockets_of_all_kinds_files_and_numbers(net):
    client, server = net.pair()
    one, two = map(net.keep, socket.socketpair())
    client.sendall(b"x")
    two.sendall(b"y")
    assert net.select.select([server], [], [], 20)[0] == [server]
    ready = net.select.select([one, server, client.fileno()], [one.fileno()], [server], 20)
    assert ready == ([one, server], [one.fileno()], [])
    assert net.select.select([server.fileno()], [], [], 20)[0] == [server.fileno()]


def test_select_waits_its_time_and_not_less(net):
    client, _server = net.pair()
    started = time.monotonic()
    assert net.select.select([client], [], [], 0.1) == ([], [], [])
    assert time.monotonic() - started >= 0.1


def test_select_refuses_what_it_cannot_watch(net):
    client, _server = net.pair()
    client.close()
    with pytest.raises(ValueError, match="negative"):
        net.select.select([client], [], [], 0)
    with pytest.raises(TypeError):
        net.select.select(["x"], [], [], 0)
    with pytest.raises(TypeError):
        net.select.select([], [], [], "x")
    with pytest.raises(ValueError):
        net.select.select([], [], [], -1)


def test_poll_reports_what_it_was_asked_for(net):
    client, server = net.pair()
    poll = net.select.poll()
    poll.register(server, IN | OUT)
    assert poll.poll(0) == [(server.fileno(), OUT)]
    client.sendall(b"x")
    poll.modify(server, IN)
    assert poll.poll(20_000) == [(server.fileno(), IN)]
    poll.modify(server.fileno(), IN | OUT)
    assert poll.poll(0) == [(server.fileno(), IN | OUT)]
    poll.unregister(server)
    assert poll.poll(0) == []
    assert server.recv(1) == b"x"
    net.assert_accelerated(client, server)


def test_poll_reports_the_half_close_of_the_peer(net):
    client, server = net.pair()
    poll = net.select.poll()
    poll.register(server, IN | RDHUP)
    client.shutdown(socket.SHUT_WR)
    assert poll.poll(20_000) == [(server.fileno(), IN | RDHUP)]
    server.shutdown(socket.SHUT_WR)
    assert eventually(lambda: (got := poll.poll(0)) == [(server.fileno(), IN | RDHUP | HUP)] and got)


def test_poll_reports_a_hang_up_without_being_asked(net):
    client, server = net.pair()
    poll = net.select.poll()
    poll.register(server, 0)
    assert poll.poll(0) == []
    client.close()
    server.shutdown(socket.SHUT_WR)
    assert poll.poll(20_000) == [(server.fileno(), HUP)]


def test_poll_reports_a_reset(net):
    client, server = net.pair()
    poll = net.select.poll()
    poll.register(server, IN | OUT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert eventually(lambda: (got := poll.poll(0)) == [(server.fileno(), IN | OUT | ERR | HUP)] and got)


def test_poll_reports_an_unconnected_socket_as_hung_up(net):
    sock = net.new()
    poll = net.select.poll()
    poll.register(sock, IN | OUT)
    assert poll.poll(0) == [(sock.fileno(), OUT | HUP)]


def test_poll_reports_a_closed_descriptor(net):
    client, _server = net.pair()
    number = client.fileno()
    poll = net.select.poll()
    poll.register(client, IN)
    client.close()
    assert poll.poll(0) == [(number, NVAL)]


def test_poll_waits_for_another_thread(net):
    client, server = net.pair()
    poll = net.select.poll()
    poll.register(server, IN)
    waiting = Background(poll.poll, 20_000)
    client.sendall(b"x")
    assert waiting.result() == [(server.fileno(), IN)]


def test_poll_refuses_what_was_never_registered(net):
    client, _server = net.pair()
    poll = net.select.poll()
    with pytest.raises(FileNotFoundError):
        poll.modify(client, IN)
    with pytest.raises(KeyError):
        poll.unregister(client)
    with pytest.raises(TypeError):
        poll.register("x")
    with pytest.raises(ValueError):
        poll.register(-1)


def test_poll_sees_an_urgent_byte_as_priority(net):
    client, server = net.pair()
    poll = net.select.poll()
    poll.register(server, PRI)
    client.send(b"!", socket.MSG_OOB)
    assert poll.poll(20_000) == [(server.fileno(), PRI)]
