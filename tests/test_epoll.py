"""The epoll set that also looks into shared memory: what it owns, when it lets go, and that it misses nothing."""
from __future__ import annotations

import gc
import os
import random
import secrets
import select as kernel
import threading
import time

import pytest

import shmstack
import shmstack.select as select
import shmstack.socket as socket
from shmstack import _native
from shmstack.ring.bell import KERNEL, RING
from shmstack.shm.layout import DIRECTION, WAITER
from shmstack.stack import watch
from shmstack.stack.watch import Waiter

IN, OUT, ET, ONE = kernel.EPOLLIN, kernel.EPOLLOUT, kernel.EPOLLET, kernel.EPOLLONESHOT
PATIENCE_S = 20
BELL = DIRECTION.at.bell


def bell(sock):
    return _native.call.load(sock._endpoint.rx + BELL)


def number(sock):
    return sock._descriptor()            # as `fileno()`, which would expose it


@pytest.fixture
def pairs():
    made = []

    def pair(blocking=False):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        made.extend((client, server))
        for sock in (client, server):
            sock.setblocking(blocking)
        return client, server
    yield pair
    for sock in made:
        sock.close()


@pytest.fixture
def epoll():
    with select.epoll() as made:
        yield made


def later(function, *args, after=0.2):
    timer = threading.Timer(after, function, args)
    timer.start()
    return timer


def test_registered_socket_is_owned_and_released(pairs, epoll):
    client, server = pairs()
    epoll.register(server, IN)
    assert bell(server) >= 16
    client.send(b"x")
    assert client._endpoint.lanes()[0] == "ring"
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    epoll.unregister(server)
    assert epoll.poll(0) == []
    assert server.recv(9) == b"x"
    with select.epoll() as other:
        other.register(server, IN)
    assert bell(server) == KERNEL


def test_only_read_interest_is_owned(pairs, epoll):
    _, server = pairs()
    epoll.register(server, OUT)
    assert bell(server) == KERNEL
    epoll.modify(server, IN | OUT)
    assert bell(server) >= 16
    epoll.modify(server, OUT)
    assert epoll.poll(PATIENCE_S) == [(number(server), OUT)]
    assert bell(server) == RING


# ---- who left the set, and comes back

@pytest.fixture
def parked(pairs, epoll):
    """A pair whose server's end was in the set."""
    client, server = pairs()
    epoll.register(server, IN)
    epoll.unregister(server)
    assert server._endpoint.home
    return client, server


def test_parked_socket_is_not_reported(parked, epoll):
    client, _ = parked
    client.send(b"x")
    assert client._endpoint.lanes()[0] == "ring"
    assert epoll.poll(0) == [] and epoll.poll(0.01) == []


@pytest.mark.parametrize("sleeps", [False, True])
def test_parked_socket_that_comes_back_is_reported(parked, epoll, sleeps):
    client, server = parked
    waiter = epoll._poller._waiters[server._endpoint.stack.name]
    for turn in range(20):
        client.send(b"before")
        if sleeps:
            assert epoll.poll(0.001) == []
            assert bell(server) == RING
        epoll.register(server, IN)
        assert bell(server) == waiter.bell
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)], turn
        assert server.recv(9) == b"before"
        assert epoll.poll(0) == []
        later(client.send, b"after", after=0.02 if sleeps else 0)
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)], turn
        assert server.recv(9) == b"after"
        epoll.unregister(server)
    assert epoll._poller._waiters[server._endpoint.stack.name] is waiter


def test_parked_socket_fills_its_ring_while_the_set_sleeps(parked, epoll):
    client, server = parked
    assert epoll.poll(0.001) == []
    client.send(b"x" * 100_000)
    assert client._endpoint.lanes()[0] == "ring" and server._endpoint.unread()
    epoll.register(server, IN)
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]


def test_parked_socket_goes_to_another_set(parked, epoll):
    client, server = parked
    with select.epoll() as other:
        other.register(server, IN)
        assert server._endpoint.watchers == (other._poller,) and bell(server) >= 16
        later(client.send, b"x")
        assert other.poll(PATIENCE_S) == [(number(server), IN)]
        epoll.register(server, IN)
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
        assert other.poll(PATIENCE_S) == [(number(server), IN)]


def test_parked_socket_is_seen_by_a_foreign_poller(parked, epoll):
    client, server = parked
    client.send(b"x")
    with kernel.epoll() as foreign:
        foreign.register(server.fileno(), IN)
        assert foreign.poll(PATIENCE_S) == [(number(server), IN)]
        assert os.read(number(server), 9) == b"x"
        later(client.send, b"y")
        assert foreign.poll(PATIENCE_S) == [(number(server), IN)]
        assert os.read(number(server), 9) == b"y"
    epoll.register(number(server), IN)
    later(client.send, b"z")
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    assert os.read(number(server), 9) == b"z"


