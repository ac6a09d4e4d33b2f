"""Who waits for long uses no CPU, and is woken by everything that ends the wait."""
from __future__ import annotations

import time
from pathlib import Path

import pytest
from process import Process

LONG = 0.7                            # s, more than a wait sleeps on its bell
SECONDS = 1.0                         # within which a killed peer must be seen
WINDOW = 1.5


@pytest.fixture
def pair():
    with Process() as client, Process() as server:
        client.call("connect", server.call("listen"))
        server.call("accept")
        exchange(client, server)
        yield client, server


def exchange(client, server):
    server.start("answer", 10, 3)
    client.call("ask", 10, 3)
    server.result()


def sleeps_deeply(other):
    end = time.monotonic() + 10
    while not other.call("peer_sleeps_deeply"):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(LONG)


def wakes(pid):
    """Return how often the threads of a process went to sleep by themselves."""
    status = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in status)


@pytest.mark.parametrize("wait", [("receive", 1), ("receive_with_timeout", 1, 100)], ids=str)
def test_a_receiver_that_waits_for_long_never_wakes_up(pair, wait):
    client, server = pair
    server.start(*wait)
    sleeps_deeply(client)
    before = wakes(server.pid)
    time.sleep(WINDOW)
    assert wakes(server.pid) - before <= 1
    client.call("send", b"x")
    assert server.result() == b"x"


@pytest.mark.parametrize("kind", ["poll", "select", "epoll"])
def test_a_selector_that_waits_for_long_wakes_up_seldom(pair, kind):
    client, server = pair
    server.start("wait_in", kind)
    time.sleep(LONG)
    before = wakes(server.pid)
    time.sleep(WINDOW)
    assert wakes(server.pid) - before <= 2
    client.call("send", b"x")
    assert server.result() is True


def test_a_message_after_a_long_wait_goes_on_in_the_ring(pair):
    client, server = pair
    for size in (1, 1000, 1_000_000):
        server.start("receive", size)
        sleeps_deeply(client)
        data = bytes(range(250)) * (size // 250) or b"x"
        client.call("send", data)
        assert server.result() == data
        exchange(client, server)
        assert client.call("home")[1:] == server.call("home")[1:] == ("ring", "ring")


@pytest.mark.parametrize("victim", [0, 1], ids=["client", "server"])
def test_a_peer_that_is_killed_during_a_long_wait_is_seen(pair, victim):
    victim, survivor = pair[victim], pair[1 - victim]
    survivor.start("receive_all")
    sleeps_deeply(victim)
    victim.kill()
    data, end = survivor.result(SECONDS)
    assert data == b"" and end in ("EOF", "ECONNRESET")


def test_a_peer_that_closes_during_a_long_wait_is_seen(pair):
    client, server = pair
    server.start("receive_all")
    sleeps_deeply(client)
    client.call("close")
    assert server.result(SECONDS) == (b"", "EOF")


def test_signal_handlers_run_during_a_long_wait(pair):
    client, server = pair
    server.start("receive_with_alarm", 1, 2 * LONG)
    sleeps_deeply(client)
    time.sleep(2 * LONG)
    client.call("send", b"x")
    data, ran = server.result()
    assert data == b"x" and ran >= 3


def test_a_long_wait_ends_at_the_time_out(pair):
    _, server = pair
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        server.call("receive_with_timeout", 1, LONG)
    assert LONG <= time.monotonic() - began < LONG + 0.3


def test_a_sleeper_still_moves_what_its_peer_has_not_read(pair):
    """Who gives his descriptor away needs the other side for that, even if it has slept for long."""
    client, server = pair
    client.call("send", b"abc")
    client.start("receive_all")
    time.sleep(2 * LONG)
    assert server.call("receive_by_descriptor", 3) == b"abc"
    assert client.result(SECONDS) == (b"", "EOF")


def test_a_sleeper_moves_what_another_thread_sent_meanwhile(pair):
    client, server = pair
    client.call("receive_beside", 1)
    sleeps_deeply(server)
    client.call("send", b"abc")
    assert server.call("receive_by_descriptor", 3) == b"abc"


def test_two_threads_that_wait_for_long_both_get_their_messages(pair):
    client, server = pair
    server.call("receive_beside", 1)
    sleeps_deeply(client)
    server.call("receive_beside", 1)
    time.sleep(0.05)
    for letter in (b"a", b"b"):
        client.call("send", letter)
        assert client.call("receive", 1) == letter
