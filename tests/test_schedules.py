"""Every order in which two or three processes can step through the kernels, and what may come of it.

A table names each possible outcome and why it is right; what begins with FORBIDDEN must never be seen.  Each scene is
shown to be sharp: with a bug planted in a kernel it finds the outcome.
"""
from __future__ import annotations

import functools
import inspect

import pytest
from schedule import Kernels, Memory, explore, killed, run
from wiring import KERNEL, D, H, plain

from shmstack.ring import doorbell, lock, stream
from shmstack.shm.layout import PAIR_SIZE
from shmstack.tcp import codes, lane, lend, loopback, spill, wait

OVERFLOW = 1 << 32
MODULES = doorbell, lock, stream, lane, lend, loopback, spill, wait
K = Kernels(*MODULES, SPINS=2, YIELDS=0)
FOREVER = "sleeps for ever"
SHORT, LONG = 1 << 20, 1 << 40          # ns: on the bell, on the lifeline
NOBODY = (-codes.EAGAIN, -codes.LOOK, -codes.LOCKED, -codes.CHANGED)


def planted(**kernels):
    return Kernels(*MODULES, SPINS=2, YIELDS=0, planted=kernels)


def judge(found, table):
    """Each outcome that was found is in the table and not forbidden; each allowed one was found."""
    for outcome in found:
        assert outcome in table and not table[outcome].startswith("FORBIDDEN"), (outcome, table.get(outcome), found)
    assert set(found) == {outcome for outcome, why in table.items() if not why.startswith("FORBIDDEN")}


# ---- SYNC tail, SYNC head ------------------------------------------------------------------------------------

def one_message(k):
    """Publish "ab" || look once."""
    memory, w = plain(4)
    direction, ring = w.directions[0], w.rings[0]
    memory.write(w.buffers[0], b"ab")

    def sender():
        yield from k.put(ring, 4, 3, w.buffers[0], 2)             # wraps: two copies
        yield from k.publish(direction, 5)

    def receiver():
        size = yield from k.readable(direction, 3, 4)
        return size > 0 and (yield from k.get(ring, 4, 3, w.buffers[1], size)) and memory.read(w.buffers[1], size)

    memory.set(direction + D.tail, 3)
    return memory, [sender(), receiver()], lambda _, sent, got: got


def test_tail_is_seen_only_with_the_bytes_before_it():
    judge(explore(lambda: one_message(K)), {
        False: "the receiver came first", b"ab": "the receiver came after the tail",
        b"a\0": "FORBIDDEN: the tail was seen before the bytes it covers"})


def test_tail_before_the_bytes_is_found():
    def scene():
        memory, (_, receiver), outcome = one_message(K)
        w = plain(4)[1]

        def early():
            yield from K.publish(w.directions[0], 5)
            yield from K.put(w.rings[0], 4, 3, w.buffers[0], 2)
        return memory, [early(), receiver], outcome
    assert {b"a\0", b"\0\0"} <= set(explore(scene))


def full_ring(k):
    """A ring of 4 that holds "abcd": send "ef" as room comes || receive 2 and 2."""
    memory, w = plain(4)
    direction, ring = w.directions[0], w.rings[0]
    memory.write(ring, b"abcd")
    memory.write(w.buffers[0], b"ef")
    memory.set(direction + D.tail, 4)

    def sender():
        for _ in range(2):
            if (yield from k.cached_room(direction, 4, 4, 2)) >= 2:
                yield from k.put(ring, 4, 4, w.buffers[0], 2)
                yield from k.publish(direction, 6)
                return

    def receiver():
        for head in (0, 2):
            yield from k.get(ring, 4, head, w.buffers[1] + head, 2)
            yield from k.consume(direction, head + 2)
    return memory, [sender(), receiver()], lambda m, *_: m.read(w.buffers[1], 4)


def test_room_is_seen_only_when_the_bytes_were_copied_out():
    judge(explore(lambda: full_ring(K)), {
        b"abcd": "the receiver copied before the sender wrote", b"efcd": "FORBIDDEN: an unread byte was overwritten"})


