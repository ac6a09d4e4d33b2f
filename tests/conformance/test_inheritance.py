"""Sockets that other processes get: exec'd children, SCM_RIGHTS, multiprocessing."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import pickle
import socket
import subprocess
import sys

import pytest

from .remote import at
from .streams import MIB, pattern, receive_all, receive_exactly
from .waiting import PATIENCE_S, Background

CHILD = (
    "import os, sys; fd = int(sys.argv[1]); "
    "data = os.read(fd, 6); os.write(fd, data.upper() + b' from the child'); os.close(fd)"
)


def python(code, *args, **options):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], timeout=PATIENCE_S, check=True, **options)


def test_subprocess_reads_and_writes_an_inherited_socket(net):
    client, server = net.pair()
    client.sendall(b"hello")
    assert server.recv(5) == b"hello"
    server.set_inheritable(True)
    client.sendall(b"secret")
    python(CHILD, server.fileno(), close_fds=False)
    assert receive_exactly(client, 21) == b"SECRET from the child"
    server.sendall(b", then the parent")
    assert receive_exactly(client, 17) == b", then the parent"


@pytest.mark.parametrize("size", [5000, 200_000])
def test_bytes_under_way_survive_both_ends_being_made_inheritable(net, size):
    client, server = net.pair()
    client.sendall(pattern(size))
    assert receive_exactly(server, 1000) == pattern(size)[:1000]
    client.set_inheritable(True)
    server.set_inheritable(True)
    assert receive_exactly(server, size - 1000) == pattern(size)[1000:]


def test_subprocess_gets_a_socket_by_pass_fds(net):
    client, server = net.pair()
    client.sendall(b"passed")
    python(CHILD, server.fileno(), pass_fds=[server.fileno()])
    server.close()
    assert receive_all(client) == b"PASSED from the child"


def test_subprocess_uses_a_socket_as_standard_input_and_output(net):
    client, server = net.pair()
    client.sendall(b"through cat")
    client.shutdown(socket.SHUT_WR)
    subprocess.run(["cat"], stdin=server, stdout=server, timeout=PATIENCE_S, check=True)
    server.close()
    assert receive_all(client) == b"through cat"


def test_subprocess_pours_megabytes_through_an_inherited_socket(net):
    client, server = net.pair()
    sending = Background(lambda: (client.sendall(pattern(4 * MIB)), client.shutdown(socket.SHUT_WR)))
    reading = Background(receive_all, client)
    subprocess.run(["cat"], stdin=server, stdout=server.fileno(), timeout=PATIENCE_S, check=True)
    server.close()
    assert reading.result() == pattern(4 * MIB)
    sending.result()


def test_subprocess_without_the_descriptor_does_not_hold_the_connection_open(net):
    client, server = net.pair()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        client.close()
        assert server.recv(1) == b""
    finally:
        child.communicate(b"\n", timeout=PATIENCE_S)


def test_inherited_listener_is_served_by_the_child(net):
    code = ("import socket, sys; sock = socket.socket(fileno=int(sys.argv[1])); conn, _ = sock.accept(); "
            "conn.sendall(conn.recv(100)[::-1]); conn.close()")
    with net.listener() as listener:
        client = net.connect(listener.getsockname())
        client.sendall(b"stressed")
        python(code, listener.fileno(), pass_fds=[listener.fileno()])
    assert receive_all(client) == b"desserts"


def test_descriptor_passed_by_scm_rights_carries_the_stream_on(net):
    client, server = net.pair()
    channel, other = map(net.keep, net.socket.socketpair())
    client.sendall(b"queued before, ")
    assert server.recv(7) == b"queued "
    net.socket.send_fds(channel, [b"one"], [server.fileno()])
    server.close()
    message, [descriptor], _flags, _address = net.socket.recv_fds(other, 10, 4)
    assert message == b"one"
    with net.socket.socket(fileno=descriptor) as received:
        client.sendall(b"sent after")
        assert receive_exactly(received, 18) == b"before, sent after"
        received.sendall(b"answer")
        assert client.recv(10) == b"answer"
    assert client.recv(1) == b""


def test_descriptor_passed_to_another_process_is_served_there(net, peer, tmp_path):
    path = str(tmp_path / "channel")
    client, server = net.pair()
    client.sendall(b"over there")
    with net.socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        serving = peer.start(serve_received, net.face, path)
        channel, _ = door.accept()
    with channel:
        net.socket.send_fds(channel, [b"x"], [server.fileno()])
        server.close()
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"OVER THERE"
    assert serving.result(PATIENCE_S) == 10


def serve_received(face, path):
    """Answer in capitals what arrives on the socket that is passed through the UNIX socket at `path`."""
    from .ends import module_there

    module = module_there(face)
    with module.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        _, [descriptor], _, _ = module.recv_fds(channel, 10, 1)
    with module.socket(fileno=descriptor) as sock:
        data = receive_all(sock)
        sock.sendall(data.upper())
    return len(data)


def test_pickle_of_a_socket_is_refused(net):
    client, _server = net.pair()
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(client)


def test_multiprocessing_moves_a_socket_to_a_spawned_child(net):
    client, server = net.pair()
    client.sendall(b"queued, ")
    assert server.recv(1) == b"q"
    child = multiprocessing.get_context("spawn").Process(target=answer, args=(server, 15))
    child.start()
    server.close()
    client.sendall(b"then sent")
    assert receive_all(client) == b"UEUED, THEN SEN"
    child.join(PATIENCE_S)
    assert child.exitcode == 0


def answer(sock, count):
    with sock:
        sock.sendall(receive_exactly(sock, count).upper())
        sock.recv(1)


def test_multiprocessing_moves_a_socket_through_a_pipe_to_a_peer(net, peer):
    client, server = net.pair()
    client.sendall(b"hello")
    here, there = multiprocessing.Pipe()
    serving = peer.start(receive_and_answer, multiprocessing.reduction.DupFd(there.fileno()))
    with here, there:
        multiprocessing.reduction.send_handle(here, server.fileno(), os.getpid())
        server.close()
        assert receive_all(client) == b"HELLO"
    serving.result(PATIENCE_S)


def receive_and_answer(handle):
    with multiprocessing.connection.Connection(handle.detach()) as pipe:
        descriptor = multiprocessing.reduction.recv_handle(pipe)
    with socket.socket(fileno=descriptor) as sock:
        answer_all(sock)


def answer_all(sock):
    sock.sendall(sock.recv(100).upper())


def test_unpassed_remote_end_stays_connected_through_all_this(net, pair):
    client, server = pair()
    at(client, pass_and_take_back)
    client.sendall(b"unharmed")
    assert receive_exactly(server, 8) == b"unharmed"


def pass_and_take_back(sock):
    """Pass a socket's descriptor through a UNIX socket to this very process."""
    one, two = socket.socketpair()
    with one, two:
        socket.send_fds(one, [b"x"], [sock.fileno()])
        os.close(socket.recv_fds(two, 1, 1)[1][0])