def test_parked_socket_may_block(parked, epoll):
    client, server = parked
    server.settimeout(PATIENCE_S)
    for _ in range(3):
        later(client.send, b"x")
        assert server.recv(9) == b"x"
    server.settimeout(0)
    epoll.register(server, IN)
    later(client.send, b"y")
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_parking_keeps_no_socket_alive(epoll):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    epoll.register(server, IN)
    fd = number(server)
    epoll.unregister(server)
    del server
    gc.collect()
    client.settimeout(PATIENCE_S)
    assert client.recv(1) == b""
    assert fd not in epoll._poller._parked and not epoll._poller._waiters
    client.close()


def test_parked_socket_that_is_closed_leaves_nothing(parked, epoll):
    client, server = parked
    stack = server._endpoint.stack.name
    server.close()
    assert client.recv(1) == b""
    assert not epoll._poller._parked and stack not in epoll._poller._waiters


def test_parked_socket_after_a_fork(parked, epoll):
    client, server = parked
    child = os.fork()
    if child == 0:
        status = 1
        try:
            epoll.register(server, IN)
            assert epoll.poll(PATIENCE_S) == [(number(server), IN)] and server.recv(1) == b"1"
            epoll.unregister(server)
            status = 0
        finally:
            os._exit(status)
    client.send(b"12")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    epoll.register(server, IN)
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    assert server.recv(9) == b"2"


def test_parked_socket_that_moves_to_another_stack(parked, epoll):
    client, server = parked
    shmstack.stackname_save()
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, "parked" + secrets.token_hex(4))
    try:
        shmstack.move_fd(client)
    finally:
        shmstack.stackname_restore()
    client.send(b"x")
    epoll.register(server, IN)
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    assert server.recv(9) == b"x"


def test_what_was_in_the_ring_before_is_reported(pairs, epoll):
    client, server = pairs(blocking=True)
    client.send(b"early")
    epoll.register(server, IN)
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    assert server.recv(2) == b"ea"
    assert epoll.poll(0) == [(number(server), IN)]
    assert server.recv(9) == b"rly"
    assert epoll.poll(0) == []


def test_rest_after_a_blocking_receive_is_reported(pairs, epoll):
    client, server = pairs(blocking=True)
    epoll.register(server, IN)
    later(client.send, b"abcdef")
    assert server.recv(2) == b"ab"           # sleeps on the bell that the set owns
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    assert server.recv(9) == b"cdef"
    later(client.send, b"g")
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]


def test_sleeper_is_woken_by_each_message(pairs, epoll):
    client, server = pairs()
    epoll.register(server, IN)
    for size in (1, 64, 5000):
        later(client.send, b"x" * size, after=0.1)
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
        assert len(server.recv(9999)) == size


def test_sleeper_sees_what_another_thread_registers(pairs, epoll):
    client, server = pairs()
    client.send(b"x")
    later(epoll.register, server, IN)
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]


def test_end_of_stream_comes_after_the_ring(pairs, epoll):
    client, server = pairs()
    epoll.register(server, IN | kernel.EPOLLRDHUP)
    client.send(b"last")
    client.close()
    (fd, events), = epoll.poll(PATIENCE_S)
    assert (fd, events & IN) == (number(server), IN)
    assert server.recv(9) == b"last"
    (fd, events), = epoll.poll(PATIENCE_S)
    assert events & kernel.EPOLLRDHUP and server.recv(9) == b""


def test_two_sets_both_see_it(pairs, epoll):
    client, server = pairs()
    with select.epoll() as other:
        epoll.register(server, IN)
        other.register(server, IN)
        assert bell(server) == KERNEL
        client.send(b"x")
        for each in (epoll, other):
            assert each.poll(PATIENCE_S) == [(number(server), IN)]
    server.recv(9)
    client.send(b"y")                        # the one that is left owns it again
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    assert bell(server) >= 16


def test_one_shot_of_the_ring_is_off_in_the_kernel_too(pairs, epoll):
    client, server = pairs()
    epoll.register(server, IN | ONE)
    client.send(b"a")
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
    client.send(b"b")
    assert epoll.poll(0.05) == []
    later(epoll.modify, server, IN | ONE)
    assert epoll.poll(PATIENCE_S) == [(number(server), IN)]


def test_few_events_at_a_time_starve_nobody(pairs, epoll):
    made = [pairs() for _ in range(5)]
    readable, writable = os.pipe()
    os.write(writable, b"x")
    epoll.register(readable, IN)
    for client, server in made:
        epoll.register(server, IN)
        client.send(b"x")
    seen = {fd for _ in range(40) for fd, _ in epoll.poll(PATIENCE_S, 2)}
    assert seen == {readable, *[number(server) for _, server in made]}
    os.close(readable)
    os.close(writable)