def test_a_sender_that_overwrites_is_found():
    wrong = planted(cached_room="def cached_room(direction, tail, capacity, wanted):\n    return wanted")
    assert b"efcd" in explore(lambda: full_ring(wrong))


# ---- SYNC bound: the two lanes -------------------------------------------------------------------------------

def lanes(k, sends, capacity=4, looks=3, bell=0):
    """The real send || the real receive, on a ring so small that the stream changes lanes."""
    memory, w = plain(capacity)
    data, got = b"abcdefghijkl", bytearray()
    memory.write(w.buffers[0], data)
    memory.set(w.directions[0] + D.bell, bell)

    def sender():
        sent = 0
        for size in sends:
            sent += max(0, (yield from k.send_some(w.handles[0], w.buffers[0] + sent, size, OVERFLOW)))

    def receiver():
        for _ in range(looks):
            size = yield from k.recv_some(w.handles[1], w.buffers[1], 8, 0)
            if size > 0:
                got.extend(memory.read(w.buffers[1], size))
            elif size not in NOBODY:
                got.extend(b"!%d" % size)
    return memory, [sender(), receiver()], lambda *_: "in order" if data.startswith(got) else bytes(got)


LANES = {"in order": "every byte once, whatever its lane"}


@pytest.mark.parametrize("sends", [(2, 4), (4, 4), (4, 1, 4)], ids=str)
def test_a_stream_that_changes_lanes_stays_in_order(sends):
    judge(explore(lambda: lanes(K, sends), 2), LANES)


def test_a_receiver_that_goes_to_the_kernel_gets_the_ring_first():
    judge(explore(lambda: lanes(K, (2, 2, 2), bell=KERNEL), 2), LANES)


BOUND_FIRST = """
def readable(direction, head, capacity):
    end = lane_end(direction)
    tail = load_acquire(direction + _D.tail)
    if end >= 0 and end < tail:
        tail = end
    size = tail - head
    return size if 0 <= size <= capacity else -1
"""


def test_bounds_that_are_read_before_the_tail_are_found():
    wrong = planted(readable=BOUND_FIRST)
    assert set(explore(lambda: lanes(wrong, (4, 4)), 2)) - set(LANES)


COUNT_FIRST = """
def set_bound(direction, position):
    bounds = load(direction + _D.nb)
    store_release(direction + _D.nb, bounds + 1)
    store_release(direction + _D.bound0 + 8 * (bounds & 3), position)
    return 0
"""


def test_a_bound_that_is_counted_before_it_stands_is_found():
    wrong = planted(set_bound=COUNT_FIRST)

    def scene():
        memory, [_, receiver], outcome = lanes(wrong, ())
        w = plain(4)[1]
        for field, value in ((D.nb, 1), (D.passed, 1), (D.tail, 4)):
            memory.set(w.directions[0] + field, value)
        memory.write(w.rings[0], b"abcd")
        return memory, [wrong.send_some(w.handles[0], w.buffers[0] + 4, 4, OVERFLOW), receiver], outcome
    assert set(explore(scene, 2)) - set(LANES)


def spilling(k):
    """Bytes in the ring, the receiver looks at the kernel only: the sender moves them || the receiver reads."""
    memory, [_, receiver], outcome = lanes(k, (), 8, looks=3)
    w = plain(8)[1]
    direction = w.directions[0]
    for field, value in ((D.tail, 4), (D.nb, 1), (D.passed, 1), (D.bell, KERNEL)):
        memory.set(direction + field, value)
    memory.write(w.rings[0], b"abcd")
    return memory, [k.announce(w.handles[0], direction), receiver], outcome


def test_bytes_that_move_to_the_kernel_lane_arrive_once():
    judge(explore(lambda: spilling(K), 3), LANES)


