"""The module itself: everything of the standard one, under the same names, and sockets of other kinds."""

from __future__ import annotations

import inspect
import socket

import pytest


def test_module_has_every_public_name_of_the_standard_module(net):
    assert set(socket.__all__) <= set(net.socket.__all__)
    missing = [name for name in dir(socket) if not name.startswith("__") and not hasattr(net.socket, name)]
    assert missing == []


def test_constants_and_exceptions_are_the_same_objects(net):
    names = [name for name in socket.__all__ if name.isupper() or name in ("error", "timeout", "gaierror", "herror")]
    assert [name for name in names if getattr(net.socket, name) is not getattr(socket, name)] == []


def test_socket_class_is_a_socket(net):
    assert issubclass(net.socket.socket, socket.socket)
    assert net.socket.socket.__name__ == "socket"


def test_socket_has_every_method_with_the_standard_signature(net):
    def signatures(kind):
        found = {}
        for name in dir(socket.socket):
            if not name.startswith("_") and callable(getattr(kind, name)):
                try:
                    found[name] = [(p.name, p.kind, p.default) for p in
                                   inspect.signature(getattr(kind, name)).parameters.values()]
                except ValueError:          # a C method without a text signature
                    found[name] = "builtin"
        return found

    ours, standard = signatures(net.socket.socket), signatures(socket.socket)
    assert set(ours) == set(standard)
    differing = {name: (ours[name], standard[name]) for name in ours
                 if standard[name] != "builtin" and ours[name] != standard[name]}
    assert differing == {}


def test_socket_can_be_subclassed(net):
    class Counting(net.socket.socket):
        sent = 0

        def send(self, data, *flags):
            self.sent += len(data)
            return super().send(data, *flags)

    with net.listener() as listener:
        client = net.keep(Counting(socket.AF_INET))
        client.label = "attributes are allowed"
        client.connect(listener.getsockname())
        server = net.accept(listener)
    client.send(b"abc")
    assert client.sent == 3
    assert server.recv(10) == b"abc"
    server.sendall(b"d")
    assert client.recv(1) == b"d"
    net.assert_accelerated(client, server)


def test_socket_may_have_weak_references_and_be_hashed(net):
    import weakref

    sock = net.new()
    assert weakref.ref(sock)() is sock
    assert {sock: 1}[sock] == 1
    assert sock != net.new()


def test_udp_works_as_ever(net):
    one, two = net.new(kind=socket.SOCK_DGRAM), net.new(kind=socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    two.bind(("127.0.0.1", 0))
    two.sendto(b"datagram", one.getsockname())
    assert one.recvfrom(100) == (b"datagram", two.getsockname())
    one.connect(two.getsockname())
    one.send(b"")
    assert two.recv(10) == b""


def test_unix_streams_and_datagrams_work_as_ever(net, tmp_path):
    path = str(tmp_path / "socket")
    listener, client = net.new(socket.AF_UNIX), net.new(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    client.connect(path)
    server = net.accept(listener)
    client.sendall(b"x" * 1000)
    assert server.recv(2000, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"x" * 1000
    assert client.getpeername() == path
    one, two = map(net.keep, net.socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    one.send(b"a")
    one.send(b"b")
    assert (two.recv(10), two.recv(10)) == (b"a", b"b")


def test_helpers_answer_like_the_standard_ones(net):
    module = net.socket
    assert module.htons(1) == socket.htons(1)
    assert module.inet_aton("1.2.3.4") == b"\1\2\3\4"
    assert module.inet_ntop(socket.AF_INET6, b"\0" * 15 + b"\1") == "::1"
    assert module.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)[0][4] == ("127.0.0.1", 80)
    assert module.gethostname() == socket.gethostname()
    assert module.has_dualstack_ipv6() == socket.has_dualstack_ipv6()
    assert module.has_ipv6 is socket.has_ipv6


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_family_and_type_are_enumerations(net, family):
    sock = net.new(family)
    assert isinstance(sock.family, socket.AddressFamily)
    assert isinstance(sock.type, socket.SocketKind)
    assert sock.family is family
    assert sock.proto == 0
