"""Wrong arguments: the same type of exception, the same errno, and the socket still works."""

from __future__ import annotations

import errno
import socket

import pytest

WRONG_TYPE = {
    "recv()": lambda sock: sock.recv(),
    "recv(text)": lambda sock: sock.recv("1"),
    "recv(float)": lambda sock: sock.recv(1.0),
    "recv(None)": lambda sock: sock.recv(None),
    "recv(1, text)": lambda sock: sock.recv(1, "2"),
    "recv(1, 2, 3)": lambda sock: sock.recv(1, 2, 3),
    "recv(size=1)": lambda sock: sock.recv(size=1),
    "send()": lambda sock: sock.send(),
    "send(text)": lambda sock: sock.send("text"),
    "send(None)": lambda sock: sock.send(None),
    "send(int)": lambda sock: sock.send(5),
    "send(list)": lambda sock: sock.send([b"x"]),
    "send(b, 0, 0)": lambda sock: sock.send(b"x", 0, 0),
    "sendall(text)": lambda sock: sock.sendall("text"),
    "sendall()": lambda sock: sock.sendall(),
    "sendto(b)": lambda sock: sock.sendto(b"x"),
    "sendto(text, address)": lambda sock: sock.sendto("x", ("127.0.0.1", 9)),
    "sendmsg(bytes of int)": lambda sock: sock.sendmsg(5),
    "sendmsg([text])": lambda sock: sock.sendmsg(["x"]),
    "recv_into(bytes)": lambda sock: sock.recv_into(b"read only"),
    "recv_into()": lambda sock: sock.recv_into(),
    "recv_into(text)": lambda sock: sock.recv_into("x"),
    "recvfrom_into(bytes)": lambda sock: sock.recvfrom_into(b"x"),
    "recvfrom(text)": lambda sock: sock.recvfrom("x"),
    "recvmsg()": lambda sock: sock.recvmsg(),
    "recvmsg_into(int)": lambda sock: sock.recvmsg_into(5),
    "recvmsg_into([bytes])": lambda sock: sock.recvmsg_into([b"x"]),
    "bind(text)": lambda sock: sock.bind("127.0.0.1"),
    "bind(one)": lambda sock: sock.bind(("127.0.0.1",)),
    "bind(port text)": lambda sock: sock.bind(("127.0.0.1", "80")),
    "connect(None)": lambda sock: sock.connect(None),
    "connect(three)": lambda sock: sock.connect(("127.0.0.1", 1, 2)),
    "listen(text)": lambda sock: sock.listen("x"),
    "shutdown()": lambda sock: sock.shutdown(),
    "shutdown(text)": lambda sock: sock.shutdown("x"),
    "getsockopt(1)": lambda sock: sock.getsockopt(1),
    "setsockopt(1, 2)": lambda sock: sock.setsockopt(1, 2),
    "setsockopt(1, 2, text)": lambda sock: sock.setsockopt(1, 2, "x"),
    "accept(1)": lambda sock: sock.accept(1),
    "fileno(1)": lambda sock: sock.fileno(1),
    "close(1)": lambda sock: sock.close(1),
    "makefile(1)": lambda sock: sock.makefile(1),
}
WRONG_VALUE = {
    "recv(-1)": lambda sock: sock.recv(-1),
    "recvfrom(-1)": lambda sock: sock.recvfrom(-1),
    "recvmsg(-1)": lambda sock: sock.recvmsg(-1),
    "recvmsg(1, -1)": lambda sock: sock.recvmsg(1, -1),
    "recv_into(buffer, -1)": lambda sock: sock.recv_into(bytearray(4), -1),
    "recv_into(buffer, too many)": lambda sock: sock.recv_into(bytearray(4), 5),
    "recvfrom_into(buffer, -1)": lambda sock: sock.recvfrom_into(bytearray(4), -1),
    "recvfrom_into(buffer, too many)": lambda sock: sock.recvfrom_into(bytearray(4), 5),
}
TOO_LARGE = {
    "recv(1 << 70)": lambda sock: sock.recv(1 << 70),
    "recv(1, 1 << 40)": lambda sock: sock.recv(1, 1 << 40),
    "send(b, 1 << 40)": lambda sock: sock.send(b"x", 1 << 40),
    "connect(port 65536)": lambda sock: sock.connect(("127.0.0.1", 65536)),
    "connect(port -1)": lambda sock: sock.connect(("127.0.0.1", -1)),
    "bind(port 65536)": lambda sock: sock.bind(("127.0.0.1", 65536)),
    "listen(1 << 40)": lambda sock: sock.listen(1 << 40),
}
WRONG_TOGETHER = {      # which of two mistakes is told
    "recv(text, too large)": lambda sock: sock.recv("1", 1 << 40),
    "recvfrom(1, text)": lambda sock: sock.recvfrom(1, "2"),
    "recvmsg(1, text)": lambda sock: sock.recvmsg(1, "2"),
    "recvmsg(-1, -1)": lambda sock: sock.recvmsg(-1, -1),
    "recvmsg(1, 0, too large)": lambda sock: sock.recvmsg(1, 0, 1 << 40),
    "recvmsg_into(buffers, -1)": lambda sock: sock.recvmsg_into([bytearray(1)], -1),
    "recv_into(buffer, 5, text)": lambda sock: sock.recv_into(bytearray(4), 5, "x"),
    "recv_into(bytes, -1)": lambda sock: sock.recv_into(b"x", -1),
    "recv_into(size=1)": lambda sock: sock.recv_into(bytearray(4), size=1),
    "recv_into(buffer, nbytes=5)": lambda sock: sock.recv_into(bytearray(4), nbytes=5),
    "recvfrom_into(nbytes=5)": lambda sock: sock.recvfrom_into(nbytes=5),
    "send(text, too large)": lambda sock: sock.send("x", 1 << 40),
    "send(b, 0, 0, None)": lambda sock: sock.send(b"x", 0, 0, None),
    "sendall(b, 0, 0)": lambda sock: sock.sendall(b"x", 0, 0),
    "sendall(every second)": lambda sock: sock.sendall(memoryview(b"abcd")[::2]),
    "sendto(b, int)": lambda sock: sock.sendto(b"x", 5),
    "sendto(b, text, None)": lambda sock: sock.sendto(b"x", "0", None),
    "sendmsg([b], [], text)": lambda sock: sock.sendmsg([b"x"], [], "0"),
    "sendmsg([every second])": lambda sock: sock.sendmsg([memoryview(b"abcd")[::2]]),
}