def behind(k, act, takes=1 << 30):
    """ "ab" in the kernel lane and "cd" in the ring behind it: the sender acts || the receiver reads."""
    memory, w = plain(8, takes)
    data, got, direction = b"abcdefghij", bytearray(), w.directions[0]
    memory.write(w.buffers[0], data)
    sent = [4]
    run(memory, k.send_kernel(w.handles[0], direction, w.buffers[0], 2, 0))
    run(memory, k.end_run(w.handles[0], direction))
    run(memory, k.send_some(w.handles[0], w.buffers[0] + 2, 2, 0))

    def sender():
        sent.append((yield from act(w)))

    def receiver(looks=4):
        for _ in range(looks):
            size = yield from k.recv_some(w.handles[1], w.buffers[1], 3, 0)
            if size > 0:
                got.extend(memory.read(w.buffers[1], size))
            elif size not in NOBODY:
                got.extend(b"!%d" % size)

    def outcome(*_):
        run(memory, receiver(looks=8))
        return "in order" if got == data[:sum(sent)] else bytes(got)
    return memory, [sender(), receiver()], outcome


def test_bytes_that_are_lent_to_others_go_before_what_they_write():
    def act(w):
        lent = yield from K.lend(w.handles[0])
        if lent != 1:
            return 0                                          # what others do is behind us
        return (yield from K.send_kernel(w.handles[0], w.directions[0], w.buffers[0] + 4, 4, 0))
    judge(explore(lambda: behind(K, act), 2), LANES)


@pytest.mark.parametrize("takes", [3, 5, 1 << 30])
def test_a_full_ring_behind_the_kernel_lane_goes_there(takes):
    def act(w):
        first = yield from K.send_some(w.handles[0], w.buffers[0] + 4, 4, 0)
        return first + max(0, (yield from K.send_some(w.handles[0], w.buffers[0] + 8, 2, OVERFLOW)))
    judge(explore(lambda: behind(K, act, takes), 2), LANES)


@pytest.mark.parametrize("takes", [3, 1 << 30])
def test_what_is_too_large_for_the_ring_goes_behind_it(takes):
    def act(w):
        return max(0, (yield from K.send_some(w.handles[0], w.buffers[0] + 4, 6, codes.LARGE)))
    judge(explore(lambda: behind(K, act, takes), 2), LANES)


def test_a_large_send_that_does_not_look_where_the_receiver_is_is_found():
    wrong = planted(leave_ring="def leave_ring(h, tx):\n    begin_run(h, tx, load(tx + _D.tail))\n    return 1")

    def act(w):
        return max(0, (yield from wrong.send_some(w.handles[0], w.buffers[0] + 4, 6, codes.LARGE)))
    assert set(explore(lambda: behind(wrong, act), 2)) - set(LANES)


def test_a_bound_that_is_taken_back_from_a_reading_receiver_is_found():
    wrong = planted(take="def take(lock, holder):\n    return 1")

    def act(w):
        yield from wrong.lend(w.handles[0])
        return 0
    assert set(explore(lambda: behind(wrong, act), 2)) - set(LANES)


# ---- a process is killed while it moves bytes ----------------------------------------------------------------

HEIR = PAIR_SIZE * 8                 # address of its handle


