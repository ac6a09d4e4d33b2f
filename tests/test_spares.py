"""Mode 4: a stack holds one connection at a time, is used again, and goes away with the processes."""
from __future__ import annotations

import os
import threading

import pytest
from process import Process

from shmstack import views
from shmstack.options import Options
from shmstack.stack import spares
from shmstack.stack.stack import Stack

NETNS = os.getpid()                   # of no namespace: pytest-xdist has several of us
MODE_4 = {"EF_TCP_CLIENT_LOOPBACK": 4}


@pytest.fixture(autouse=True)
def none_left():
    spares.after_fork_in_child()
    yield
    spares.after_fork_in_child()
    assert not [row for row in views.stacks() if row.netns == NETNS]


def used(stack):
    """Have a connection come and go."""
    index = stack.take_pair()
    stack.release_pair(index)


def test_stack_is_given_again_once_it_was_given_back_and_is_empty():
    options = Options.from_env({})
    first = spares.take(NETNS, options)
    assert spares.take(NETNS, options) is not first
    index = first.take_pair()
    spares.done(first)                                        # our end; the other isn't closed yet
    assert spares.take(NETNS, options) is not first
    first.release_pair(index)
    assert spares.take(NETNS, options) is first


def test_other_options_get_another_stack():
    options = Options.from_env({})
    first = spares.take(NETNS, options)
    spares.done(first)
    assert spares.take(NETNS, options.replace(share_with=12345)) is not first
    assert spares.take(NETNS, options) is first


def test_child_leaves_its_parents_stacks_alone():
    options = Options.from_env({})
    first = spares.take(NETNS, options)
    name = first.name
    spares.done(first)
    child = os.fork()
    if child == 0:
        spares.after_fork_in_child()
        os._exit(spares.take(NETNS, options).name == name)
    assert os.waitpid(child, 0)[1] == 0


def test_no_two_threads_are_given_one_stack():
    options = Options.from_env({})
    for stack in [spares.take(NETNS, options) for _ in range(spares.MOST)]:
        spares.done(stack)
    given, start = [], threading.Barrier(4)

    def ask():
        start.wait()
        for _ in range(50):
            stack = spares.take(NETNS, options)
            given.append(stack)
            used(stack)
            owners = [other for other in given if other is stack]
            assert len(owners) == 1
            given.remove(stack)
            spares.done(stack)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_few_are_kept():
    options = Options.from_env({})
    stacks = [spares.take(NETNS, options) for _ in range(3 * spares.MOST)]
    while stacks:
        spares.done(stacks.pop())
    assert sum(row.netns == NETNS for row in views.stacks()) == spares.MOST


def test_who_met_a_stack_leaves_it_when_he_is_alone():
    met = Stack.unnamed(NETNS, Options.from_env({}), spares.PAIRS)
    name = met.name
    spares.keep(met)
    del met
    assert [row.full for row in views.stacks() if row.netns == NETNS] == [name]
    spares.done(Stack.attach(name))
    assert not [row for row in views.stacks() if row.netns == NETNS]


def test_connections_at_once_have_different_stacks_and_later_ones_the_same():
    with Process(**MODE_4) as client, Process() as server:
        address = server.call("listen")

        def open_connection(name):
            client.call("connect", address, name)
            server.call("accept", name)
            client.call("send", b"hello", name)
            assert server.call("receive", 5, name) == b"hello"
            return client.call("home", name)[0]

        one, two = open_connection("one"), open_connection("two")
        assert one != two
        for process in (client, server):
            process.call("close", "one")
        three = open_connection("three")
        assert three == one != client.call("own_stack", "two")
        before = {row.full for row in views.stacks()}
        assert {one, two} <= before
    assert not {one, two} & {row.full for row in views.stacks()}
