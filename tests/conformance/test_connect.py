"""connect(): every local address, bind before connect, non-blocking, refusals."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest

from .interfaces import local_addresses

LOOPBACKS = ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1"]


def exchange(net, client, server):
    client.sendall(b"from the client")
    assert server.recv(100) == b"from the client"
    server.sendall(b"from the server")
    assert client.recv(100) == b"from the server"
    net.assert_accelerated(client, server)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_connect_reaches_any_loopback_address(net, pair, host):
    client, server = pair((host, 0))
    assert client.getpeername() == server.getsockname()
    assert server.getpeername() == client.getsockname()
    assert client.getpeername()[0] == host
    exchange(net, client, server)


@pytest.mark.parametrize("host", local_addresses())
def test_connect_reaches_every_interface_address(net, host):
    client, server = net.pair((host, 0))
    assert client.getpeername()[0] == server.getsockname()[0] == host
    exchange(net, client, server)


@pytest.mark.parametrize(("bound", "host"), [
    ("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.9.9.9"), ("::", "::1"),
])
def test_connect_finds_a_wildcard_listener(net, bound, host):
    with net.listener((bound, 0)) as listener:
        client = net.connect((host, listener.getsockname()[1]))
        server = net.accept(listener)
    assert server.getsockname()[:2] == client.getpeername()[:2] == (host, server.getsockname()[1])
    exchange(net, client, server)


def test_connect_to_the_unspecified_address_reaches_this_host(net):
    with net.listener(("127.0.0.1", 0)) as listener:
        client = net.connect(("0.0.0.0", listener.getsockname()[1]))
        server = net.accept(listener)
    assert client.getpeername() == server.getsockname() == ("127.0.0.1", server.getsockname()[1])
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_connect_by_name_resolves_it(net):
    with net.listener(("127.0.0.1", 0)) as listener:
        client = net.connect(("localhost", listener.getsockname()[1]), family=socket.AF_INET)
        server = net.accept(listener)
    exchange(net, client, server)


def test_connect_of_a_v4_client_to_a_dual_listener_shows_a_mapped_peer(net):
    with net.listener(("::", 0), v6only=False) as listener:
        client = net.connect(("127.0.0.1", listener.getsockname()[1]))
        server = net.accept(listener)
    assert server.family == socket.AF_INET6
    assert server.getpeername()[:2] == ("::ffff:127.0.0.1", client.getsockname()[1])
    exchange(net, client, server)


def test_connect_of_a_v6_socket_to_a_mapped_address_reaches_a_v4_listener(net):
    with net.listener() as listener:
        client = net.connect(("::ffff:127.0.0.1", listener.getsockname()[1]), family=socket.AF_INET6)
        server = net.accept(listener)
    assert server.getpeername() == ("127.0.0.1", client.getsockname()[1])
    assert client.getpeername()[:2] == ("::ffff:127.0.0.1", server.getsockname()[1])
    exchange(net, client, server)


def test_connect_of_a_v4_client_is_refused_by_a_v6_only_listener(net):
    with net.listener(("::", 0)) as listener, pytest.raises(ConnectionRefusedError):
        net.connect(("127.0.0.1", listener.getsockname()[1]))


def test_connect_does_not_find_a_listener_on_another_address(net):
    with net.listener(("127.0.0.1", 0)) as listener, pytest.raises(ConnectionRefusedError):
        net.connect(("127.0.0.2", listener.getsockname()[1]))


def test_connect_keeps_the_address_it_was_bound_to(net):
    with net.listener() as listener:
        client = net.connect(listener.getsockname(), source=("127.0.0.3", 0))
        server = net.accept(listener)
    assert client.getsockname()[0] == "127.0.0.3"
    assert server.getpeername() == client.getsockname()
    exchange(net, client, server)


def test_connect_keeps_the_port_it_was_bound_to(net):
    with net.listener() as holder:
        port = holder.getsockname()[1]
    with net.listener() as listener:
        client = net.new()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.connect(listener.getsockname())
        server = net.accept(listener)
    assert client.getsockname() == server.getpeername() == ("127.0.0.1", port)
    exchange(net, client, server)


def test_connect_to_a_closed_port_is_refused_and_may_be_tried_again(net):
    with net.listener() as holder:
        address = holder.getsockname()
    client = net.new()
    with pytest.raises(ConnectionRefusedError) as refused:
        client.connect(address)
    assert refused.value.errno == errno.ECONNREFUSED
    with net.listener(address) as listener:
        client.connect(address)
        server = net.accept(listener)
    exchange(net, client, server)


def test_connect_ex_returns_what_connect_raises(net):
    with net.listener() as holder:
        address = holder.getsockname()
    assert net.new().connect_ex(address) == errno.ECONNREFUSED
    with net.listener() as listener:
        assert net.new().connect_ex(listener.getsockname()) == 0


def test_connect_twice_is_eisconn(net):
    client, _server = net.pair()
    with pytest.raises(OSError) as again:
        client.connect(client.getpeername())
    assert again.value.errno == errno.EISCONN


def test_connect_of_a_listener_fails_and_leaves_it_listening(net):
    with net.listener() as other, net.listener() as listener:
        with pytest.raises(OSError) as failed:
            listener.connect(other.getsockname())
        assert failed.value.errno == errno.EISCONN
        client = net.connect(listener.getsockname())
        exchange(net, client, net.accept(listener))


def test_connect_nonblocking_is_in_progress_then_done(net):
    client = net.new()
    client.setblocking(False)
    with net.listener() as listener:
        with pytest.raises(BlockingIOError) as waiting:
            client.connect(listener.getsockname())
        assert waiting.value.errno == errno.EINPROGRESS
        assert select.select([], [client], [], 20)[1] == [client]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert client.connect_ex(listener.getsockname()) in (0, errno.EISCONN)
        assert client.connect_ex(listener.getsockname()) == errno.EISCONN
        server = net.accept(listener)
    client.setblocking(True)
    exchange(net, client, server)


def test_connect_nonblocking_to_a_closed_port_reports_the_refusal_in_so_error(net):
    with net.listener() as holder:
        address = holder.getsockname()
    client = net.new()
    client.setblocking(False)
    assert client.connect_ex(address) == errno.EINPROGRESS
    assert select.select([], [client], [], 20)[1] == [client]
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_connect_with_a_timeout_is_accelerated_too(net):
    client = net.new()
    client.settimeout(20)
    with net.listener() as listener:
        client.connect(listener.getsockname())
        server = net.accept(listener)
    exchange(net, client, server)


def test_connect_to_itself_makes_one_socket_that_talks_to_itself(net):
    sock = net.new()
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    assert sock.getpeername() == sock.getsockname()
    sock.sendall(b"echo")
    assert sock.recv(10) == b"echo"
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(10) == b""


def test_connect_to_af_unspec_is_refused_by_the_python_layer(net):
    client, _server = net.pair()
    with pytest.raises(TypeError):
        client.connect(None)


def test_create_connection_and_create_server_make_accelerated_sockets(net):
    with net.socket.create_server(("127.0.0.1", 0)) as listener:
        client = net.keep(net.socket.create_connection(listener.getsockname(), timeout=20,
                                                       source_address=("127.0.0.5", 0)))
        server = net.accept(listener)
    assert client.gettimeout() == 20
    assert server.getpeername()[0] == "127.0.0.5"
    exchange(net, client, server)


def test_create_server_dualstack_takes_both_families(net):
    listener = net.keep(net.socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        client = net.connect((host, port))
        exchange(net, client, net.accept(listener))


def test_closing_an_unconnected_socket_frees_its_port(net):
    sock = net.new()
    sock.bind(("127.0.0.1", 0))
    address = sock.getsockname()
    sock.close()
    again = net.new()
    again.bind(address)
    assert again.getsockname() == address
    assert os.fstat(again.fileno())