def dying(k, steps, heir, takes=1 << 30, ahead=False):
    """The mover of `spilling`, killed before one of its steps || the receiver || who shares the sending end, if `heir`.

    The bytes lie in two pieces; the kernel takes at most `takes`.  If `ahead` the first of them is unread in the kernel
    lane, and the others are in the ring behind it.  Outcome: what is wrong, or "all", once the receiver
    has read to the end.
    """
    memory, w = plain(8, takes)
    way, got = w.directions[0], bytearray()
    for field, value in ((D.head, 6), (D.tail, 10), (D.nb, 1), (D.passed, 1), (D.bell, KERNEL), (D.head_cache, 6)):
        memory.set(way + field, value)
    memory.write(w.rings[0] + 6, b"ab")
    memory.write(w.rings[0], b"cd")
    if ahead:
        for field, value in ((D.tail, 6), (D.nb, 0), (D.passed, 0), (D.run_start, 6)):
            memory.set(way + field, value)
        run(memory, k.send_kernel(w.handles[0], way, w.rings[0] + 6, 1, 0))
        run(memory, k.end_run(w.handles[0], way))
        memory.set(way + D.tail, 10)
    memory.write(w.buffers[0], b"ef")
    memory.areas.append((HEIR, 512))
    for field in H:
        memory.set(HEIR + field, memory.word(w.handles[0] + field))
    memory.set(HEIR + H.me, 3)

    def inherit(lock, inheriting):
        holder = yield "load_acquire", way + lock
        if holder in memory.dead:
            yield from inheriting(holder)

    def breaking(holder):
        yield from k.break_lock(way + D.rx_lock, holder)

    def inheriting(holder):
        yield from k.break_lock(way + D.rx_lock, holder)
        yield from k.inherit_received(w.handles[1], way, holder, 2)

    def receive():
        size = yield from k.recv_some(w.handles[1], w.buffers[1], 8, 0)
        if size == -codes.LOOK and memory.closed:
            size = yield from k.recv_end(w.handles[1], w.buffers[1], 8, 0)
        if size > 0:
            got.extend(memory.read(w.buffers[1], size))
        elif size == -codes.LOCKED:
            yield from inherit(D.rx_lock, breaking)
        elif size == -codes.MEND:
            yield from inherit(D.tx_lock, inheriting)
        elif size not in (0, *NOBODY):
            got.extend(b"!%d" % size)
        return size

    def receiver():
        for _ in range(3):
            yield from receive()

    def sender():
        for _ in range(2):
            sent = yield from k.send_some(HEIR, w.buffers[0], 2, OVERFLOW)
            if sent != -codes.LOCKED:
                return sent
            yield from inherit(D.tx_lock, lambda holder: k.inherit_sent(HEIR, way, holder, 3))
            yield from inherit(D.rx_lock, breaking)
        return 0

    def outcome(_, was_killed, __, sent=0):
        for _ in range(12):
            run(memory, receive())
        wanted = b"abcdef" if sent == 2 else b"abcde" if sent == 1 else b"abcd"
        return was_killed, "all" if got == wanted else bytes(got)

    moving = k.lend(w.handles[0]) if ahead else k.announce(w.handles[0], way)
    mover = killed(memory, 1, moving, steps, () if heir else (0,))
    return memory, [mover, receiver(), *[sender()] * heir], outcome


def deaths(k, heir, takes, preemptions, ahead=False):
    """Return what was found for all steps that the mover can be killed at."""
    found = set()
    for steps in range(100):
        here = set(explore(functools.partial(dying, k, steps, heir, takes, ahead), preemptions))
        found |= here
        if not any(was_killed for was_killed, _ in here):
            return found
    raise AssertionError("it never comes to its end")


@pytest.mark.parametrize(("takes", "heir"), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (3, 1)])
def test_bytes_that_a_dead_process_was_moving_arrive_once(takes, heir):
    assert deaths(K, heir, takes, 1 if heir else 2) == {(True, "all"), (False, "all")}


@pytest.mark.parametrize(("takes", "heir"), [(1, 0), (2, 0), (4, 0), (2, 1), (4, 1)])
def test_bytes_that_a_dead_process_was_moving_behind_others_arrive_once(takes, heir):
    assert deaths(K, heir, takes, 1, ahead=True) == {(True, "all"), (False, "all")}


def test_a_run_that_goes_on_and_is_noted_anew_is_found():
    source = inspect.getsource(spill.spill.py_func)
    source = source.replace("if not ahead:", "if True:").replace("if ahead else", "if 0 else")
    wrong = planted(spill=source[source.index("def spill"):])
    assert deaths(wrong, 1, 2, 1, ahead=True) - {(True, "all"), (False, "all")}


AFTERWARDS = """
def spill(h, tx, behind):
    if not take(tx + _D.rx_lock, load(h + _H.me)):
        return 0
    head, tail = load_acquire(tx + _D.head), load(tx + _D.tail)
    pass_bounds(tx, head)
    position = head
    if outstanding(tx) == 0 and load(tx + _D.nb) & 1 and 0 <= head < tail:
        position = push(h, head, tail)
        if position > head:
            set_bound(tx, head)
            if position < tail:
                set_bound(tx, position)
    unlock(tx + _D.rx_lock)
    return position - head
"""


def test_a_mover_that_sets_its_bounds_afterwards_is_found():
    assert (True, b"abcdabcd") in deaths(planted(spill=AFTERWARDS), 0, 4, 1)


