"""What is left of a socket after close(): nothing, whoever closed it and how often."""

from __future__ import annotations

import errno
import gc
import os
import socket
import warnings

import pytest

from .waiting import Background, asleep, eventually

CALLS = {
    "recv": lambda sock: sock.recv(1),
    "recv_into": lambda sock: sock.recv_into(bytearray(1)),
    "recvfrom": lambda sock: sock.recvfrom(1),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(1)),
    "recvmsg": lambda sock: sock.recvmsg(1),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(1)]),
    "send": lambda sock: sock.send(b"x"),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 9)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "accept": lambda sock: sock.accept(),
    "bind": lambda sock: sock.bind(("127.0.0.1", 0)),
    "listen": lambda sock: sock.listen(),
    "connect": lambda sock: sock.connect(("127.0.0.1", 9)),
    "shutdown": lambda sock: sock.shutdown(socket.SHUT_RDWR),
    "getsockname": lambda sock: sock.getsockname(),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockopt": lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    "setsockopt": lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "setblocking": lambda sock: sock.setblocking(False),
    "settimeout": lambda sock: sock.settimeout(1),
    "dup": lambda sock: sock.dup(),
}


@pytest.mark.parametrize("call", CALLS)
def test_closed_socket_answers_ebadf(net, call):
    client, _server = net.pair()
    client.close()
    with pytest.raises(OSError) as closed:
        CALLS[call](client)
    assert closed.value.errno == errno.EBADF


@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom", "recvmsg", "send", "sendall", "sendmsg",
                                  "getpeername"])
def test_unconnected_socket_answers_enotconn_or_epipe(net, call):
    with pytest.raises(OSError) as unconnected:
        CALLS[call](net.new())
    assert unconnected.value.errno == (errno.EPIPE if call.startswith("send") else errno.ENOTCONN)


@pytest.mark.parametrize("call", ["recv", "recvmsg", "send", "sendall", "getpeername", "shutdown"])
def test_listener_answers_as_an_unconnected_socket(net, call):
    with net.listener() as listener:
        if call == "shutdown":
            assert CALLS[call](listener) is None
            return
        with pytest.raises(OSError) as unconnected:
            CALLS[call](listener)
        assert unconnected.value.errno == (errno.EPIPE if call.startswith("send") else errno.ENOTCONN)


def test_shutdown_of_an_unconnected_socket_is_enotconn(net):
    with pytest.raises(OSError) as unconnected:
        net.new().shutdown(socket.SHUT_WR)
    assert unconnected.value.errno == errno.ENOTCONN


def test_shutdown_with_another_word_is_einval(net):
    client, _server = net.pair()
    for how in (3, -1):
        with pytest.raises(OSError) as wrong:
            client.shutdown(how)
        assert wrong.value.errno == errno.EINVAL


def test_shutdown_wakes_a_waiting_accept(net):
    with net.listener() as listener:
        accepting = Background(listener.accept)
        eventually(lambda: asleep(accepting), "the acceptor sleeps")
        listener.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError) as ended:
            accepting.result()
        assert ended.value.errno == errno.EINVAL


def test_close_twice_is_allowed(net):
    client, server = net.pair()
    client.close()
    client.close()
    assert server.recv(1) == b""


def test_closed_socket_has_no_descriptor_but_keeps_its_kind(net):
    client, _server = net.pair()
    client.close()
    assert client.fileno() == -1
    assert (client.family, client.type, client.proto) == (socket.AF_INET, socket.SOCK_STREAM, 0)
    assert "[closed]" in repr(client)


def test_repr_shows_addresses_while_open(net):
    client, server = net.pair()
    assert f"laddr={client.getsockname()}" in repr(client)
    assert f"raddr={server.getsockname()}" in repr(client)
    assert f"fd={client.fileno()}" in repr(client)


def test_context_manager_closes(net):
    client, server = net.pair()
    with client as same:
        assert same is client
    assert client.fileno() == -1
    assert server.recv(1) == b""


def test_forgotten_socket_closes_its_connection_with_a_warning(net):
    client, server = net.pair()
    listener = net.listener()
    forgotten = net.socket.socket()
    forgotten.connect(listener.getsockname())
    server = net.accept(listener)
    forgotten.sendall(b"last words")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del forgotten
        gc.collect()
    assert any(issubclass(warning.category, ResourceWarning) for warning in caught)
    assert server.recv(100) == b"last words"
    assert server.recv(100) == b""
    client.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("turns", [1, 20])
def test_forgotten_socket_with_unread_bytes_resets_its_connection(net, turns):
    listener = net.listener()
    for _ in range(turns):
        client = net.connect(listener.getsockname())
        forgotten, _ = listener.accept()
        client.sendall(b"x")
        forgotten.recv(1)
        client.sendall(b"unread")
        forgotten.sendall(b"sent before")
        del forgotten
        gc.collect()
        client.settimeout(10)
        assert client.recv(100) == b"sent before"
        with pytest.raises(ConnectionResetError):
            client.recv(100)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_forgotten_listener_refuses(net):
    listener = net.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    del listener
    gc.collect()
    with pytest.raises(ConnectionRefusedError):
        net.new().connect(address)


def test_reuse_of_a_descriptor_number_does_not_mix_connections(net):
    client, server = net.pair()
    number = client.fileno()
    server.sendall(b"for the first")
    client.close()
    again, peer = net.pair()
    assert number in (again.fileno(), peer.fileno()) or number < min(again.fileno(), peer.fileno())
    peer.sendall(b"for the second")
    assert again.recv(100) == b"for the second"
    net.assert_accelerated(again, peer)


def test_close_by_another_thread_leaves_later_calls_with_ebadf(net):
    client, server = net.pair()
    Background(client.close).result()
    with pytest.raises(OSError) as closed:
        client.recv(1)
    assert closed.value.errno == errno.EBADF
    assert server.recv(1) == b""


def test_close_by_another_thread_does_not_harm_a_waiting_reader(net):
    """The kernel keeps the connection until the waiting call returns; it still gets its bytes, and the peer the end."""
    client, server = net.pair()
    reading = Background(client.recv, 100)
    eventually(lambda: asleep(reading), "the reader sleeps")
    client.close()
    server.sendall(b"for the one who waits")
    assert reading.result() == b"for the one who waits"
    assert server.recv(1) == b""


def test_child_forked_after_such_a_close_does_not_hold_the_connection(net):
    client, server = net.pair()
    reading = Background(client.recv, 100)
    eventually(lambda: asleep(reading), "the reader sleeps")
    client.close()
    until, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(until, 1)
        os._exit(0)
    os.close(until)
    try:
        server.sendall(b"x")
        assert reading.result() == b"x"
        assert server.recv(1) == b""
    finally:
        os.close(end)
        os.waitpid(child, 0)


def test_module_close_closes_a_descriptor(net):
    client, server = net.pair()
    net.socket.close(client.detach())
    assert server.recv(1) == b""