def test_descriptor_that_is_used_again_is_not_reported(pairs, epoll):
    _, server = pairs()
    fd = number(server)
    epoll.register(server, IN)
    server.close()
    client, server = pairs()
    assert fd in (number(client), number(server))
    for sock in (client, server):
        sock.send(b"x")
    assert epoll.poll(0.05) == []
    epoll.register(fd, IN)                   # the kernel agrees that it isn't there
    assert epoll.poll(PATIENCE_S) == [(fd, IN)]


def test_registered_before_it_is_accelerated(epoll):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", 1))
        epoll.register(client, IN)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        epoll.register(client, IN)
        client.connect_ex(listener.getsockname())
        server, _ = listener.accept()
        with server:
            for turn in range(4):
                server.send(b"x")
                events = epoll.poll(PATIENCE_S)
                while events[0][1] != IN:            # an unconnected socket is hung up
                    events = epoll.poll(PATIENCE_S)
                assert events == [(number(client), IN)]
                assert client.recv(9) == b"x", turn
            assert client._endpoint.home


def test_program_that_reads_the_descriptor_itself(pairs, epoll):
    client, server = pairs()
    fd = server.fileno()
    epoll.register(fd, IN)
    for turn in range(20):
        client.send(b"x")
        assert epoll.poll(PATIENCE_S) == [(fd, IN)]
        assert os.read(fd, 9) == b"x", turn
    assert epoll.poll(0) == []


def test_receiving_through_the_socket_brings_the_ring_back(pairs, epoll):
    client, server = pairs()
    epoll.register(server.fileno(), IN)
    for _ in range(3):
        client.send(b"x")
        epoll.poll(PATIENCE_S)
        server.recv(9)
    client.send(b"x")
    assert client._endpoint.lanes()[0] == "ring" and server._endpoint.home


def test_foreign_poller_of_the_set_sees_its_members(pairs, epoll):
    client, server = pairs()
    epoll.register(server, IN)
    outer = kernel.epoll()
    outer.register(epoll.fileno(), IN)
    client.send(b"x")
    assert outer.poll(PATIENCE_S) == [(epoll.fileno(), IN)]
    assert epoll.poll(0) == [(number(server), IN)]
    outer.close()


def test_set_without_a_free_waiter_uses_the_kernel(pairs, epoll, monkeypatch):
    monkeypatch.setattr(Waiter, "claim", classmethod(lambda cls, stack: None))
    client, server = pairs(blocking=True)
    epoll.register(server, IN)
    for turn in range(5):
        later(client.send, b"xy", after=0.02)
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)], turn
        assert server.recv(1) == b"x"
        assert epoll.poll(0) == [(number(server), IN)]
        assert server.recv(1) == b"y"


def test_waiter_of_a_dead_process_is_used_again(pairs):
    _, server = pairs()
    stack = server._endpoint.stack
    first = Waiter.claim(stack)
    assert first is not None
    where = first.address + WAITER.at.owner
    _native.call.store(where, 400)           # nobody has this slot
    second = Waiter.claim(stack)
    assert second is not None and second.address == first.address
    second.release()
    assert _native.call.load(where) == 0


def test_closed_set_gives_its_waiters_back(pairs):
    _, server = pairs()
    epoll = select.epoll()
    epoll.register(server, IN)
    epoll.close()
    assert bell(server) == KERNEL and not server._endpoint.watchers
    assert all(poller.kernel is not epoll._kernel for poller in watch.pollers)
    epoll = select.epoll()
    epoll.register(server, IN)
    del epoll                                # without close
    assert not server._endpoint.watchers


def test_kernel_only(pairs, monkeypatch):
    monkeypatch.setenv("EF_UL_EPOLL", "0")
    from shmstack.stack import names
    names.forget_environment()
    try:
        with select.epoll() as epoll:
            client, server = pairs()
            epoll.register(server, IN)
            assert bell(server) == KERNEL
            client.send(b"x")
            assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
            assert client._endpoint.lanes()[0] == "kernel"
    finally:
        names.forget_environment()


def test_child_does_not_disturb_its_parent(pairs, epoll):
    client, server = pairs()
    epoll.register(server, IN)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            epoll.unregister(server)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The kernel's set is shared: what the child took out is out for the parent too, as it is with the kernel's own.
    epoll.register(server, IN)
    for turn in range(5):
        later(client.send, b"x", after=0.05)
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)], turn
        assert server.recv(9) == b"x"