@pytest.mark.parametrize("heir", [0, 1])
def test_an_heir_that_mends_nothing_is_found(heir):
    wrong = planted(mend="def mend(way, position):\n    return store_release(way + _D.spilling, 0) or 0")
    assert deaths(wrong, heir, 3, 1) - {(True, "all"), (False, "all")}


# ---- SYNC asleep, SYNC stalled -------------------------------------------------------------------------------

def sleeper(k, limit=SHORT):
    """Go to sleep on an empty ring || send."""
    memory, w = plain(8)
    memory.polls = True
    for field in (D.nb, D.passed):
        memory.set(w.directions[0] + field, 1)
    memory.write(w.buffers[0], b"ab")
    return memory, [k.sleep_arrived(w.handles[1], limit), k.send_some(w.handles[0], w.buffers[0], 2, 0)], \
        lambda memory, came, sent: (came, sent, memory.word(w.directions[0] + D.bell))


def test_a_receiver_never_sleeps_through_a_message():
    judge(explore(lambda: sleeper(K), 4), {
        (1, 2, 0): "woken, or never slept; the bell says RING again", FOREVER: "FORBIDDEN: slept through the message"})


class Buffered(Memory):
    """A processor that keeps what the sender (actor 1) publishes to itself until a fence, an atomic or a membarrier."""

    tail = kept = None

    def _store_release(self, address, value):
        if address == self.tail:
            self.kept = value
        else:
            super()._store_release(address, value)

    def _barrier(self, *_):
        if self.kept is not None:
            self.set(self.tail, self.kept)
        return 0

    def _fence(self):
        if self.running == 1:
            self._barrier()

    def _cas(self, *args):
        self._fence()
        return super()._cas(*args)


def buffered(k, fenced, others=(), limit=SHORT):
    """Go to sleep on an empty ring || publish and look at the bell, on a processor that delays stores."""
    memory, w = plain(8, kind=Buffered)
    direction = w.directions[0]
    for field, value in ((D.nb, 1), (D.passed, 1), (D.fenced, fenced)):
        memory.set(direction + field, value)
    memory.tail = direction + D.tail

    def sender():
        yield from k.publish(direction, 2)
        yield from k.announce(w.handles[0], direction)
        yield "cas", w.buffers[0], 0, 0
    return memory, [k.sleep_arrived(w.handles[1], limit), sender(), *[getattr(k, name)(direction) for name in others]], \
        lambda memory, came, *_: (came, memory.word(direction + D.bell))


ASLEEP = {(1, 0): "woken, or never slept", FOREVER: "FORBIDDEN: slept through the message"}


@pytest.mark.parametrize("others", [(), ("unfence",), ("after_bell",), ("after_bell", "unfence")], ids=str)
@pytest.mark.parametrize("fenced", [0, 1, 2, 4, 5, 6])
def test_a_store_that_is_late_is_not_slept_through(fenced, others):
    judge(explore(lambda: buffered(K, fenced, others), 2 if others else None), ASLEEP)


TOO_EARLY = """
def after_bell(direction):
    if load_acquire(direction + _D.fenced) & 3:
        return 0
    cas(direction + _D.fenced, 0, 1)
    load_acquire(direction + _D.fenced)
    return barrier()
"""


@pytest.mark.parametrize(("fenced", "others", "bug"), [
    (2, (), {"before_bell": "def before_bell(direction):\n    return 0"}),
    (0, (), {"after_bell": "def after_bell(direction):\n    return 0"}),
    (0, ("after_bell",), {"after_bell": TOO_EARLY})],
    ids=["sender", "receiver", "too early"])
def test_a_missing_fence_is_found(fenced, others, bug):
    wrong = planted(**bug)
    assert FOREVER in explore(lambda: buffered(wrong, fenced, others), 2)


def test_a_receiver_never_sleeps_on_the_lifeline_through_a_message():
    judge(explore(lambda: sleeper(K, LONG), 3), {
        (1, 2, 0): "woken by the bytes, or never slept", FOREVER: "FORBIDDEN: slept through the message"})


