"""Onload's extension API in Python: what it says of a socket, and how it chooses stacks and waits."""
from __future__ import annotations

import errno
import os
import secrets
import socket as standard
import threading

import pytest
from process import Process

import shmstack
import shmstack.socket as socket
from shmstack import _native, errors, views
from shmstack.shm import objects
from shmstack.stack import threads


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            yield client, server


@pytest.fixture
def name():
    return "e" + secrets.token_hex(4)


def test_every_name_of_the_package_is_there():
    for name in shmstack.__all__:
        assert getattr(shmstack, name) is not NotImplemented
    with pytest.raises(AttributeError):
        shmstack.nothing  # noqa: B018


def test_is_present_says_whether_the_kernels_are_there(monkeypatch):
    assert shmstack.is_present() is True

    def missing():
        raise _native.Unavailable("none")
    monkeypatch.setattr(_native, "load", missing)
    assert shmstack.is_present() is False


def test_fd_stat_of_a_connection_agrees_with_its_other_end_and_with_views(pair):
    client, server = pair
    one, other = shmstack.fd_stat(client), shmstack.fd_stat(server)
    assert one._fields[:4] == ("stack_id", "stack_name", "endpoint_id", "endpoint_state")
    assert (one.stack_id, one.stack_name) == (other.stack_id, other.stack_name)
    assert one.endpoint_id ^ 1 == other.endpoint_id
    assert one.endpoint_state == other.endpoint_state == "ESTABLISHED"
    rows = {row.endpoint: row for row in views.connections(one.stack_name)}
    row = rows[one.endpoint_id]
    assert (row.local, row.tx_lane, row.rx_lane) == (client.getsockname(), one.tx_lane, one.rx_lane)


def test_fd_stat_takes_a_descriptor_and_exposes_nothing(pair):
    client, server = pair
    fd = client._descriptor()
    client.settimeout(0.001)
    with pytest.raises(TimeoutError):
        client.recv(1)                                        # who waits in recv reads the ring from then on
    for _ in range(2):
        server.send(b"x")
        assert client.recv(1) == b"x"
    assert shmstack.fd_stat(fd) == shmstack.fd_stat(client)
    assert shmstack.fd_stat(client).rx_lane == "ring"
    assert shmstack.stack_name(fd) == shmstack.fd_stat(fd).stack_name


def test_fd_stat_is_none_for_what_is_not_accelerated(pair):
    with standard.socket() as plain, socket.socket() as fresh, socket.socket(socket.AF_UNIX) as unix:
        assert [shmstack.fd_stat(sock) for sock in (plain, fresh, unix, plain.fileno())] == [None] * 4
        assert shmstack.stack_name(plain) is None
    with pytest.raises(OSError) as caught:
        shmstack.fd_stat(plain)
    assert caught.value.errno == errno.EBADF
    client, _ = pair
    descriptor = client.detach()
    assert shmstack.fd_stat(descriptor) is None
    os.close(descriptor)


def test_offered_connection_is_in_the_kernel_lanes():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as early:
        stat = shmstack.fd_stat(early)
        assert (stat.endpoint_state, stat.tx_lane, stat.rx_lane) == ("ESTABLISHED", "kernel", "kernel")


def test_stack_id_is_the_same_in_all_processes(name):
    with Process(EF_NAME=name) as client, Process(EF_NAME=name) as server:
        server.start("listen")
        client.call("connect", server.result())
        server.call("accept")
        one, other = client.call("stat"), server.call("stat")
        assert (one.stack_id, one.stack_name) == (other.stack_id, name) and 0 <= one.stack_id < 1 << 31


def test_stack_name_without_a_socket_is_that_of_the_next_one(name):
    shmstack.stackname_save()
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_PROCESS, name)
    assert shmstack.stack_name() == f"{name}-p{os.getpid()}"
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, shmstack.DONT_ACCELERATE)
    assert shmstack.stack_name() is None
    shmstack.stackname_restore()


def test_stack_is_opened_and_attached_by_name(name):
    with pytest.raises(errors.StackNotFound):
        shmstack.Stack.attach(name)
    opened = shmstack.Stack.open(name)
    assert opened.shown == name and shmstack.Stack.open(name) is opened is shmstack.Stack.attach(name)
    row, = views.stacks(name)
    assert row.full == opened.name
    with Process(EF_NAME=name) as other:
        other.call("listen")
        assert other.call("own_stack", "listener") == opened.name
    opened.leave()
    assert name not in [row.name for row in views.stacks()]
    with pytest.raises(errors.OptionError):
        shmstack.Stack.open("a/b")


def test_stack_left_by_one_stays_for_the_other(name):
    opened = shmstack.Stack.open(name)
    with Process(EF_NAME=name) as other:
        other.call("listen")
        opened.leave()
        assert [process.pid for process in views.stacks(name)[0].processes] == [other.pid]
    objects.reap()
    assert name not in [row.name for row in views.stacks()]


def test_thread_set_spin_is_for_this_thread_and_this_kind():
    seen = []

    def other():
        seen.append(threads.own("tcp_recv"))
        shmstack.thread_set_spin(shmstack.SPIN_ALL, False)
        seen.extend(threads.own(kind) for kind in ("tcp_recv", "tcp_send", "epoll"))
        seen.append(threading.get_ident() in threads._own)
    thread = threading.Thread(target=other)
    shmstack.thread_set_spin(shmstack.SPIN_TCP_RECV, True)
    thread.start()
    thread.join()
    assert seen == [None, 0, 0, 0, True]
    assert threads.own("tcp_recv") == 50_000 and threads.own("tcp_send") is None
    assert list(threads._own) == [threading.get_ident()]
    for kind in (-1, 17):
        with pytest.raises(OSError) as caught:
            shmstack.thread_set_spin(kind, True)
        assert caught.value.errno == errno.EINVAL
    shmstack.thread_set_spin(shmstack.SPIN_UDP_RECV, False)


def test_spinning_as_long_as_the_option_says(monkeypatch):
    for usec, ns in ((7, 7_000), (-1, 1 << 60)):
        shmstack.stack_opt_set("EF_SPIN_USEC", usec)
        shmstack.thread_set_spin(shmstack.SPIN_MIMIC_EF_POLL, True)
        assert threads.own("epoll") == threads.own("tcp_send") == ns
    shmstack.stack_opt_reset()
    shmstack.thread_set_spin(shmstack.SPIN_ALL, False)


@pytest.mark.parametrize("on", [False, True])
def test_waits_go_on_whatever_was_said(pair, on):
    client, server = pair
    shmstack.thread_set_spin(shmstack.SPIN_ALL, on)

    def answer():
        while data := server.recv(100):
            server.sendall(data)
    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(50):
        client.send(b"x" * 100)
        assert client.recv(100, socket.MSG_WAITALL) == b"x" * 100
    client.shutdown(socket.SHUT_WR)
    thread.join()
