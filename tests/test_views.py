"""What `views` and the tools over it see of living, dead, foreign and damaged stacks; looking changes nothing."""
from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import shmstack.socket as socket
from shmstack import _native, errors, views
from shmstack.options import Options
from shmstack.shm import objects
from shmstack.shm.layout import COUNTERS, DIRECTION, HEADER, PAIR, PAIR_DIRECTION, PAIR_SIZE, PROCESS, PROCESSES
from shmstack.stack import names
from shmstack.stack.stack import Stack

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            yield client, server


@pytest.fixture
def stack(monkeypatch):
    made = Stack.open(f"v{os.getpid()}", 77, Options.from_env({}))
    yield made
    made.leave()


def _ends(client):
    name = client._endpoint.stack.name
    rows = {row.endpoint & 1: row for row in views.connections(name)
            if client.getsockname() in (row.local, row.remote)}
    return rows[0], rows[1]


def test_connection_shows_both_ends_with_rfc_states(pair):
    client, server = pair
    first, second = _ends(client)
    assert first.local == second.remote == client.getsockname()
    assert first.remote == second.local == server.getsockname()
    assert (first.state, second.state) == ("ESTABLISHED", "ESTABLISHED")
    assert (first.uid, first.pid) == (os.geteuid(), os.getpid())
    assert (first.peer, second.peer) == (second.endpoint, first.endpoint)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert [row.state for row in _ends(client)] == ["FIN-WAIT-2", "CLOSE-WAIT"]


def test_queues_are_bytes_and_lanes_follow_the_receiver(pair):
    client, server = pair
    client.send(b"a")
    assert server.recv(1) == b"a"
    client.send(bytes(1000))
    first, second = _ends(client)
    assert (first.send_q, first.recv_q, second.recv_q, second.send_q) == (1000, 0, 1000, 0)
    assert (first.tx_lane, second.rx_lane) == ("ring", "ring")
    server.fileno()
    client.send(b"b")
    assert _ends(client)[1].rx_lane == "kernel"
    assert server.recv(2000, socket.MSG_WAITALL | socket.MSG_DONTWAIT)[:1] == b"\0"


def test_stack_row_says_owner_policy_and_processes(stack):
    row, = views.stacks(stack.name)
    assert row.name == f"v{os.getpid()}" and row.full == stack.name == f"4d.{row.name}"
    assert (row.owner_uid, row.client, row.server, row.share_with, row.netns) == (os.geteuid(), 2, 2, 0, 77)
    assert (row.endpoints_used, row.endpoints_max, row.capacity) == (0, 8192, stack.capacity)
    assert 0 < row.backed < os.stat(objects.DIRECTORY + "/" + objects.PREFIX + stack.name).st_size
    me, = row.processes
    assert me[:3] == (os.getpid(), Path("/proc/self/comm").read_text().strip()[:15], True)
    assert views.check(row) == []
    stack.take_pair()
    assert views.stacks(stack.name)[0].endpoints_used == 2


def test_looking_gives_no_memory_to_holes(stack):
    path = f"{objects.DIRECTORY}/{objects.PREFIX}{stack.name}"
    before = os.stat(path)
    views.check(stack.name), views.connections(stack.name), views.counters(stack.name), views.stacks()
    after = os.stat(path)
    assert (before.st_blocks, before.st_mtime_ns) == (after.st_blocks, after.st_mtime_ns)


def test_counters_have_all_names(stack):
    stack.count("spills")
    values = views.counters(f"v{os.getpid()}")[f"v{os.getpid()}"]
    assert tuple(values) == COUNTERS
    assert {name: value for name, value in values.items() if value} == {"spills": 1}


def counted(client):
    return next(iter(views.counters(client._endpoint.stack.name).values()))


def test_lanes_that_change_are_counted(pair):
    client, server = pair
    before = counted(client)
    server.send(bytes(1000))
    client.fileno()                                           # a foreign poller may look there from now on
    assert counted(client)["spills"] == before["spills"] + 1


def test_sends_beyond_the_ring_are_counted(pair):
    client, server = pair
    client.send(b"a")
    assert server.recv(1) == b"a"
    before = counted(client)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            client.send(bytes(100_000))
    assert counted(client)["overflows"] == before["overflows"] + 1


@pytest.mark.parametrize(("changed", "reason"), [({"tcp_client_loopback": 0}, "not_client_off"),
                                                 ({"tcp_connect_handover": True}, "not_option")])