def still_works(client, server):
    client.sendall(b"still")
    assert server.recv(10) == b"still"
    server.sendall(b"works")
    assert client.recv(10) == b"works"


@pytest.mark.parametrize(("calls", "error"), [
    (WRONG_TYPE, TypeError), (WRONG_VALUE, ValueError), (TOO_LARGE, OverflowError),
], ids=["type", "value", "overflow"])
def test_wrong_arguments_raise_what_the_standard_library_raises(net, calls, error):
    client, server = net.pair()
    raised = {}
    for name, call in calls.items():
        try:
            raised[name] = call(client)
        except Exception as caught:
            raised[name] = type(caught)
    assert raised == dict.fromkeys(calls, error)
    still_works(client, server)
    net.assert_accelerated(client, server)


def test_wrong_arguments_say_the_same_words_as_the_standard_library(net):
    client, _server = net.pair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        referee = net.keep(socket.create_connection(listener.getsockname()))

    def says(sock, call):
        try:
            call(sock)
        except (TypeError, ValueError, OverflowError, BufferError) as error:
            return type(error), str(error).replace(type(sock).__name__, "")
        return None

    for name, call in (WRONG_TYPE | WRONG_VALUE | TOO_LARGE | WRONG_TOGETHER).items():
        assert (name, says(client, call)) == (name, says(referee, call))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.256.256.256"])
def test_unknown_host_is_a_gaierror(net, host):
    with pytest.raises(socket.gaierror):
        net.new().connect((host, 9))


def test_address_of_another_host_cannot_be_bound(net):
    with pytest.raises(OSError) as elsewhere:
        net.new().bind(("203.0.113.77", 0))
    assert elsewhere.value.errno == errno.EADDRNOTAVAIL


def test_bind_twice_is_einval(net):
    sock = net.new()
    sock.bind(("127.0.0.1", 0))
    with pytest.raises(OSError) as again:
        sock.bind(("127.0.0.1", 0))
    assert again.value.errno == errno.EINVAL


def test_bind_and_listen_of_a_connected_socket_are_einval(net):
    client, server = net.pair()
    for call in (lambda: client.bind(("127.0.0.1", 0)), client.listen):
        with pytest.raises(OSError) as connected:
            call()
        assert connected.value.errno == errno.EINVAL
    still_works(client, server)


def test_descriptor_that_is_no_socket_is_refused(net, tmp_path):
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError) as other:
        net.socket.socket(fileno=file.fileno())
    assert other.value.errno == errno.ENOTSOCK
    with pytest.raises(ValueError, match="negative"):
        net.socket.socket(fileno=-1)
    with pytest.raises(TypeError):
        net.socket.socket(fileno="1")
    with pytest.raises(OSError) as bad:
        net.socket.socket(fileno=99_999)
    assert bad.value.errno == errno.EBADF


def test_unknown_family_is_eafnosupport(net):
    with pytest.raises(OSError) as unknown:
        net.socket.socket(9999)
    assert unknown.value.errno == errno.EAFNOSUPPORT


def test_addresses_of_an_unbound_socket_are_zero_and_it_has_no_peer(net):
    sock = net.new()
    assert sock.getsockname() == ("0.0.0.0", 0)
    with pytest.raises(OSError) as unconnected:
        sock.getpeername()
    assert unconnected.value.errno == errno.ENOTCONN


def test_sendmsg_afalg_is_refused_on_tcp(net):
    client, server = net.pair()
    with pytest.raises((OSError, TypeError)):
        client.sendmsg_afalg([b"x"], op=1)
    still_works(client, server)
