"""Moves between stacks: every byte arrives, once and in order, whoever moves, sleeps, streams or dies meanwhile."""
from __future__ import annotations

import os
import secrets

import pytest
from process import Died, Process

import shmstack
import shmstack.socket as socket
from shmstack import views
from shmstack.errors import NotMovable, StackFull
from shmstack.shm.layout import COPY, DIRECTION, PAIR, REBUILD, TCB, ZERO

SHARED = "/dev/shm"
STREAM = 24 << 20


@pytest.fixture
def stacks():
    """Names of four stacks; at the end nothing of them is left."""
    names = ["m" + secrets.token_hex(4) + letter for letter in "abcd"]
    yield names
    with Process() as last:
        last.call("tidy")
    assert [entry for entry in os.listdir(SHARED) if any(name in entry for name in names)] == []


@pytest.fixture
def pair(stacks):
    with Process(EF_NAME=stacks[0]) as client, Process(EF_NAME=stacks[0]) as server:
        join(client, server)
        yield client, server


def join(client, server, name="one"):
    server.start("listen", name="listener" + name)
    client.call("connect", server.result(), name=name)
    server.call("accept", name=name, listener="listener" + name)
    for _ in range(2):
        talk(client, server, name)


def talk(client, server, name="one"):
    server.start("answer", 100, 5, name=name)
    client.call("ask", 100, 5, name=name)
    server.result()


def until(process, act, *args):
    while not process.call(act, *args):
        pass


@pytest.mark.parametrize("struct", [PAIR, TCB, DIRECTION], ids=lambda struct: struct.name)
def test_every_field_says_where_it_goes(struct):
    assert set(struct.moves) == set(struct.fields)
    assert set(struct.moves.values()) <= {COPY, REBUILD, ZERO}


@pytest.mark.parametrize("mover", [0, 1])
def test_idle_connection_moves_and_both_ends_are_there(pair, stacks, mover):
    before = [end.call("stat") for end in pair]
    assert pair[mover].call("move", stacks[1]) == stacks[1]
    after = [end.call("stat") for end in pair]
    assert {stat.stack_name for stat in before} == {stacks[0]}
    assert {stat.stack_name for stat in after} == {stacks[1]}
    assert len({stat.stack_id for stat in after}) == 1 and after[0].stack_id != before[0].stack_id
    assert [stat.endpoint_state for stat in after] == ["ESTABLISHED"] * 2
    talk(*pair)
    assert {lane for stat in (end.call("stat") for end in pair) for lane in stat[4:]} == {"ring"}
    assert pair[0].call("look", stacks[0]) == (0, [])
    assert pair[0].call("look", stacks[1]) == (2, [])


def test_unread_bytes_of_both_directions_go_along(pair, stacks):
    client, server = pair
    client.call("send", b"a" * 10_000)
    server.call("send", b"b" * 100_000)
    client.call("move", stacks[1])
    server.call("move", stacks[2])
    assert server.call("receive", 10_000) == b"a" * 10_000
    assert client.call("receive", 100_000) == b"b" * 100_000
    talk(client, server)
    assert client.call("stat").stack_name == stacks[2]


def test_idle_end_is_led_past_all_the_stacks_between(pair, stacks):
    client, server = pair
    client.call("send", b"x" * 1000)
    for number in range(50):
        client.call("move", stacks[1 + number % 3])
    rows = {row.name: (row.endpoints_used, views.check(row)) for row in views.stacks() if row.name in stacks}
    assert rows == {stacks[0]: (2, []), stacks[1]: (0, []), stacks[2]: (2, []), stacks[3]: (0, [])}
    assert len([entry for entry in os.listdir(SHARED) if entry.startswith("shmstack.f.") and stacks[2] in entry]) == 1
    assert server.call("receive", 1000) == b"x" * 1000
    talk(client, server)
    assert client.call("look", stacks[0]) == (0, [])
    assert not [entry for entry in os.listdir(SHARED) if entry.startswith("shmstack.f.") and stacks[2] in entry]


@pytest.mark.parametrize("mover", [0, 1])
def test_reader_that_sleeps_gets_what_comes_after_the_move(pair, stacks, mover):
    mover, reader = pair[mover], pair[1 - mover]
    for stack in (stacks[1], stacks[2], stacks[0]):
        reader.start("receive", 5)
        until(mover, "peer_sleeps")
        mover.call("move", stack)
        mover.call("send", b"hello")
        assert reader.result() == b"hello"
        assert reader.call("stat").stack_name == stack


def test_sender_that_waits_for_room_goes_on_in_the_target(pair, stacks):
    client, server = pair
    client.start("send_messages", 5, 8 << 20)
    until(server, "stalls")
    server.call("move", stacks[1])
    server.start("check_polled", 5, 8 << 20, "select")
    client.result()
    assert server.result() == 8 << 20
    assert client.call("stat").stack_name == stacks[1]


