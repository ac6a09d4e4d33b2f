"""Connections whose processes end without a word leave no pair behind, and nobody loses one that is still held."""
from __future__ import annotations

import gc
import os
import secrets
import signal
import socket as stdlib

import pytest

import shmstack
import shmstack.socket as socket
from shmstack import views
from shmstack.stack import reaping


@pytest.fixture
def listener():
    """A listener in a stack of its own, where all ends come together."""
    name = f"reap{secrets.token_hex(4)}"
    shmstack.stackname_save()
    shmstack.set_stackname(shmstack.ALL_THREADS, shmstack.SCOPE_GLOBAL, name)
    try:
        with socket.create_server(("127.0.0.1", 0)) as made:
            made.settimeout(20)
            yield made
    finally:
        shmstack.stackname_restore()


def pairs(sock):
    return list(sock._endpoint.stack.pairs_in_use())


def joined(listener):
    client = socket.create_connection(listener.getsockname(), 20)
    server, _ = listener.accept()
    server.settimeout(20)
    client.sendall(b"?")
    assert server.recv(1) == b"?"
    return client, server


def child(work):
    """Run `work` in a fork that ends by os._exit; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def wait_for(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stay():
    signal.pause()


def accepted_from_child(listener, then):
    """Accept from a forked client that does `then` with its socket; return (server socket, pid)."""
    def dial():
        sock = socket.create_connection(listener.getsockname(), 20)
        sock.sendall(b"?")
        then(sock)

    pid = child(dial)
    server, _ = listener.accept()
    server.settimeout(20)
    assert server.recv(1) == b"?"
    assert shmstack.fd_stat(server)
    return server, pid


def test_killed_peer(listener):
    server, pid = accepted_from_child(listener, lambda _: stay())
    stack = server._endpoint.stack
    os.kill(pid, signal.SIGKILL)
    assert server.recv(1) == b""
    assert wait_for(pid) == -signal.SIGKILL
    assert len(pairs(server)) == 1
    server.close()
    assert list(stack.pairs_in_use()) == []
    assert views.counters()[stack.shown]["reaped_pairs"] == 1


def test_forked_holder_that_ended_without_a_word(listener):
    client, server = joined(listener)
    stack = server._endpoint.stack
    assert wait_for(child(lambda: None)) == 0
    client.close()
    assert server.recv(1) == b""
    server.close()
    assert list(stack.pairs_in_use()) == []


@pytest.mark.parametrize("first", ["client", "server"])
def test_forked_holder_of_both_ends(listener, first):
    client, server = joined(listener)
    stack = server._endpoint.stack
    assert wait_for(child(lambda: None)) == 0
    for sock in (client, server) if first == "client" else (server, client):
        sock.close()
    assert list(stack.pairs_in_use()) == []


def test_living_holder_keeps_it(listener):
    client, server = joined(listener)
    stack = server._endpoint.stack
    ours, theirs = stdlib.socketpair()

    def hold():
        ours.close()
        theirs.recv(1)
        client.sendall(b"still here")
        theirs.recv(1)

    pid = child(hold)
    theirs.close()
    client.close()
    reaping.reap_pair(stack, server._endpoint.index, server._endpoint.generation)
    assert len(pairs(server)) == 1
    ours.sendall(b"!")
    assert server.recv(100) == b"still here"
    ours.close()
    assert wait_for(pid) == 0
    assert server.recv(1) == b""
    server.close()
    assert list(stack.pairs_in_use()) == []


def test_half_close_is_not_the_end(listener):
    client, server = joined(listener)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.sendall(b"answer")
    server.close()
    assert client.recv(100) == b"answer"
    stack = client._endpoint.stack
    client.close()
    assert list(stack.pairs_in_use()) == []


def test_unaccepted_connection_of_a_dead_client_waits_for_its_accept(listener, monkeypatch):
    monkeypatch.setattr(reaping, "YOUNG_NS", 0)
    stack = listener_stack(listener)

    def dial():
        sock = socket.create_connection(listener.getsockname(), 20)
        sock.sendall(b"last words")
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(child(dial)) == -signal.SIGKILL
    stack.reaped = float("-inf")
    assert reaping.reap(stack) == 0
    server, _ = listener.accept()
    with server:
        assert server.recv(100) == b"last words"
        assert server.recv(100) == b""
    assert list(stack.pairs_in_use()) == []


def listener_stack(listener):
    client, server = joined(listener)
    with client, server:
        stack = client._endpoint.stack
    assert list(stack.pairs_in_use()) == []
    return stack


def test_next_process_reaps_what_both_ends_left(listener, monkeypatch):
    monkeypatch.setattr(reaping, "YOUNG_NS", 0)
    stack = listener_stack(listener)

    def both():
        client, server = joined(listener)
        assert pairs(client) == pairs(server) != []
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(child(both)) == -signal.SIGKILL
    assert len(list(stack.pairs_in_use())) == 1
    stack.reaped = float("-inf")
    assert reaping.reap(stack) == 1
    assert list(stack.pairs_in_use()) == []
    assert reaping.reap(stack) == 0                            # and not twice


def test_full_stack_is_cleared_of_the_dead(monkeypatch):
    monkeypatch.setattr(reaping, "YOUNG_NS", 0)
    monkeypatch.setattr(reaping, "AGAIN_SECONDS", 0)
    shmstack.stackname_save()
    shmstack.stack_opt_set("EF_MAX_ENDPOINTS", 4)
    shmstack.set_stackname(shmstack.ALL_THREADS, shmstack.SCOPE_GLOBAL, f"full{secrets.token_hex(4)}")
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def both():
                kept = [joined(listener) for _ in range(2)]
                assert all(shmstack.fd_stat(sock) for pair in kept for sock in pair)
                os.kill(os.getpid(), signal.SIGKILL)

            assert wait_for(child(both)) == -signal.SIGKILL
            for sock in joined(listener):
                assert shmstack.fd_stat(sock)
                sock.close()
    finally:
        shmstack.stackname_restore()
        shmstack.stack_opt_reset()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("forgotten", ["client", "server", "both"])
def test_forgotten_sockets_leave_no_pair(listener, forgotten):
    for _ in range(20):
        client, server = joined(listener)
        client.sendall(b"unread")
        watcher = listener._listens
        if forgotten != "client":
            del server
        if forgotten != "server":
            del client
        gc.collect()
        client = server = None
    assert not list(watcher.pairs_in_use())
