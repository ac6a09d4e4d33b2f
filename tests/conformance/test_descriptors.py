"""fileno, detach, dup, fromfd: the descriptor given to other code carries the same stream on."""

from __future__ import annotations

import fcntl
import io
import os
import random
import select
import socket
import time

import pytest

from .remote import at
from .streams import MIB, pattern, receive_all, receive_exactly
from .waiting import Background

TOKEN = b"by python, "


def test_fileno_is_a_descriptor_of_the_connection(net):
    client, server = net.pair()
    assert os.fstat(client.fileno()).st_ino != os.fstat(server.fileno()).st_ino
    assert os.readlink(f"/proc/self/fd/{client.fileno()}").startswith("socket:")


def test_detach_hands_the_whole_stream_to_the_descriptor(net):
    client, server = net.pair()
    server.sendall(b"before ")
    client.sendall(b"from before ")
    descriptor = client.detach()
    with socket.socket(fileno=descriptor) as kernel:
        server.sendall(b"after")
        assert receive_exactly(kernel, 12) == b"before after"
        kernel.sendall(b"and after")
        assert receive_exactly(server, 21) == b"from before and after"
    assert server.recv(1) == b""


def test_detached_socket_is_closed(net):
    client, server = net.pair()
    descriptor = client.detach()
    assert client.fileno() == -1
    with pytest.raises(OSError):
        client.send(b"x")
    os.close(descriptor)
    assert server.recv(1) == b""


def test_detach_with_megabytes_on_the_way_loses_none(net):
    client, server = net.pair()
    sending = Background(server.sendall, pattern(8 * MIB))
    got = receive_exactly(client, MIB + 17)
    with socket.socket(fileno=client.detach()) as kernel:
        got += receive_exactly(kernel, 7 * MIB - 17)
    sending.result()
    assert got == pattern(8 * MIB)


def test_os_read_and_write_on_the_descriptor_carry_the_stream_on(net):
    client, server = net.pair()
    client.sendall(TOKEN)
    assert os.write(client.fileno(), b"by descriptor, ") == 15
    client.sendall(b"and again")
    assert receive_exactly(server, 35) == b"by python, by descriptor, and again"


def test_os_read_of_the_descriptor_sees_what_was_sent(net):
    client, server = net.pair()
    server.sendall(b"0123456789")
    assert client.recv(2) == b"01"
    descriptor = os.dup(client.fileno())
    try:
        assert os.read(descriptor, 3) == b"234"
        assert client.recv(2) == b"56"
        server.sendall(b"abc")
        with io.FileIO(descriptor, closefd=False) as file:
            got = b""
            while len(got) < 6:
                got += file.read(6)
        assert got == b"789abc"
    finally:
        os.close(descriptor)


def test_os_writev_and_readv_work(net):
    client, server = net.pair()
    assert os.writev(client.fileno(), [b"one ", b"two"]) == 7
    buffers = [bytearray(4), bytearray(3)]
    assert os.readv(server.fileno(), buffers) == 7
    assert buffers == [b"one ", b"two"]


def test_dup_is_the_same_connection_with_another_descriptor(net):
    client, server = net.pair()
    client.sendall(b"one ")
    twin = net.keep(client.dup())
    assert type(twin) is net.socket.socket
    assert twin.fileno() != client.fileno()
    assert twin.getsockname() == client.getsockname()
    twin.sendall(b"two ")
    client.sendall(b"three")
    assert receive_exactly(server, 13) == b"one two three"
    server.sendall(b"ab")
    assert (twin.recv(1), client.recv(1)) == (b"a", b"b")


def test_dup_keeps_the_connection_open_until_both_are_closed(net):
    client, server = net.pair()
    twin = net.keep(client.dup())
    client.close()
    twin.sendall(b"still open")
    assert server.recv(100) == b"still open"
    server.sendall(b"yes")
    assert twin.recv(100) == b"yes"
    twin.close()
    assert server.recv(1) == b""


def test_dup_keeps_the_timeout(net):
    client, _server = net.pair()
    client.settimeout(3)
    assert net.keep(client.dup()).gettimeout() == 3


def test_dup_of_a_listener_accepts_too(net):
    listener = net.listener()
    twin = net.keep(listener.dup())
    listener.close()
    client = net.connect(twin.getsockname())
    server = net.accept(twin)
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_shutdown_of_a_dup_ends_the_original_too(net):
    client, server = net.pair()
    twin = net.keep(client.dup())
    twin.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        client.send(b"x")
    assert server.recv(1) == b""


@pytest.mark.parametrize("maker", ["module", "stdlib"])
def test_fromfd_makes_a_working_twin(net, maker):
    client, server = net.pair()
    server.sendall(b"first ")
    module = net.socket if maker == "module" else socket
    twin = net.keep(module.fromfd(client.fileno(), socket.AF_INET, socket.SOCK_STREAM))
    client.close()
    server.sendall(b"second")
    assert receive_exactly(twin, 12) == b"first second"
    twin.sendall(b"x")
    assert server.recv(1) == b"x"
    twin.close()
    assert server.recv(1) == b""