@pytest.mark.parametrize("movers", ["client", "server", "both"])
def test_stream_both_ways_survives_moves_without_end(pair, stacks, movers):
    client, server = pair
    used = []
    for end, seeds, who in ((client, (1, 2), "client"), (server, (2, 1), "server")):
        if movers in (who, "both"):
            names = stacks[1:3] if who == "client" else stacks[2:4]
            used += names
            end.start("move_while", "stream", *seeds, STREAM, stacks=names)
        else:
            end.start("stream", *seeds, STREAM)
    answers = [client.result(), server.result()]
    moved = [answer for answer in answers if isinstance(answer, tuple)]
    assert all(total == STREAM and moves > 3 for total, moves in moved), answers
    assert len(moved) == (2 if movers == "both" else 1)
    talk(client, server)
    assert client.call("move", stacks[0]) == stacks[0]
    talk(client, server)
    assert {row.name: (row.endpoints_used, views.check(row)) for row in views.stacks() if row.name in stacks} \
        == {stack: (2 if stack == stacks[0] else 0, []) for stack in {stacks[0], *used}}


@pytest.mark.parametrize("kind", ["select", "epoll"])
@pytest.mark.parametrize("mover", ["sender", "reader"])
def test_poller_sees_every_byte_of_a_stream_that_moves(pair, stacks, kind, mover):
    client, server = pair
    total = 8 << 20
    sends, reads = ["send_messages", 9, total], ["check_polled", 9, total, kind]
    client.start(*(["move_while", *sends] if mover == "sender" else sends),
                 **({"stacks": stacks[1:3]} if mover == "sender" else {}))
    server.start(*(["move_while", *reads] if mover == "reader" else reads),
                 **({"stacks": stacks[1:3]} if mover == "reader" else {}))
    client.result()
    server.result()
    talk(client, server)


def test_rings_of_other_sizes_take_the_stream(pair, stacks):
    client, server = pair
    client.call("send", bytes(range(200)) * 500)
    with pytest.raises(NotMovable, match="unread bytes"):
        server.call("move", stacks[1], EF_TCP_SNDBUF=16384)
    assert server.call("stat").stack_name == stacks[0]
    assert server.call("receive", 90_000) == bytes(range(200)) * 450
    assert server.call("move", stacks[1]) == stacks[1]
    client.call("move", stacks[2], EF_TCP_RCVBUF=1 << 20)
    assert server.call("receive", 10_000) == bytes(range(200)) * 50
    client.start("stream", 3, 4, STREAM)
    server.start("move_while", "stream", 4, 3, STREAM, stacks=stacks[1:3])
    assert client.result() == STREAM
    assert server.result()[0] == STREAM


def test_full_target_leaves_everything_as_it_is(pair, stacks):
    client, server = pair
    for number in range(3):
        join(client, server, f"x{number}")
        if number < 2:
            client.call("move", stacks[1], f"x{number}", EF_MAX_ENDPOINTS=4)
    with pytest.raises(StackFull):
        client.call("move", stacks[1])
    for name in ("one", "x0", "x1", "x2"):
        talk(client, server, name)
    assert client.call("stat").stack_name == server.call("stat").stack_name == stacks[0]
    assert client.call("counters")["moves_refused"] == 1
    client.call("close", "x0")
    server.call("close", "x0")
    assert client.call("move", stacks[1]) == stacks[1]


def test_peer_without_access_keeps_the_connection_where_it_is(stacks):
    if os.geteuid():
        pytest.skip("only root can play other users")
    with Process(EF_NAME=stacks[0], EF_SHARE_WITH=-1) as client, Process() as server:
        server.call("become", 1234)
        join(client, server)
        with pytest.raises(NotMovable, match="uid 1234"):
            client.call("move", stacks[1], EF_SHARE_WITH=0)
        with pytest.raises(NotMovable, match="uid 1234"):
            client.call("move", stacks[2], EF_SHARE_WITH=4321)
        talk(client, server)
        assert client.call("stat").stack_name == server.call("stat").stack_name == stacks[0]
        assert client.call("move", stacks[3], EF_SHARE_WITH=1234) == stacks[3]
        talk(client, server)
        assert server.call("stat").stack_name == stacks[3]


