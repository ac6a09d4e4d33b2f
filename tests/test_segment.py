"""Segments: made once, gone with their last user, opened by whom the owner lets in."""
from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import threading

import pytest
from conformance.waiting import eventually
from process import Process

from shmstack import _native, errors
from shmstack.options import Options
from shmstack.shm import access, objects
from shmstack.shm.layout import DIGEST, HEADER, VERSION
from shmstack.shm.segment import Segment
from shmstack.stack.stack import Stack

OWNER, FRIEND, THIRD = 61011, 61012, 61013
OPTIONS = Options.from_env({"EF_MAX_ENDPOINTS": "8"})
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")


@pytest.fixture
def name():
    made = "t" + secrets.token_hex(5)
    yield made
    left = [entry for entry in os.listdir(objects.DIRECTORY) if made in entry]
    for entry in left:
        os.unlink(f"{objects.DIRECTORY}/{entry}")
    assert left == []


def path(name):
    return f"{objects.DIRECTORY}/{objects.PREFIX}0.{name}"


def exists(name):
    return os.path.exists(path(name))


@pytest.mark.parametrize("turn", range(5))
def test_two_processes_that_create_a_name_at_once_get_one_stack(name, turn):
    with Process() as one, Process() as other:
        for process in (one, other):
            process.start("stack_open", name)
        slots = [process.result() for process in (one, other)]
        assert sorted(slots) == [0, 1]
        one.call("stack_poke", 77)
        assert other.call("stack_peek") == 77
    assert not exists(name)