def test_socket_made_of_an_integer_descriptor_takes_it_over(net):
    client, server = net.pair()
    server.sendall(b"kept")
    again = net.keep(net.socket.socket(fileno=client.detach()))
    assert again.recv(10) == b"kept"
    again.sendall(b"x")
    assert server.recv(1) == b"x"


def test_dup2_onto_the_descriptor_replaces_the_connection(net):
    client, server = net.pair()
    other, peer = net.pair()
    os.dup2(other.fileno(), client.fileno(), inheritable=False)
    assert server.recv(1) == b""
    os.write(client.fileno(), b"x")
    assert peer.recv(1) == b"x"


def test_os_close_of_the_descriptor_ends_the_connection(net):
    client, server = net.pair()
    os.close(client.detach())
    assert server.recv(1) == b""


def test_kernel_select_poll_and_epoll_see_the_descriptor_become_readable(net):
    client, server = net.pair()
    poll, epoll = select.poll(), net.keep(select.epoll())
    poll.register(server.fileno(), select.POLLIN)
    epoll.register(server.fileno(), select.EPOLLIN)
    assert select.select([server.fileno()], [], [], 0)[0] == []
    assert (poll.poll(0), epoll.poll(0)) == ([], [])
    client.sendall(b"x")
    assert select.select([server.fileno()], [], [], 20)[0] == [server.fileno()]
    assert poll.poll(20_000) == [(server.fileno(), select.POLLIN)]
    assert epoll.poll(20) == [(server.fileno(), select.EPOLLIN)]
    assert server.recv(10) == b"x"
    assert epoll.poll(0) == []
    client.close()
    assert epoll.poll(20) == [(server.fileno(), select.EPOLLIN)]
    assert server.recv(1) == b""


def test_kernel_select_says_writable_and_then_not(net):
    client, server = net.pair()
    assert select.select([], [client], [], 20)[1] == [client]
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(b"x" * 65536)
    assert select.select([], [client.fileno()], [], 0.05)[1] == []
    reading = Background(receive_exactly, server, sent)
    assert select.select([], [client.fileno()], [], 20)[1] == [client.fileno()]
    assert reading.result() == b"x" * sent


def test_inheritable_flag_is_off_and_can_be_set(net):
    client, server = net.pair()
    for sock in (client, server, net.keep(client.dup())):
        assert not sock.get_inheritable()
        sock.set_inheritable(True)
        assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC == 0
        sock.set_inheritable(False)
        assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_stream_after_a_dup_was_closed_is_whole(net):
    client, server = net.pair()
    for turn in range(5):
        client.sendall(b"%d" % turn)
        client.dup().close()
    client.close()
    assert receive_all(server) == b"01234"


def test_connections_after_duplicates_were_given_away_do_not_mix(net):
    client, server = net.pair()
    for sock in (client, server, net.keep(client.dup())):
        sock.set_inheritable(True)
    pairs = [net.pair() for _ in range(3)]
    for number, (one, _) in enumerate(pairs):
        one.sendall(b"to %d" % number)
    assert [other.recv(100) for _, other in pairs] == [b"to 0", b"to 1", b"to 2"]
    client.sendall(b"still one")
    assert receive_exactly(server, 9) == b"still one"


@pytest.mark.parametrize("seed", range(6))
def test_what_others_write_to_the_descriptor_keeps_its_place(net, pair, seed, tmp_path):
    """Calls of the socket and of os.*, in any order, against a reader that sleeps, polls and reads as it likes."""
    client, server = pair()
    if not isinstance(client, socket.socket):                 # it is in another process
        client, server = server, client
    chosen = random.Random(seed)
    (tmp_path / "file").write_bytes(body := pattern(MIB))
    wanted = bytearray()
    reading = Background(at, server, read_in_pieces, seed)
    with open(tmp_path / "file", "rb") as file:
        for _ in range(150):
            how, size = chosen.choice(("send", "send", "write", "writev", "sendfile")), chosen.choice((1, 64, 3000, 200_000))
            data = body[len(wanted) % MIB:][:size]
            if how == "send":
                client.sendall(data)
            elif how == "write":
                data = data[:os.write(client.fileno(), data)]
            elif how == "writev":
                data = data[:os.writev(client.fileno(), [data[:10], data[10:]])]
            else:
                data = data[:os.sendfile(client.fileno(), file.fileno(), len(wanted) % MIB, len(data))]
            wanted += data
            if chosen.random() < 0.05:
                time.sleep(0.002)
    client.close()
    assert reading.result() == wanted


def read_in_pieces(sock, seed):
    """Read to the end of the stream, as a reader who is at times ahead and at times behind."""
    chosen, got = random.Random(-1 - seed), bytearray()
    while True:
        if chosen.random() < 0.02:
            time.sleep(0.003)
        if chosen.random() < 0.1:
            select.select([sock.fileno()], [], [])
        data = sock.recv(chosen.choice((1, 100, 5000, 100_000)))
        if not data:
            return got
        got += data