def test_many_threads_share_a_set(pairs, epoll):
    made = [pairs() for _ in range(8)]
    left, done = [200 * len(made)], threading.Event()
    got = {number(server): bytearray() for _, server in made}
    by_number = {number(server): server for _, server in made}
    turn = threading.Lock()

    def serve():
        while not done.is_set():
            for fd, _ in epoll.poll(0.2):
                try:
                    data = by_number[fd].recv(100)
                except BlockingIOError:
                    data = b""
                with turn:
                    got[fd] += data
                    left[0] -= len(data)
                    if left[0] <= 0:
                        done.set()
                epoll.modify(fd, IN | ONE)
    for _, server in made:
        epoll.register(server, IN | ONE)
    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for index in range(200):
        for client, _ in made:
            client.send(bytes([index]))
    assert done.wait(PATIENCE_S)
    for thread in threads:
        thread.join()
    assert all(data == bytes(range(200)) for data in got.values())


@pytest.mark.parametrize("spin", ["0", "20", "2000"])
def test_nothing_is_missed_between_two_processes(spin, monkeypatch, tmp_path):
    """Both sides sleep or spin at random; a missed event is a hang."""
    from shmstack.stack import names
    monkeypatch.setenv("EF_SPIN_USEC", spin)
    monkeypatch.setenv("EF_EPOLL_SPIN", "1")
    names.forget_environment()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    with socket.create_connection(listener.getsockname()) as sock:
                        _echo(sock, 2000, 1)
                    status = 0
                finally:
                    os._exit(status)
            sock, _ = listener.accept()
            with sock:
                sock.send(b"go")
                _echo(sock, 2000, 2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        names.forget_environment()


def _echo(sock, turns, seed):
    chance = random.Random(seed)
    sock.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(sock, IN)
        for turn in range(turns):
            events = epoll.poll(PATIENCE_S)
            assert events and events[0][1] & IN, turn
            data = sock.recv(100)
            if not data:
                return
            if chance.random() < 0.1:
                time.sleep(chance.random() * 0.0005)
            try:
                sock.send(data)
            except ConnectionError:
                return


def test_ring_behind_the_kernel_lane_is_reported_after_it(pairs, epoll):
    """A large message to a sleeper comes in two lanes; whoever looks before reading must hear of the second too."""
    client, server = pairs()
    client.setblocking(True)
    epoll.register(server, IN)
    later(client.sendall, b"x" * 100_000, after=0.05)
    got = 0
    for _ in range(100):
        assert epoll.poll(PATIENCE_S) == [(number(server), IN)]
        assert epoll.poll(0) == [(number(server), IN)]
        got += len(server.recv(100_000))
        if got == 100_000:
            break
    assert got == 100_000
    assert epoll.poll(0) == []


@pytest.mark.parametrize("size", [1, 264, 5000])
def test_bytes_in_a_ring_that_was_left_and_taken_again_are_found(pairs, epoll, size):
    client, server = pairs()
    epoll.register(number(server), IN)
    for _ in range(5):
        client.send(bytes(size))
        assert epoll.poll(PATIENCE_S) and len(server.recv(size)) == size
        client.fileno()                                       # whoever has it may write, so the ring is left
        client.send(bytes(size))
        assert epoll.poll(PATIENCE_S) and len(server.recv(size)) == size
        assert not epoll.poll(0)


@pytest.mark.parametrize("seed", range(8))
def test_streams_of_sockets_whose_descriptor_is_asked_for_at_any_time_are_whole(pairs, seed):
    """Both ends send, receive and call fileno() as they like, each with its set; every byte comes, and in order."""
    total, failed = 400_000, []

    def side(sock, mine, theirs):
        chosen, sent, got, asks = random.Random(mine), 0, 0, 0
        out, into = random.Random(f"bytes {mine}").randbytes(total), random.Random(f"bytes {theirs}").randbytes(total)
        with select.epoll() as watching:
            watching.register(number(sock), IN | OUT)
            while sent < total or got < total:
                events = watching.poll(PATIENCE_S)
                if not events:
                    failed.append((mine, sent, got))
                    return
                if not asks or chosen.random() < 0.2:
                    sock.fileno()
                    asks += 1
                if events[0][1] & IN:
                    data = sock.recv(chosen.choice((1, 100, 30_000)))
                    if into[got:got + len(data)] != data or not data:
                        failed.append((mine, sent, got, "bytes"))
                        return
                    got += len(data)
                if events[0][1] & OUT and sent < total:
                    sent += sock.send(out[sent:sent + chosen.choice((1, 264, 70_000))])
                elif sent == total:
                    watching.modify(number(sock), IN)
                if chosen.random() < 0.01:
                    time.sleep(0.003)

    client, server = pairs()
    names = [f"{seed} client", f"{seed} server"]
    sides = (client, *names), (server, *names[::-1])
    threads = [threading.Thread(target=side, args=each) for each in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
