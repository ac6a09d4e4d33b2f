"""epoll and the selectors built on it: level, edge, one shot; register, modify, unregister; the ends of streams."""

from __future__ import annotations

import errno
import select
import selectors
import socket
import struct

import pytest

from .test_select import drain, fill
from .waiting import Background, eventually

IN, OUT, PRI = select.EPOLLIN, select.EPOLLOUT, select.EPOLLPRI
ERR, HUP, RDHUP = select.EPOLLERR, select.EPOLLHUP, select.EPOLLRDHUP
ET, ONESHOT = select.EPOLLET, select.EPOLLONESHOT


@pytest.fixture
def epoll(net):
    return net.keep(net.select.epoll())


def test_level_triggered_repeats_until_the_bytes_are_read(net, epoll):
    client, server = net.pair()
    epoll.register(server, IN)
    assert epoll.poll(0) == []
    client.sendall(b"ab")
    for _ in range(3):
        assert epoll.poll(20) == [(server.fileno(), IN)]
    assert server.recv(1) == b"a"
    assert epoll.poll(0) == [(server.fileno(), IN)]
    assert server.recv(1) == b"b"
    assert epoll.poll(0) == []
    net.assert_accelerated(client, server)


def test_edge_triggered_reports_each_arrival_once(net, epoll):
    client, server = net.pair()
    epoll.register(server, IN | ET)
    for data in (b"first", b"second"):
        client.sendall(data)
        assert epoll.poll(20) == [(server.fileno(), IN)]
        assert epoll.poll(0.02) == []
    assert server.recv(100) == b"firstsecond"
    client.sendall(b"third")
    assert epoll.poll(20) == [(server.fileno(), IN)]
    net.assert_accelerated(client, server)


def test_edge_triggered_reports_what_was_there_at_registration(net, epoll):
    client, server = net.pair()
    client.sendall(b"early")
    assert net.select.select([server], [], [], 20)[0] == [server]
    epoll.register(server, IN | OUT | ET)
    assert epoll.poll(20) == [(server.fileno(), IN | OUT)]
    assert epoll.poll(0.02) == []


def test_edge_triggered_writable_comes_back_after_full(net, epoll):
    client, server = net.pair()
    epoll.register(client, OUT | ET)
    assert epoll.poll(20) == [(client.fileno(), OUT)]
    sent = fill(client)
    assert epoll.poll(0.02) == []
    reading = Background(drain, server, sent)
    assert epoll.poll(20) == [(client.fileno(), OUT)]
    reading.result()


def test_one_shot_reports_once_until_it_is_armed_again(net, epoll):
    client, server = net.pair()
    epoll.register(server, IN | ONESHOT)
    client.sendall(b"x")
    assert epoll.poll(20) == [(server.fileno(), IN)]
    client.sendall(b"y")
    assert epoll.poll(0.02) == []
    epoll.modify(server, IN | ONESHOT)
    assert epoll.poll(20) == [(server.fileno(), IN)]
    assert epoll.poll(0.02) == []


def test_modify_changes_what_is_watched(net, epoll):
    client, server = net.pair()
    epoll.register(server, OUT)
    assert epoll.poll(20) == [(server.fileno(), OUT)]
    epoll.modify(server, IN)
    assert epoll.poll(0) == []
    client.sendall(b"x")
    assert epoll.poll(20) == [(server.fileno(), IN)]
    epoll.modify(server.fileno(), IN | OUT)
    assert epoll.poll(20) == [(server.fileno(), IN | OUT)]
    epoll.modify(server, 0)
    assert epoll.poll(0) == []


def test_unregister_stops_it(net, epoll):
    client, server = net.pair()
    epoll.register(server, IN)
    client.sendall(b"x")
    assert epoll.poll(20) == [(server.fileno(), IN)]
    epoll.unregister(server)
    assert epoll.poll(0) == []
    epoll.register(server.fileno(), IN)
    assert epoll.poll(20) == [(server.fileno(), IN)]


def test_register_before_connect_reports_the_connection(net, epoll):
    listener = net.listener()
    client = net.new()
    client.setblocking(False)
    epoll.register(client, IN | OUT)
    assert epoll.poll(0) == [(client.fileno(), OUT | HUP)]
    client.connect_ex(listener.getsockname())
    assert eventually(lambda: epoll.poll(0) == [(client.fileno(), OUT)])
    server = net.accept(listener)
    server.sendall(b"x")
    assert eventually(lambda: epoll.poll(0) == [(client.fileno(), IN | OUT)])
    assert client.recv(1) == b"x"


def test_listener_is_readable_while_somebody_waits(net, epoll):
    listener = net.listener()
    epoll.register(listener, IN)
    assert epoll.poll(0) == []
    net.connect(listener.getsockname())
    assert epoll.poll(20) == [(listener.fileno(), IN)]
    net.accept(listener)
    assert epoll.poll(0) == []