def test_a_sender_that_does_not_move_its_bytes_to_the_lifeline_is_found():
    wrong = planted(spill="def spill(h, tx, behind):\n    return 0")
    assert FOREVER in explore(lambda: sleeper(wrong, LONG), 2)


LOOK_FIRST = """
def sleep_arrived(h, limit_ns):
    bell = load(h + _H.rx) + _D.bell
    if not arrived(h):
        swap(bell, FUTEX)
        sleep(bell, FUTEX, limit_ns)
    cas(bell, FUTEX, RING)
    return arrived(h)
"""


def test_a_receiver_that_looks_before_it_says_that_it_sleeps_is_found():
    wrong = planted(sleep_arrived=LOOK_FIRST)
    assert FOREVER in explore(lambda: sleeper(wrong))


def stalled(k, takes):
    """A full ring: a sender waits for room || the receiver takes some."""
    memory, w = plain(16)
    for field, value in ((D.nb, 1), (D.passed, 1), (D.tail, 16)):
        memory.set(w.directions[0] + field, value)

    def receiver():
        for size in takes:
            yield from k.recv_some(w.handles[1], w.buffers[1], size, 0)
    return memory, [k.wait_room(w.handles[0], 4, 1 << 40), receiver()], lambda memory, came, _: came


@pytest.mark.parametrize("takes", [(4,), (2, 2), (8, 8)], ids=str)
def test_a_sender_never_sleeps_beside_a_quarter_of_room(takes):
    judge(explore(lambda: stalled(K, takes), 2), {1: "there is room", FOREVER: "FORBIDDEN: nobody woke the sender"})


def test_a_sender_is_not_woken_for_less_than_a_quarter():
    judge(explore(lambda: stalled(K, (1,)), 2), {FOREVER: "it waits on: a message for each byte would be slow"})


def test_a_receiver_that_never_relieves_is_found():
    wrong = planted(relieve="def relieve(h, rx):\n    return 0")
    assert FOREVER in explore(lambda: stalled(wrong, (8, 8)), 2)


# ---- SYNC lock -----------------------------------------------------------------------------------------------

LOCK, INSIDE, MOST = 64, 72, 80


def takers(k, holder, count=2):
    """Processes that take one lock, held by nobody or by a process that is dead."""
    memory = Memory([(LOCK, 24)])
    memory.set(LOCK, holder)

    def process(me):
        if not (yield from k.take(LOCK, me)):
            if not holder or not (yield from k.break_lock(LOCK, holder)):
                return 0
            if not (yield from k.take(LOCK, me)):
                return 0
        there = 1 + (yield "fetch_add", INSIDE, 1)
        memory.set(MOST, max(there, memory.word(MOST)))
        yield "fetch_add", INSIDE, -1
        yield from k.unlock(LOCK)
        return 1
    return memory, [process(me) for me in range(1, count + 1)], lambda memory, *_: memory.word(MOST)


@pytest.mark.parametrize("holder", [0, 9], ids=["free", "held by the dead"])
def test_one_process_at_a_time_holds_a_lock(holder):
    for found in (explore(lambda: takers(K, holder)), explore(lambda: takers(K, holder, 3), 1)):
        judge(found, {1: "one at a time", 2: "FORBIDDEN: two at once"})


def test_a_lock_that_is_looked_at_and_then_taken_is_found():
    wrong = planted(take="def take(lock, me):\n    free = load_acquire(lock) == 0\n"
                         "    return 1 if free and store_release(lock, me) is None else 0")
    assert 2 in explore(lambda: takers(wrong, 0))


def test_breaking_a_lock_that_has_changed_hands_is_found():
    wrong = planted(break_lock="def break_lock(lock, holder):\n    swap(lock, 0)\n    return 1")
    assert 2 in explore(lambda: takers(wrong, 9))


def test_number_of_schedules_is_that_of_the_interleavings():
    def scene():
        def actor():
            for _ in range(3):
                yield "fetch_add", 64, 1
        return Memory([(64, 8)]), [actor(), actor()], lambda memory, *_: memory.word(64)
    assert explore(scene) == {6: 20}                              # 6! / (3! 3!)
    assert explore(scene, 0) == {6: 2}