@pytest.mark.parametrize("victim", ["mover", "peer"])
def test_killed_while_moving_ends_the_stream_for_the_other(stacks, victim):
    with Process(EF_NAME=stacks[0]) as client, Process(EF_NAME=stacks[0]) as server:
        join(client, server)
        client.start("move_while", "stream_until_cut", 1, 2, stacks=stacks[1:3])
        server.start("stream_until_cut", 2, 1)
        while sum(values["moves"] for stack, values in views.counters().items() if stack in stacks) < 20:
            pass
        dying, survivor = (client, server) if victim == "mover" else (server, client)
        dying.kill()
        answer = survivor.result(30)
        assert (answer[0] if isinstance(answer, tuple) else answer) in ("cut", "ECONNRESET", "EPIPE")


@pytest.mark.parametrize("calls", range(1, 300, 9))
def test_mover_killed_at_any_word_leaves_every_byte(stacks, calls):
    with Process(EF_NAME=stacks[0]) as mover, Process(EF_NAME=stacks[0]) as peer:
        join(mover, peer)
        if calls & 1:
            mover.call("move", stacks[2])                     # then there is a pair between to be led past
        data = secrets.token_bytes(50_000)
        mover.call("send", data)
        try:
            if mover.call("move_until_killed", stacks[1:2], calls) == "moved":
                mover.call("send", b"after")
                data += b"after"
                mover.kill()
        except Died:
            pass
        got, end = peer.call("receive_all")
        assert got == data and end in ("EOF", "ECONNRESET")


def test_lock_of_the_dead_is_broken_by_who_has_their_slot_now(stacks):
    with Process(EF_NAME=stacks[0]) as client, Process(EF_NAME=stacks[0]) as server:
        join(client, server)
        client.call("move", stacks[1])                        # nobody else is there yet
        assert client.call("take_lock", "tx_lock") == 1
        client.kill()
        server.start("receive_all")                           # comes to the very slot in the table of processes
        assert server.result()[1] in ("EOF", "ECONNRESET")


def test_mover_that_ends_at_once_leaves_what_it_sent(stacks):
    with Process(EF_NAME=stacks[0]) as mover, Process(EF_NAME=stacks[0]) as peer:
        join(mover, peer)
        for number in (1, 2, 3):
            mover.call("move", stacks[number])
            mover.call("send", bytes([number]) * 30_000)
        assert mover.end() == 0
        with Process(EF_NAME=stacks[1]) as other:
            other.call("tidy")
        assert peer.call("receive_all") == (b"\1" * 30_000 + b"\2" * 30_000 + b"\3" * 30_000, "EOF")


def test_forked_holders_and_duplicates_follow(pair, stacks):
    client, server = pair
    server.call("duplicate")
    child = server.call("fork_answering", 100, 7)
    client.call("move", stacks[1])
    client.call("ask", 100, 7)
    assert server.call("reap", child) == 0
    client.call("send", b"x" * 100)
    assert server.call("receive", 100, "two") == b"x" * 100
    server.call("close", "two")
    talk(client, server)
    assert client.call("look", stacks[0]) == (0, [])
    client.call("move", stacks[2])
    server.call("close")
    assert client.call("receive_all") == (b"", "EOF")
    client.call("close")
    assert client.call("look", stacks[1]) == (0, [])
    assert client.call("look", stacks[2]) == (0, [])


def test_closing_and_half_closing_cross_with_moves(pair, stacks):
    client, server = pair
    for number in range(12):
        join(client, server, name := f"c{number}")
        client.call("send", b"last", name)
        (client if number & 1 else server).start("move", stacks[1 + number % 3], name)
        (server if number & 1 else client).call("attempt", "close", name)
        try:
            (client if number & 1 else server).result()
        except NotMovable:
            pass
        reader = client if number & 1 else server
        assert reader.call("receive_all", name)[1] in ("EOF", "ECONNRESET")
        reader.call("close", name)
    for stack in stacks[1:]:
        assert client.call("look", stack) == (0, []) if stack in [row.name for row in views.stacks()] else True


def test_both_ends_of_one_process_follow_together(stacks):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, stacks[0])
    with client, server:
        client.send(b"one")
        shmstack.move_fd(client)
        assert shmstack.fd_stat(server).stack_name == shmstack.stack_name(client) == stacks[0]
        assert server.recv(3) == b"one"
        server.setblocking(False)
        client.send(b"two")
        assert server.recv(3) == b"two"
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_NOCHANGE, "")
    shmstack.stack.names._mine.pop(next(key for key in shmstack.stack.names._mine if key[1] == stacks[0])).leave()


def test_what_is_not_accelerated_or_not_accepted_does_not_move():
    with socket.socket() as sock, pytest.raises(NotMovable):
        shmstack.move_fd(sock)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as early:
        with pytest.raises(NotMovable, match="accepted"):
            shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, f"early{os.getpid()}")
            shmstack.move_fd(early)
        shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_NOCHANGE, "")
        early.send(b"x")
        server, _ = listener.accept()
        with server:
            assert server.recv(1) == b"x"
