"""Ends of `shmstack.connection.Pipe`, and a Queue, in processes that did not inherit them."""
from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import threading
from multiprocessing.reduction import ForkingPickler

import pytest

from shmstack import _native, connection, errors
from shmstack.shm.layout import TCB
from shmstack.stack import journey

PATIENCE_S = 60
METHODS = ["spawn", "forkserver"]


def lanes(made):
    return made._endpoint.lanes() if getattr(made, "_endpoint", None) else None


def holders(made):
    return _native.call.load(made._endpoint.tcb + TCB.at.holders)


def answer(made):
    try:
        while True:
            made.send((os.getpid(), made.recv(), lanes(made)))
    except EOFError:
        pass


def put_all(queue, number, count, seed):
    """Put messages of all sizes: small ones go at once, others by the thread."""
    sizes = random.Random(seed)
    for index in range(count):
        queue.put((number, index, bytes(sizes.choice([0, 10, 5000, 70_000, 300_000]))))
    queue.close()
    queue.join_thread()


def take_all(queue, back):
    while (thing := queue.get()) is not None:
        back.put(thing)
    back.put(None)


@pytest.mark.parametrize("method", METHODS)
def test_pipe_stays_in_the_ring(method):
    one, two = connection.Pipe()
    one.send("before")                                        # lies in the ring as it goes
    child = multiprocessing.get_context(method).Process(target=answer, args=(two,))
    child.start()
    two.close()
    assert one.recv()[:2] == (child.pid, "before")
    for number in range(100):
        one.send(number)
        assert one.recv() == (child.pid, number, ("ring", "ring"))
    assert lanes(one) == ("ring", "ring")
    one.close()
    child.join(PATIENCE_S)
    assert child.exitcode == 0


@pytest.mark.parametrize("method", METHODS)
def test_death_of_who_has_it_is_the_end(method):
    one, two = connection.Pipe()
    child = multiprocessing.get_context(method).Process(target=answer, args=(two,))
    child.start()
    two.close()
    one.send(1)
    one.recv()
    child.kill()
    with pytest.raises((EOFError, ConnectionResetError)):
        one.recv()
    child.join(PATIENCE_S)
    one.close()


def test_one_that_comes_back_is_another_of_the_same():
    one, two = connection.Pipe()
    again = pickle.loads(ForkingPickler.dumps(two))
    assert (holders(two), again.readable, again.writable) == (2, True, True)
    two.close()
    one.send("x")
    assert (again.recv(), holders(again), lanes(again)[0]) == ("x", 1, "ring")
    again.close()
    with pytest.raises(EOFError):
        one.recv()
    one.close()


def test_directions_stay_what_they_are():
    reader, writer = connection.Pipe(duplex=False)
    made = pickle.loads(ForkingPickler.dumps(reader))
    assert (made.readable, made.writable) == (True, False)
    for some in (made, reader, writer):
        some.close()


def test_end_that_is_gone_says_so():
    one, two = connection.Pipe()
    ticket = journey.leave(two._endpoint)
    with pytest.raises(errors.StackDied, match="ended on its way"):
        journey.arrive(ticket._replace(generation=ticket.generation + 1), two._sock)
    with pytest.raises(errors.StackDied, match="ended on its way"):
        journey.arrive(ticket._replace(cookie=ticket.cookie + 1), two._sock)
    with pytest.raises(errors.StackNotFound):
        journey.arrive(ticket._replace(stack=f"{ticket.stack}x"), two._sock)
    two._endpoint.leave()
    assert holders(two) == 1
    one.close()
    two.close()


def test_closed_one_cannot_go():
    one, two = connection.Pipe()
    one.close()
    two.close()
    with pytest.raises(OSError, match="handle is closed"):
        ForkingPickler.dumps(one)


@pytest.mark.parametrize("method", ["fork", *METHODS])
def test_queue_keeps_the_order_of_each_process_and_thread(method):
    context = multiprocessing.get_context(method)
    there, back = connection.Queue(ctx=context), connection.Queue(ctx=context)
    child = context.Process(target=take_all, args=(there, back))
    child.start()
    other = context.Process(target=put_all, args=(there, 1, 60, 1))
    other.start()
    def work():
        sizes = random.Random(2)
        for index in range(60):
            there.put((2, index, bytes(sizes.choice([0, 10, 5000, 70_000, 300_000]))))

    thread = threading.Thread(target=work)
    thread.start()
    for index in range(60):
        there.put((3, index, b""))
    thread.join(PATIENCE_S)
    other.join(PATIENCE_S)
    there.put(None)
    got = []
    while (thing := back.get(timeout=PATIENCE_S)) is not None:
        got.append(thing)
    child.join(PATIENCE_S)
    assert (child.exitcode, other.exitcode, len(got)) == (0, 0, 180)
    for number in (1, 2, 3):
        assert [index for who, index, _ in got if who == number] == list(range(60))
    for number in (1, 2):
        sizes = random.Random(number)
        assert [len(data) for who, _, data in got if who == number] \
            == [sizes.choice([0, 10, 5000, 70_000, 300_000]) for _ in range(60)]
    for queue in (there, back):
        queue.close()
        queue.join_thread()


@pytest.mark.parametrize("polls", [False, True], ids=["", "its reader polls"])
def test_put_does_not_wait_for_a_reader(polls):
    queue = connection.Queue()
    if polls:
        queue.put(0)
        assert queue.get(timeout=PATIENCE_S) == 0             # from here on its input is looked for in the kernel
    for number in range(3000):
        queue.put((number, bytes(3000)))
    assert [queue.get()[0] for _ in range(3000)] == list(range(3000))
    queue.close()
    queue.join_thread()


def test_what_cannot_be_pickled_is_reported_and_skipped(capfd):
    queue = connection.Queue(maxsize=1)
    queue.put("first")
    assert queue.get(timeout=PATIENCE_S) == "first"
    queue.put(threading.Lock())
    queue.put("second")
    assert queue.get(timeout=PATIENCE_S) == "second"
    assert "cannot pickle" in capfd.readouterr().err
    queue.put("third")                                        # by itself again
    assert queue.get(timeout=PATIENCE_S) == "third"
    queue.close()
    queue.join_thread()


class Talks:
    """Puts something else while it is pickled."""

    def __init__(self, queue):
        self.queue = queue

    def __reduce__(self):
        self.queue.put("inner")
        return str, ("outer",)


def test_pickling_may_put_into_the_same_queue():
    queue = connection.Queue()
    queue.put(Talks(queue))
    assert sorted(queue.get(timeout=PATIENCE_S) for _ in range(2)) == ["inner", "outer"]
    queue.close()
    queue.join_thread()


def test_closed_queue_takes_nothing_and_ends_for_its_reader():
    queue = connection.Queue()
    end = pickle.loads(ForkingPickler.dumps(queue._reader))
    queue.put("last")
    queue.close()
    with pytest.raises(ValueError, match="is closed"):
        queue.put("more")
    assert end.recv() == "last"
    with pytest.raises(EOFError):
        end.recv()
    end.close()
