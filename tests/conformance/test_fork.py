"""fork(): both processes hold the connection, it ends when the last one closes it."""

from __future__ import annotations

import multiprocessing
import os
import socket
import socketserver

import pytest

from .children import Child
from .streams import MIB, both_ways, pattern, receive_all, receive_exactly
from .waiting import Background


def test_child_serves_the_accepted_socket_which_the_parent_closed(net):
    client, server = net.pair()
    client.sendall(b"hello")

    def serve():
        client.close()
        server.sendall(receive_exactly(server, 10).upper())

    child = Child(serve)
    server.close()
    client.sendall(b" fork")
    assert receive_all(client) == b"HELLO FORK"
    child.join()


def test_child_inherits_bytes_that_were_not_read_yet(net):
    client, server = net.pair()
    client.sendall(b"0123456789")
    assert server.recv(3) == b"012"
    child = Child(lambda: server.sendall(receive_exactly(server, 7)[::-1]))
    assert receive_exactly(client, 7) == b"9876543"
    child.join()


def test_both_processes_may_send_in_turn(net):
    client, server = net.pair()

    def talk():
        client.sendall(b"from the child, ")

    child = Child(talk)
    child.join()
    client.sendall(b"from the parent")
    assert receive_exactly(server, 31) == b"from the child, from the parent"
    server.sendall(b"to the parent")
    assert receive_exactly(client, 13) == b"to the parent"


def test_both_processes_may_receive_in_turn(net):
    client, server = net.pair()
    server.sendall(b"childparent")

    def read():
        assert client.recv(5) == b"child"

    Child(read).join()
    assert client.recv(100) == b"parent"


def test_parent_and_child_send_at_once_and_every_message_arrives_whole(net):
    client, server = net.pair()

    def send(letter):
        for _ in range(300):
            assert client.send(letter * 100) == 100

    child = Child(lambda: send(b"c"))
    sending = Background(send, b"p")
    got = [receive_exactly(server, 100) for _ in range(600)]
    sending.result()
    child.join()
    assert sorted(got) == [b"c" * 100] * 300 + [b"p" * 100] * 300


def test_parent_writes_while_the_child_reads(net):
    client, server = net.pair()

    def read():
        server.close()
        assert receive_exactly(client, 4 * MIB) == pattern(4 * MIB, 1)

    child = Child(read)
    back = Background(server.sendall, pattern(4 * MIB, 1))
    forth = Background(client.sendall, pattern(4 * MIB, 2))
    assert receive_exactly(server, 4 * MIB) == pattern(4 * MIB, 2)
    forth.result()
    back.result()
    child.join()


def test_connection_ends_when_the_last_process_closes_it(net):
    client, server = net.pair()
    ready, go = os.pipe()

    def hold():
        os.close(go)
        server.close()
        os.read(ready, 1)
        client.sendall(b"child was last")
        client.close()

    child = Child(hold)
    client.close()
    server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.recv(1)
    os.close(ready)
    os.close(go)
    server.settimeout(None)
    assert receive_all(server) == b"child was last"
    child.join()


def test_exit_of_the_child_leaves_the_parents_connection_alone(net):
    client, server = net.pair()
    for turn in range(5):
        Child(lambda: None).join()
        client.sendall(b"%d" % turn)
        assert server.recv(10) == b"%d" % turn
        server.sendall(b"ok")
        assert client.recv(10) == b"ok"


def test_close_in_the_child_leaves_the_parents_connection_alone(net):
    client, server = net.pair()

    def close():
        client.close()
        server.close()

    Child(close).join()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    server.sendall(b"y")
    assert client.recv(1) == b"y"


def test_shutdown_in_the_child_ends_the_stream_for_all(net):
    client, server = net.pair()
    Child(lambda: client.shutdown(socket.SHUT_WR)).join()
    assert server.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


def test_inherited_listener_is_shared_by_parent_and_children(net):
    listener = net.listener(backlog=64)

    def serve():
        for _ in range(5):
            with listener.accept()[0] as sock:
                sock.sendall(receive_exactly(sock, 5)[::-1])

    children = [Child(serve) for _ in range(2)]
    for turn in range(10):
        with net.connect(listener.getsockname()) as client:
            client.sendall(b"%05d" % turn)
            assert receive_all(client) == (b"%05d" % turn)[::-1]
    for child in children:
        child.join()


def test_child_connects_to_its_parent(net):
    listener = net.listener()

    def call():
        with net.socket.create_connection(listener.getsockname()) as sock:
            assert both_ways(sock, 1, 2, 4 * MIB) == 4 * MIB
            net.assert_accelerated(sock)

    child = Child(call)
    server = net.accept(listener)
    assert both_ways(server, 2, 1, 4 * MIB) == 4 * MIB
    child.join()


def test_children_of_one_parent_talk_to_each_other(net):
    listener = net.listener()

    def serve():
        with net.accept(listener) as sock:
            assert both_ways(sock, 2, 1, 2 * MIB) == 2 * MIB

    def call():
        with net.socket.create_connection(listener.getsockname()) as sock:
            assert both_ways(sock, 1, 2, 2 * MIB) == 2 * MIB
            net.assert_accelerated(sock)

    children = [Child(serve), Child(call)]
    for child in children:
        child.join()


def test_grandchild_goes_on_after_its_parent_ended(net):
    client, server = net.pair()
    client.sendall(b"to whom?")

    def fork_again():
        if os.fork() == 0:
            data = receive_exactly(server, 8)
            server.sendall(data.upper())
            os._exit(0)

    Child(fork_again).join()
    server.close()
    assert client.recv(20) == b"TO WHOM?"


def test_forking_server_answers_many_clients(net):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    class Server(socketserver.ForkingMixIn, socketserver.TCPServer):
        def __init__(self):
            super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
            self.socket.close()
            self.socket = net.listener(backlog=32)

    with Server() as server:
        serving = Background(server.serve_forever, 0.01)
        for turn in range(8):
            with net.socket.create_connection(server.socket.getsockname()) as client:
                client.sendall(b"line %d\n" % turn)
                assert receive_all(client) == b"LINE %d\n" % turn
        server.shutdown()
        serving.result()


def test_multiprocessing_fork_child_uses_a_global_socket(net):
    client, server = net.pair()
    child = multiprocessing.get_context("fork").Process(target=lambda: server.sendall(b"from the fork"))
    child.start()
    assert receive_exactly(client, 13) == b"from the fork"
    child.join(20)
    assert child.exitcode == 0