def test_options_that_leave_it_to_the_kernel_are_counted(pair, monkeypatch, changed, reason):
    before = counted(pair[0])
    chosen = names.options().replace(**changed)
    monkeypatch.setattr(names, "options", lambda: chosen)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert client._endpoint is None
    assert counted(pair[0])[reason] == before[reason] + 1


def test_unknown_stack_is_an_error():
    for look in (views.connections, views.counters, views.stacks, views.check):
        with pytest.raises(errors.StackNotFound):
            look("nobody.has.this")


def test_listener_is_seen_while_it_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
        row, = [row for row in views.listeners() if row.local == where]
        assert (row.uid, row.server, row.alive) == (os.geteuid(), 2, True)
        assert row.stack in {stack.name for stack in views.stacks()}
    assert where not in [row.local for row in views.listeners()]


@contextmanager
def kept(path):
    """Context in which no other test's process removes an object that nobody uses: they take turns by this lock."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _child(code):
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_dead_process_leaves_a_stack_that_can_be_read():
    name = f"dead{os.getpid()}"
    child = _child("import os, sys; from shmstack.stack.stack import Stack; from shmstack.options import Options\n"
                   f"s = Stack.open('{name}', 78, Options.from_env({{}})); s.take_pair()\n"
                   "print(os.getpid(), flush=True); sys.stdin.read()")
    pid = int(child.stdout.readline())
    assert [(p.pid, p.alive) for p in views.stacks(name)[0].processes] == [(pid, True)]
    with kept(f"{objects.DIRECTORY}/{objects.PREFIX}4e.{name}"):
        child.send_signal(signal.SIGKILL)
        child.communicate()
        row, = views.stacks(name)
        assert [(p.pid, p.alive) for p in row.processes] == [(pid, False)]
        assert row.endpoints_used == 2 and views.connections(name) == []
    objects.reap()
    assert name not in [row.name for row in views.stacks()]


def test_stack_of_another_user_is_listed_with_its_owner(stack):
    if os.geteuid():
        pytest.skip("only root can play another user")
    path = f"{objects.DIRECTORY}/{objects.PREFIX}{stack.name}"
    code = f"import os, encodings.idna\nfrom shmstack import views\nos.setuid(65534); r, = views.stacks('{stack.name}')\n" \
           "print(r.owner_uid, r.problem, views.connections(r.name), views.counters(r.name))"
    assert os.stat(path).st_mode & 0o077 == 0
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "0 inaccessible: Permission denied [] {}\n"


def _look(name):
    for row in views.stacks(name):
        assert row.endpoints_used <= row.endpoints_max
    for row in views.connections(name):
        assert min(row.recv_q, row.send_q) >= 0 and row.tx_lane in ("ring", "kernel")
        json.dumps(row)
    views.counters(name)
    return views.check(name)


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_looked_at_without_error(stack, seed):
    chance, native, base = random.Random(seed), _native.call, stack.segment.base
    for _ in range(3):
        native.store(stack.pair(stack.take_pair()) + PAIR.at.state, views.image.OFFERED)
    keep = {at: native.read(base + at, 8) for at in HEADER.at[:8]} if seed % 2 else {}
    regions = [(0, HEADER.size), (PROCESSES, 4 * PROCESS.size), (stack.pair(0) - base, 3 * PAIR_SIZE)]
    saved = [(at, native.read(base + at, size)) for at, size in regions]
    try:
        for at, size in regions:
            native.write(base + at, chance.choice([chance.randbytes(size), b"\xff" * size, b"\x01" * size]))
        for at, word in keep.items():
            native.write(base + at, word)
        if keep:
            native.store(base + HEADER.at.ready, 1)
        assert _look(stack.name)
    finally:
        for at, bytes_ in saved:
            native.write(base + at, bytes_)
    assert views.check(stack.name) == []


@pytest.mark.parametrize("size", [0, 1, 100, HEADER.size - 1, HEADER.size, PROCESSES + 5, 1 << 20])
def test_file_that_is_cut_short_is_looked_at_without_error(stack, size):
    name = f"4e.cut{os.getpid()}"
    path = Path(f"{objects.DIRECTORY}/{objects.PREFIX}{name}")
    path.touch()
    with kept(path):
        path.write_bytes(_native.call.read(stack.segment.base, max(size, 1))[:size])
        row, = views.stacks(name)
        assert row.problem
        assert _look(name) == [row.problem] or row.problem.startswith("damaged")
    path.unlink(missing_ok=True)


def test_what_is_no_file_is_not_followed(tmp_path):
    path = Path(f"{objects.DIRECTORY}/{objects.PREFIX}4f.link{os.getpid()}")
    path.symlink_to(tmp_path / "nowhere")
    try:
        row, = views.stacks(f"link{os.getpid()}")
        assert row.problem.startswith("inaccessible")
    finally:
        path.unlink()


def test_text_from_others_can_not_drive_the_terminal(stack):
    native, base = _native.call, stack.segment.base
    at = base + PROCESSES + stack.segment.slot * PROCESS.size + PROCESS.at.name
    native.write(at, b"\x1b]0;owned\x07\0\0\0\0\0\0")
    assert views.stacks(stack.name)[0].processes[0].comm == "?]0;owned?"


DAMAGE = [
    ("head=", lambda s, d, p: (d + DIRECTION.at.head, 10)),
    ("bounds:", lambda s, d, p: (d + DIRECTION.at.nb, 7)),
    ("bound 0 at 5", lambda s, d, p: (d + DIRECTION.at.nb, 1)),
    ("tx_lock=300 is nobody's", lambda s, d, p: (d + DIRECTION.at.tx_lock, 300)),
    ("backed=5 ", lambda s, d, p: (d + DIRECTION.at.backed, 5)),
    ("state=9", lambda s, d, p: (p + PAIR.at.state, 9)),
    ("closed=4", lambda s, d, p: (p + PAIR.at.closed, 4)),
    ("used=5", lambda s, d, p: (s.segment.base + HEADER.at.used, 5)),
    ("free list: leaves", lambda s, d, p: (s.segment.base + HEADER.at.free, 99)),
    ("free list: pair 0 is offered", lambda s, d, p: (s.segment.base + HEADER.at.free, 1)),
    ("lost pairs", lambda s, d, p: (s.segment.base + HEADER.at.fresh, 3)),
]


@pytest.mark.parametrize(("words", "where"), DAMAGE, ids=[words for words, _ in DAMAGE])
def test_check_names_what_is_broken(stack, words, where):
    native = _native.call
    index = stack.take_pair()
    pair, way = stack.pair(index), stack.pair(index) + PAIR_DIRECTION
    native.store(pair + PAIR.at.state, views.image.OFFERED)
    native.store(way + DIRECTION.at.bound0, 5)
    assert views.check(stack.name) == []
    address, value = where(stack, way, pair)
    native.store(address, value)
    assert any(words in fault for fault in views.check(stack.name)), views.check(stack.name)


@pytest.mark.parametrize("words", [
    ("stackdump.py",), ("stackdump.py", "netstat"), ("stackdump.py", "listeners"), ("stackdump.py", "processes"),
    ("stackdump.py", "stats"), ("stackdump.py", "dump"), ("stackdump.py", "check"), ("netstat.py",),
    ("netstat.py", "-a"), ("fuser.py",)], ids=" ".join)
@pytest.mark.usefixtures("pair")
def test_tool_prints_text_and_json(words):
    command = [sys.executable, str(TOOLS / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    more = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    # Other tests damage stacks of theirs at the same time, and `check` says so by its status.
    assert {done.returncode, more.returncode} <= ({0, 1} if words[-1] == "check" else {0}), done.stderr + more.stderr
    assert done.stdout.strip() or words[-1] == "check"
    rows = json.loads(more.stdout)
    assert isinstance(rows, list) and (rows or words[-1] == "check")


def test_fuser_names_and_kills_the_users_of_one_stack():
    name = f"fuse{os.getpid()}"
    child = _child("import sys; from shmstack.stack.stack import Stack; from shmstack.options import Options\n"
                   f"s = Stack.open('{name}', 79, Options.from_env({{}})); print('up', flush=True); sys.stdin.read()")
    assert child.stdout.readline() == "up\n"
    fuser = [sys.executable, str(TOOLS / "fuser.py"), name]
    assert subprocess.run(fuser, capture_output=True, text=True, check=True).stdout.split() == [str(child.pid)]
    assert f"\t{child.pid}\t" in subprocess.run([*fuser, "-v"], capture_output=True, text=True, check=True).stdout
    subprocess.run([*fuser, "--kill"], check=True)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    objects.reap()


def test_tools_are_short():
    assert all(len(tool.read_text().splitlines()) <= 60 for tool in TOOLS.glob("*.py"))
