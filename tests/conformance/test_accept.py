"""listen() and accept(): order, backlog, SO_REUSEPORT, early exits of the client."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from .waiting import Background, asleep, eventually


def test_accept_gives_connections_in_the_order_of_their_connects(net):
    with net.listener() as listener:
        clients = [net.connect(listener.getsockname()) for _ in range(10)]
        names = [net.accept(listener).getpeername() for _ in clients]
    assert names == [client.getsockname() for client in clients]


def test_accept_waits_for_a_connect(net):
    with net.listener() as listener:
        accepting = Background(net.accept, listener)
        eventually(lambda: asleep(accepting), "the acceptor sleeps")
        client = net.connect(listener.getsockname())
        server = accepting.result()
    client.sendall(b"hi")
    assert server.recv(2) == b"hi"
    server.sendall(b"ho")
    assert client.recv(2) == b"ho"
    net.assert_accelerated(client, server)


def test_accept_returns_a_socket_of_the_modules_class(net):
    with net.listener() as listener:
        net.connect(listener.getsockname())
        server = net.accept(listener)
    assert type(server) is net.socket.socket
    assert isinstance(server, socket.socket)
    assert (server.family, server.type, server.proto) == (socket.AF_INET, socket.SOCK_STREAM, 0)


def test_accepted_socket_is_blocking_even_if_the_listener_is_not(net):
    with net.listener() as listener:
        listener.setblocking(False)
        net.connect(listener.getsockname())
        server = net.accept(listener)
        assert server.gettimeout() is None
        assert server.getblocking()
        assert not os.get_inheritable(server.fileno())
        assert os.get_blocking(server.fileno())


def test_accept_nonblocking_with_nobody_there_is_eagain(net):
    with net.listener() as listener:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError) as nobody:
            listener.accept()
    assert nobody.value.errno == errno.EAGAIN


def test_accept_on_a_socket_that_does_not_listen_is_einval(net):
    with pytest.raises(OSError) as failed:
        net.new().accept()
    assert failed.value.errno == errno.EINVAL


def test_listener_is_marked_as_accepting(net):
    with net.listener() as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert net.new().getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def test_listen_without_bind_takes_a_port(net):
    listener = net.new()
    listener.listen()
    port = listener.getsockname()[1]
    assert port > 0
    client = net.connect(("127.0.0.1", port))
    server = net.accept(listener)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    server.sendall(b"y")
    assert client.recv(1) == b"y"
    net.assert_accelerated(client, server)


def test_listen_again_changes_the_backlog_and_keeps_the_queue(net):
    with net.listener(backlog=1) as listener:
        first = net.connect(listener.getsockname())
        listener.listen(50)
        rest = [net.connect(listener.getsockname()) for _ in range(10)]
        assert [net.accept(listener).getpeername() for _ in range(11)] == [sock.getsockname() for sock in (first, *rest)]


def test_full_backlog_makes_a_nonblocking_connect_wait_and_serves_it_later(net):
    with net.listener(backlog=0) as listener:
        first = net.connect(listener.getsockname())
        late = net.new()
        late.setblocking(False)
        assert late.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        assert net.select.select([], [late], [], 0.2)[1] == []
        assert net.accept(listener).getpeername() == first.getsockname()
        assert net.select.select([], [late], [], 20)[1] == [late]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        server = net.accept(listener)
    late.setblocking(True)
    late.sendall(b"late")
    assert server.recv(10) == b"late"
    server.sendall(b"better than never")
    assert late.recv(100) == b"better than never"


def test_full_backlog_times_a_connect_out(net):
    with net.listener(backlog=0) as listener:
        net.connect(listener.getsockname())
        late = net.new()
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())


def test_reuse_port_listeners_share_the_connections(net):
    one = net.listener(reuse_port=True, backlog=64)
    two = net.listener(one.getsockname(), reuse_port=True, backlog=64)
    clients = [net.connect(one.getsockname()) for _ in range(64)]
    names = {client.getsockname() for client in clients}
    seen = []
    for listener in (one, two):
        listener.setblocking(False)
        accepted = []
        while True:
            try:
                server, name = listener.accept()
            except BlockingIOError:
                break
            net.keep(server)
            accepted.append(name)
            client = next(client for client in clients if client.getsockname() == name)
            client.sendall(b"hello")
            server.setblocking(True)
            assert server.recv(5) == b"hello"
        assert accepted
        seen += accepted
    assert len(seen) == 64
    assert set(seen) == names


def test_bind_of_a_used_port_is_eaddrinuse(net):
    with net.listener() as listener, pytest.raises(OSError) as used:
        net.new().bind(listener.getsockname())
    assert used.value.errno == errno.EADDRINUSE


def test_client_that_closes_before_accept_leaves_its_data(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
        name = client.getsockname()
        client.sendall(b"left behind")
        client.close()
        server, peer = listener.accept()
        net.keep(server)
    assert peer == name
    assert server.recv(100) == b"left behind"
    assert server.recv(100) == b""


def test_client_that_exits_before_accept_leaves_its_data(net):
    with net.listener() as listener:
        if (child := os.fork()) == 0:
            sock = net.socket.socket()
            sock.connect(listener.getsockname())
            sock.sendall(b"x" * 5000)
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        server = net.accept(listener)
    assert server.recv(10_000, socket.MSG_WAITALL) == b"x" * 5000


def test_client_that_shuts_down_before_accept_can_still_read(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        server = net.accept(listener)
    assert server.recv(100) == b"question"
    assert server.recv(100) == b""
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"


def test_client_that_resets_before_accept_is_accepted_and_shows_the_reset(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server = net.accept(listener)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert server.recv(1) == b""


def test_closing_the_listener_resets_those_who_wait(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_data_sent_before_accept_fills_no_further_than_the_buffers(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
        client.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += client.send(b"early" * 1000)
        server = net.accept(listener)
    got = bytearray()
    while len(got) < sent:
        got += server.recv(sent - len(got))
    assert got == (b"early" * 1000 * (sent // 5000 + 1))[:sent]


def test_accept_in_several_threads_gives_each_connection_once(net):
    with net.listener() as listener:
        accepting = [Background(listener.accept) for _ in range(4)]
        clients = [net.connect(listener.getsockname()) for _ in range(4)]
        accepted = [background.result() for background in accepting]
    for sock, _ in accepted:
        net.keep(sock)
    assert {name for _, name in accepted} == {client.getsockname() for client in clients}