def test_half_close_and_close_are_told_apart(net, epoll):
    client, server = net.pair()
    epoll.register(server, IN | OUT | RDHUP)
    client.shutdown(socket.SHUT_WR)
    assert eventually(lambda: epoll.poll(0) == [(server.fileno(), IN | OUT | RDHUP)])
    server.shutdown(socket.SHUT_WR)
    assert eventually(lambda: epoll.poll(0) == [(server.fileno(), IN | OUT | RDHUP | HUP)])


def test_reset_is_an_error_and_a_hang_up(net, epoll):
    client, server = net.pair()
    epoll.register(server, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert eventually(lambda: epoll.poll(0) == [(server.fileno(), ERR | HUP)])
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert epoll.poll(0) == [(server.fileno(), HUP)]


def test_wait_ends_for_a_close_by_the_peer(net, epoll):
    client, server = net.pair()
    epoll.register(server, IN)
    waiting = Background(epoll.poll, 20)
    client.close()
    assert waiting.result() == [(server.fileno(), IN)]


def test_close_of_a_watched_socket_removes_it(net, epoll):
    client, server = net.pair()
    other, peer = net.pair()
    epoll.register(server, IN)
    epoll.register(peer, IN)
    client.sendall(b"x")
    server.close()
    other.sendall(b"y")
    assert epoll.poll(20) == [(peer.fileno(), IN)]
    assert epoll.poll(0) == [(peer.fileno(), IN)]


def test_maxevents_limits_one_answer_and_none_is_forgotten(net, epoll):
    pairs = [net.pair() for _ in range(10)]
    for client, server in pairs:
        epoll.register(server, IN)
        client.sendall(b"x")
    assert eventually(lambda: len(got := epoll.poll(0)) == 10 and got)
    seen = set()
    for _ in range(10):
        [(number, event)] = epoll.poll(20, 1)
        assert event == IN
        server = next(server for _, server in pairs if server.fileno() == number)
        assert server.recv(1) == b"x"
        seen.add(number)
    assert seen == {server.fileno() for _, server in pairs}


def test_wrong_calls_are_refused_as_the_kernel_does(net, epoll):
    client, _server = net.pair()
    epoll.register(client, IN)
    with pytest.raises(FileExistsError):
        epoll.register(client, IN)
    epoll.unregister(client)
    for call in (lambda: epoll.modify(client, IN), lambda: epoll.unregister(client)):
        with pytest.raises(FileNotFoundError):
            call()
    with pytest.raises(TypeError):
        epoll.register("x", IN)
    with pytest.raises(ValueError):
        epoll.poll(1, -5)
    with pytest.raises(OSError) as bad:
        epoll.register(9999, IN)
    assert bad.value.errno == errno.EBADF


def test_closed_epoll_answers_value_error(net, epoll):
    client, _server = net.pair()
    assert not epoll.closed
    epoll.close()
    assert epoll.closed
    epoll.close()
    for call in (epoll.fileno, lambda: epoll.poll(0), lambda: epoll.register(client, IN)):
        with pytest.raises(ValueError, match="closed epoll"):
            call()


def test_epoll_is_a_context_manager_and_can_itself_be_watched(net):
    client, server = net.pair()
    with net.select.epoll() as inner, net.select.epoll() as outer:
        inner.register(server, IN)
        outer.register(inner.fileno(), IN)
        assert outer.poll(0) == []
        client.sendall(b"x")
        assert outer.poll(20) == [(inner.fileno(), IN)]
        assert inner.poll(0) == [(server.fileno(), IN)]
    assert inner.closed


def test_ping_pong_through_epoll_never_misses_a_byte(net, epoll):
    client, server = net.pair()
    for sock in (client, server):
        sock.setblocking(False)
        epoll.register(sock, IN | ET)
    client.sendall(b"x")
    turns = {client.fileno(): 0, server.fileno(): 0}
    sockets = {sock.fileno(): sock for sock in (client, server)}
    while min(turns.values()) < 300:
        [(number, event)] = epoll.poll(20)
        assert event == IN
        assert sockets[number].recv(10) == b"x"
        turns[number] += 1
        sockets[number].sendall(b"x")
    net.assert_accelerated(client, server)


@pytest.mark.parametrize("kind", ["SelectSelector", "PollSelector", "EpollSelector", "DefaultSelector"])
def test_standard_selectors_serve_our_sockets(net, kind):
    client, server = net.pair()
    with getattr(selectors, kind)() as selector:
        key = selector.register(server, selectors.EVENT_READ, "data")
        assert selector.select(0) == []
        client.sendall(b"x")
        assert selector.select(20) == [(key, selectors.EVENT_READ)]
        assert server.recv(1) == b"x"
        assert selector.select(0) == []
        key = selector.modify(server, selectors.EVENT_WRITE)
        assert selector.select(20) == [(key, selectors.EVENT_WRITE)]
