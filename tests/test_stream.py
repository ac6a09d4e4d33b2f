"""One direction of a stream against a queue of bytes, in plain Python and compiled; and fed with garbage."""
from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule import Kernels, run
from wiring import KERNEL, RING, ROOM, Compiled, D, H, plain

from shmstack import _native
from shmstack.ring import lock, stream
from shmstack.shm.layout import DIRECTION
from shmstack.tcp import loopback, wait

K = Kernels(stream, lock, loopback, wait, SPINS=1, YIELDS=0)
OVERFLOW, PEEK = 1 << 32, 2
EMPTY = (-loopback.EAGAIN, -loopback.LOOK)
STUCK = (-loopback.EAGAIN, -loopback.FULL)
CAPACITY = 8

sends = st.tuples(st.just("send"), st.integers(1, 20), st.sampled_from([0, OVERFLOW]))
receives = st.tuples(st.just("receive"), st.integers(1, 20), st.sampled_from([0, 0, PEEK]))
bells = st.tuples(st.just("bell"), st.sampled_from([RING, KERNEL]), st.just(0))
operations = st.lists(st.one_of(sends, receives, bells), max_size=40)


class Plain:
    """The kernels as Python: every address is checked."""

    def __init__(self):
        self.memory, self.wires = plain(CAPACITY, lifeline=30)
        self.load, self.store = self.memory.word, self.memory.set
        self.read, self.write = self.memory.read, self.memory.write

    def call(self, name, *args):
        return run(self.memory, getattr(K, name)(*args))

    def close(self):
        pass


class Native(Compiled):
    """The kernels as machine code, with real sockets."""

    def __init__(self):
        super().__init__(CAPACITY)
        native = _native.call
        self.load, self.store, self.read, self.write = native.load, native.store, native.read, native.write

    def call(self, name, *args):
        return getattr(_native.call, name)(*args)


def check(place, sequence):
    """Apply the operations to the kernels and to a queue; whatever is sent comes out once and in order."""
    model, numbers, w = deque(), random.Random(1), place.wires
    tx, h0, h1 = w.directions[0], *w.handles
    sent = received = 0

    def receive(size, flags):
        nonlocal received
        got = place.call("recv_some", h1, w.buffers[1], size, flags)
        if got <= 0:
            assert got in EMPTY
            return 0
        expected = bytes(list(model)[:got])
        assert place.read(w.buffers[1], got) == expected and got <= size
        if not flags:
            received += got
            for _ in range(got):
                model.popleft()
        return got

    for what, number, flags in sequence:
        if what == "send":
            data = numbers.randbytes(number)
            place.write(w.buffers[0], data)
            got = place.call("send_some", h0, w.buffers[0], number, flags)
            assert got in STUCK or 0 < got <= number
            if got > 0:
                sent += got
                model.extend(data[:got])
        elif what == "receive":
            receive(number, flags)
        else:
            place.store(tx + D.bell, number)
            place.call("announce", h0, tx)
        assert (place.load(tx + D.tail), place.load(tx + D.head)) == (sent, received)
    while receive(20, 0):
        pass
    assert not model and sent == received


@pytest.mark.parametrize("kind", [Plain, Native])
@given(sequence=operations)
@settings(max_examples=150, deadline=None)
def test_a_stream_is_a_queue_of_bytes_whatever_its_lanes(kind, sequence):
    place = kind()
    try:
        check(place, sequence)
    finally:
        place.close()


@pytest.mark.parametrize("kind", [Plain, Native])
def test_a_ring_that_is_full_takes_nothing_and_wraps_when_there_is_room(kind):
    place = kind()
    w, got = place.wires, b""
    for turn in range(50):
        place.write(w.buffers[0], bytes([turn] * 5))
        assert place.call("send_some", w.handles[0], w.buffers[0], 5, 0) == 5
        place.write(w.buffers[0], bytes([turn + 100] * 5))
        assert place.call("send_some", w.handles[0], w.buffers[0], 5, 0) == 3
        assert place.call("send_some", w.handles[0], w.buffers[0], 2, 0) == -loopback.FULL
        assert place.call("recv_some", w.handles[1], w.buffers[1], 20, PEEK) == 8
        assert place.call("recv_some", w.handles[1], w.buffers[1], 20, 0) == 8
        got += place.read(w.buffers[1], 8)
    assert got == b"".join(bytes([turn] * 5 + [turn + 100] * 3) for turn in range(50))
    place.close()


# ---- garbage -------------------------------------------------------------------------------------------------

words = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-20, 40),
                  st.sampled_from([(1 << 63) - 1, -(1 << 63), 1 << 62, 1 << 32, -1]))
fields = [name for name in DIRECTION.at._fields if name not in ("tx_lock", "rx_lock")]
garbage = st.lists(st.tuples(st.sampled_from(fields), st.integers(0, 1), words), min_size=1, max_size=6)
CALLS = [("send_some", 0), ("recv_some", 1), ("recv_end", 1), ("announce", 0), ("spill", 0)]
SILENT = [("arrived", 1), ("in_ring", 1), ("has_room", 0)]


def feed(place, rounds):
    """Scribble over both directions between calls; whatever happens, a call ends and touches only what is its own."""
    w = place.wires
    for scribbles in rounds:
        for field, side, value in scribbles:
            place.store(w.directions[side] + getattr(D, field), value)
        for name, side in CALLS:
            spilling = (w.directions[side], int(len(scribbles) & 1)) if name == "spill" else (w.directions[side],)
            args = (w.buffers[side], 8, OVERFLOW) if name[4:5] == "_" else spilling
            got = place.call(name, w.handles[side], *args)
            assert got <= max(8, CAPACITY) or name in ("announce", "spill")
        for name in ("pass_bounds", "lane_end", "outstanding"):
            if name == "pass_bounds":
                place.call(name, w.directions[0], place.load(w.directions[0] + D.head))
            else:
                place.call(name, w.directions[0])
        for name, side in SILENT:
            if name != "has_room" or isinstance(place, Plain):
                place.call(name, w.handles[side], *([4] if name == "has_room" else []))


@given(rounds=st.lists(garbage, min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_garbage_never_leads_out_of_the_ring(rounds):
    feed(Plain(), rounds)                                     # its memory fails for any other address


@given(rounds=st.lists(garbage, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_garbage_leaves_the_memory_around_a_ring_alone(rounds):
    place = Native()
    w = place.wires
    around = [(w.handles[0], H.users), (w.buffers[0] + 8, ROOM - 8), (w.buffers[1] + 8, ROOM - 8)]
    try:
        before = [place.read(*area) for area in around]
        feed(place, rounds)
        assert [place.read(*area) for area in around] == before
    finally:
        place.close()


@pytest.mark.parametrize("kind", [Plain, Native])
def test_bounds_that_are_all_garbage_end_in_an_answer(kind):
    place = kind()
    rx = place.wires.directions[0]
    for bound in ("bound0", "bound1", "bound2", "bound3"):
        place.store(rx + getattr(D, bound), 5)
    for field, value in ((D.head, 5), (D.tail, 5), (D.nb, 1 << 62)):
        place.store(rx + field, value)
    assert place.call("recv_some", place.wires.handles[1], place.wires.buffers[1], 8, 0) <= 8
    place.close()


EDGES = (-(1 << 63), -(1 << 63) + 1, -1, 0, 4, 100, (1 << 63) - 1)


@pytest.mark.parametrize("head", EDGES)
def test_positions_whose_differences_overflow_move_no_more_than_was_asked_for(head):
    place = Native()
    w = place.wires
    try:
        for tail in EDGES:
            for bound in EDGES:
                for nb in (0, 1, 2):
                    for side in range(2):
                        for field, value in ((D.head, head), (D.tail, tail), (D.nb, nb), (D.passed, nb & 1),
                                             (D.bound0, bound), (D.bound1, bound), (D.bell, KERNEL)):
                            place.store(w.directions[side] + field, value)
                    place.store(w.directions[0] + D.head_cache, head)
                    place.sockets[0].send(bytes(100))
                    place.write(w.buffers[1], b"x" * 100)
                    assert place.call("recv_some", w.handles[1], w.buffers[1], 8, 0) <= 8
                    assert place.read(w.buffers[1] + 8, 92) == b"x" * 92
                    place.call("announce", w.handles[0], w.directions[0])
                    assert len(place.sockets[1].recv(1000)) <= 100 + CAPACITY
                    place.store(w.directions[0] + D.bell, RING)
                    place.store(w.directions[0] + D.tail, tail)
                    place.write(w.rings[1], b"y" * CAPACITY)
                    place.call("send_some", w.handles[0], w.buffers[0], 20, 0)
                    assert place.read(w.rings[1], CAPACITY) == b"y" * CAPACITY
                    place.sockets[0].send(b"z")
                    while place.sockets[1].recv(1000)[-1:] != b"z":
                        pass
    finally:
        place.close()