def test_threads_that_open_a_name_get_one_object(name):
    found = []
    threads = [threading.Thread(target=lambda: found.append(Stack.open(name, 0, OPTIONS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(stack) for stack in found}) == 1
    found[0].leave()


def test_last_user_removes_the_object(name):
    with Process() as one:
        with Process() as other:
            one.call("stack_open", name)
            other.call("stack_open", name)
            assert one.call("stack_others")
        assert exists(name)
        assert not one.call("stack_others")
    assert not exists(name)


def test_object_of_a_killed_user_is_reaped(name):
    with Process() as one, Process() as other:
        one.call("stack_open", name)
        other.call("stack_open", name)
        other.kill()
        assert not one.call("stack_others")
        assert one.call("stack_alive", 1) is False
        one.kill()
    assert exists(name) and not objects.living(f"0.{name}")
    objects.reap()
    assert not exists(name)


def test_name_of_the_killed_is_made_anew(name):
    with Process() as one:
        one.call("stack_open", name)
        one.call("stack_poke", 77)
        one.kill()
    with Process() as heir:
        assert heir.call("stack_open", name) == 0
        assert heir.call("stack_peek") == 0


def test_reap_leaves_what_is_in_use_or_being_made(name):
    with Process() as one:
        one.call("stack_open", name)
        objects.reap()
        assert exists(name)
    half = access.shm_open(objects.PREFIX + "0." + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    objects.reap()
    assert exists(name)
    os.ftruncate(half, 1 << 16)
    fcntl.flock(half, fcntl.LOCK_EX)
    objects.reap()
    assert exists(name)
    os.close(half)
    objects.reap()
    assert not exists(name)


def test_empty_object_whose_maker_was_killed_is_reaped(name, monkeypatch):
    os.close(access.shm_open(objects.PREFIX + "0." + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    monkeypatch.setattr(objects, "TURN_SECONDS", -1)         # as if that were long ago
    objects.reap()
    assert not exists(name)


def test_half_made_object_is_never_mapped(name):
    fd = access.shm_open(objects.PREFIX + "0." + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.ftruncate(fd, 1 << 16)
    with pytest.raises(errors.LayoutMismatch, match="ready=0"):
        Segment.attach(f"0.{name}")
    stack = Stack.open(name, 0, OPTIONS)                       # whoever made it is dead: it is made anew
    assert stack.segment.slot == 0
    stack.leave()
    os.close(fd)


def test_object_of_another_layout_is_refused_naming_both(name):
    stack = Stack.open(name, 0, OPTIONS)
    base = stack.segment.base + HEADER.at.digest
    _native.call.store(base, DIGEST + 1)
    with pytest.raises(errors.LayoutMismatch) as caught:
        Segment.attach(f"0.{name}")
    assert f"{VERSION}/{DIGEST:x}" in str(caught.value) and f"{VERSION}/{DIGEST + 1:x}" in str(caught.value)
    _native.call.store(base, DIGEST)
    Segment.attach(f"0.{name}").leave()
    stack.leave()


@pytest.mark.parametrize(("field", "value"), [
    ("pairs_max", 1 << 40), ("pairs_max", -1), ("capacity", 3 << 14), ("capacity", 1 << 40), ("capacity", -(1 << 63)),
    ("size", 1 << 40), ("size", 0)])
def test_header_that_contradicts_the_object_is_refused(name, field, value):
    stack = Stack.open(name, 0, OPTIONS)
    where = stack.segment.base + getattr(HEADER.at, field)
    before = _native.call.load(where)
    _native.call.store(where, value)
    with Process() as other:
        assert other.call("attempt", "stack_open", name) == "EPROTO"
    _native.call.store(where, before)
    assert not stack.segment.others()
    stack.leave()


def test_slot_is_not_taken_twice_and_is_given_back(name):
    stack = Stack.open(name, 0, OPTIONS)
    more = [Segment.attach(f"0.{name}") for _ in range(3)]
    assert [user.slot for user in more] == [1, 2, 3]
    more[0].leave()
    again = Segment.attach(f"0.{name}")
    assert again.slot == 1
    for user in (more[1], more[2], again):
        user.leave()
    assert not stack.segment.others()
    stack.leave()


@pytest.mark.parametrize("slot", [-1, 512, 1 << 40, (1 << 63) - 1, -(1 << 63)])
def test_number_that_is_no_slot_is_nobody(name, slot):
    stack = Stack.open(name, 0, OPTIONS)
    assert not stack.segment.alive(slot)
    stack.leave()


def test_forked_child_is_a_user_of_its_own(name):
    with Process() as parent:
        parent.call("stack_open", name)
        slot, others = parent.call("stack_in_child")
        assert slot == 1 and others
        assert not parent.call("stack_others")


def test_slot_of_a_killed_parent_is_free_though_its_child_lives(name):
    with Process() as watcher, Process() as parent:
        watcher.call("stack_open", name)
        parent.call("stack_open", name)
        assert watcher.call("stack_alive", 1)
        child = parent.call("stack_waiting_child")
        parent.kill()
        assert not watcher.call("stack_alive", 1)
        assert watcher.call("stack_alive", 2)
        os.kill(child, 9)
        eventually(lambda: not watcher.call("stack_alive", 2), "the child ended")


@needs_root
@pytest.mark.parametrize(("share", "friend", "third"), [(0, False, False), (FRIEND, True, False), (-1, True, True)])
def test_object_is_opened_by_whom_the_owner_lets_in(name, share, friend, third):
    with Process(OWNER) as owner, Process(OWNER) as same, Process(FRIEND) as one, Process(THIRD) as other:
        owner.call("stack_open", name, share)
        assert same.call("attempt", "segment_attach", name) == OWNER
        for process, allowed in ((one, friend), (other, third)):
            assert process.call("attempt", "segment_attach", name, OWNER) == (OWNER if allowed else "EACCES")
            assert process.call("attempt", "segment_attach", name) == "EACCES"        # a stranger's, not asked for
            assert process.call("attempt", "open_plainly", path(name)) == (True if allowed else "EACCES")


def test_reason_why_a_listener_has_no_stack_is_said():
    code = ("import resource, shmstack.socket as socket; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2); "
            "socket.create_server(('127.0.0.1', 0)).close()")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "EF_LOG": "debug"}, capture_output=True,
                          text=True, check=True, timeout=60, cwd="/")
    assert "kernel TCP: not_error [Errno 12]" in done.stderr


# ---- memory --------------------------------------------------------------------------------------------------

def streams(client, server, count):
    """Make connections that stream both ways; return which of them are accelerated on both sides."""
    address, found = server.call("listen"), []
    for number in range(count):
        client.call("connect", address, number)
        server.call("accept", number)
        server.start("stream", 1, 2, 1 << 19, number)
        client.call("stream", 2, 1, 1 << 19, number)
        server.result()
        found.append(all(process.call("home", number) for process in (client, server)))
    return found


@needs_root
@pytest.mark.parametrize("size", [64, 300, 700, 1500])
def test_rings_take_what_memory_there_is_and_the_kernel_carries_the_rest(size):
    script = f'mount -t tmpfs -o size={size}k none /dev/shm && exec "$0" "$@"'
    with Process(prefix=["unshare", "--mount", "sh", "-c", script]) as server:
        server.call("listen", name="other")                    # by then it is mounted
        with Process(prefix=["nsenter", f"--mount=/proc/{server.pid}/ns/mnt"]) as client:
            found = streams(client, server, 10)
            assert found[0] == (size > 64) and not found[-1], found
            counters = client.call("counters")
            assert size == 64 or (counters["not_stack_full"] == found.count(False) and counters["not_no_memory"] > 0)


def test_linux_without_populate_write_has_accelerated_connections():
    with Process() as client, Process() as server:
        for process in (client, server):
            process.call("be_an_old_kernel")
        assert streams(client, server, 3) == [True] * 3
