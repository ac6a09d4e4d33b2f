"""Signal handlers run while a call waits; the call then goes on, or ends if the handler raises."""

from __future__ import annotations

import os
import signal
import socket
import termios
import threading
from contextlib import contextmanager

import pytest

from .streams import MIB, pattern, receive_exactly
from .test_queues import ask
from .waiting import PATIENCE_S, Background, eventually


class FromHandler(Exception):
    """What a handler raises to end a wait."""


@contextmanager
def handler(function, number=signal.SIGUSR1):
    before = signal.signal(number, function)
    try:
        yield
    finally:                                # a signal that comes late must not end the process
        signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR1 else before)


def poke_until(done: threading.Event, number: int = signal.SIGUSR1) -> None:
    """Send the main thread signals until `done`: one of them comes while it waits."""
    while not done.wait(0.02):
        signal.pthread_kill(threading.main_thread().ident, number)


def calls_that_wait(net):
    """Return the waiting calls by name, each with what makes it return, and what it then returns."""
    client, server = net.pair()
    listener = net.listener()
    buffer = bytearray(1)

    def connect():
        return net.connect(listener.getsockname())

    def drain():
        return receive_exactly(server, 24 * MIB)

    def give():
        return server.sendall(b"x")

    return {
        "recv": (lambda: client.recv(1), give, b"x"),
        "recv_into": (lambda: client.recv_into(buffer), give, 1),
        "recvmsg": (lambda: client.recvmsg(1)[0], give, b"x"),
        "sendall": (lambda: client.sendall(pattern(24 * MIB)), drain, None),
        "accept": (lambda: net.accept(listener).gettimeout(), connect, None),
        "select": (lambda: len(net.select.select([client], [], [])[0]), give, 1),
    }


NAMES = ["recv", "recv_into", "recvmsg", "sendall", "accept", "select"]


@pytest.mark.parametrize("name", NAMES)
def test_handler_runs_while_the_call_waits_which_then_goes_on(net, name):
    call, release, answer = calls_that_wait(net)[name]
    seen, waiting = [], threading.Event()

    def count(*_):
        seen.append(waiting.is_set())
        if seen.count(True) == 3:
            done.set()

    done = threading.Event()
    with handler(count):
        poking = Background(poke_until, done)
        releasing = Background(lambda: done.wait(PATIENCE_S) and release())
        waiting.set()
        assert call() == answer
        poking.result()
        releasing.result()
    assert seen.count(True) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_handler_that_raises_ends_the_wait(net, name):
    call, *_ = calls_that_wait(net)[name]
    waiting, done = threading.Event(), threading.Event()

    def fail(*_):
        if waiting.is_set() and not done.is_set():
            done.set()
            raise FromHandler

    with handler(fail):
        poking = Background(poke_until, done)
        with pytest.raises(FromHandler):
            waiting.set()
            call()
        poking.result()


def test_interrupt_ends_a_recv_that_would_wait_for_ever(net):
    client, _server = net.pair()
    done = threading.Event()

    def interrupt(*args):
        if not done.is_set():
            done.set()
            signal.default_int_handler(*args)

    with handler(interrupt, signal.SIGINT):
        interrupting = Background(poke_until, done, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            client.recv(1)
        interrupting.result()


def test_connection_works_on_after_an_interrupted_wait(net):
    client, server = net.pair()
    done = threading.Event()

    def fail(*_):
        if not done.is_set():
            done.set()
            raise FromHandler

    with handler(fail):
        poking = Background(poke_until, done)
        with pytest.raises(FromHandler):
            client.recv(1)
        poking.result()
    server.sendall(b"later")
    assert client.recv(10) == b"later"
    client.sendall(b"too")
    assert server.recv(10) == b"too"
    net.assert_ring(client, server)


def test_signal_ends_a_wait_for_all_with_what_has_come(net):
    client, server = net.pair()
    server.sendall(b"abc")
    done = threading.Event()

    with handler(lambda *_: None):
        poking = Background(poke_when_taken, client, done)
        assert client.recv(10, socket.MSG_WAITALL) == b"abc"
        done.set()
        poking.result()


def test_signal_ends_a_send_with_what_it_took(net):
    client, server = net.pair()
    done = threading.Event()
    with handler(lambda *_: None):
        poking = Background(poke_when_full, client, done)
        sent = client.send(pattern(64 * MIB))
        done.set()
        poking.result()
    assert 0 < sent < 64 * MIB
    assert receive_exactly(server, sent) == pattern(64 * MIB)[:sent]


def poke_when_full(sock, done) -> None:
    """Send signals until the waiting call is over, but not before it has sent something."""
    eventually(lambda: ask(sock, termios.TIOCOUTQ) > 0, "the waiting call sent")
    poke_until(done)


def poke_when_taken(sock, done) -> None:
    """Send signals until the waiting call is over, but not before it has taken what there is."""
    eventually(lambda: ask(sock, termios.FIONREAD) == 0, "the waiting call took the bytes")
    poke_until(done)


def test_timeout_counts_on_through_handlers(net):
    client, _server = net.pair()
    client.settimeout(0.3)
    done = threading.Event()
    with handler(lambda *_: None):
        poking = Background(poke_until, done)
        with pytest.raises(TimeoutError):
            client.recv(1)
        done.set()
        poking.result()


def test_wakeup_descriptor_is_written_while_recv_waits(net):
    client, server = net.pair()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        with handler(lambda *_: None):
            done = threading.Event()
            poking = Background(poke_until, done)

            def watch():
                number = os.read(reader, 1)
                done.set()
                server.sendall(b"x")
                return number

            watching = Background(watch)
            assert client.recv(1) == b"x"
            assert watching.result() == bytes([signal.SIGUSR1])
            poking.result()
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
