"""kill -9 of either side at any moment: the survivor gets what was sent, then the end, and nothing stays behind."""
from __future__ import annotations

import os
import secrets

import pytest
from process import Died, Process

ENDS = ("EOF", "ECONNRESET")
BROKEN = ("EPIPE", "ECONNRESET")
SHARED = "/dev/shm"
SECONDS = 20                         # a bound for "soon" that a loaded machine keeps


@pytest.fixture(params=["one stack", 2, 3, 4], ids=str)
def world(request):
    """A client and a server, connected; at the end nothing of theirs is left in shared memory."""
    name = "k" + secrets.token_hex(5)
    settings = {"EF_NAME": name} if request.param == "one stack" else {"EF_TCP_CLIENT_LOOPBACK": request.param}
    client, server = Process(**settings), Process(**settings)
    server.address = server.call("listen")
    stacks = {server.call("own_stack", "listener")}
    client.call("connect", server.address)
    stacks |= {client.call("own_stack"), client.call("home")[0]}
    yield client, server
    stacks |= getattr(client, "stacks", set())
    for process in (client, server):
        process.end()
    with Process() as last:
        last.call("tidy")
    left = [name for name in os.listdir(SHARED) if any(stack in name for stack in stacks)]
    left += [name for name in os.listdir(SHARED) if name.endswith(f".{server.address[1]}")]
    assert left == []


def join(client, server):
    """Accept, and talk until both directions go through the ring."""
    server.call("accept")
    for _ in range(100):
        server.start("answer", 10, 3)
        client.call("ask", 10, 3)
        server.result()
        if client.call("home")[1:] == server.call("home")[1:] == ("ring", "ring"):
            return
    pytest.fail("never in the ring")


def sides(client, server, victim):
    return (client, server) if victim == "client" else (server, client)


@pytest.mark.parametrize("victim", ["client", "server"])
def test_survivor_of_an_idle_connection_gets_the_end(world, victim):
    join(*world)
    victim, survivor = sides(*world, victim)
    survivor.start("receive_all")
    victim.kill()
    data, end = survivor.result(SECONDS)
    assert data == b"" and end in ENDS
    assert survivor.call("send_until_error") in BROKEN


@pytest.mark.parametrize("victim", ["client", "server"])
def test_survivor_gets_what_was_sent_before(world, victim):
    join(*world)
    victim, survivor = sides(*world, victim)
    sent = secrets.token_bytes(1 << 20)
    survivor.start("receive_all")
    victim.call("send", sent)
    victim.kill()
    data, end = survivor.result(SECONDS)
    assert data == sent and end in ENDS


@pytest.mark.parametrize("victim", ["client", "server"])
@pytest.mark.parametrize("unread", [3, 100_000])
def test_bytes_that_nobody_has_read_yet_outlive_their_sender(world, victim, unread):
    join(*world)
    victim, survivor = sides(*world, victim)
    sent = secrets.token_bytes(unread)
    victim.call("send", sent)
    victim.kill()
    data, end = survivor.call("receive_all")
    assert data == sent and end in ENDS


@pytest.mark.parametrize("victim", ["client", "server"])
def test_sender_to_the_dead_gets_an_error(world, victim):
    join(*world)
    victim, survivor = sides(*world, victim)
    survivor.call("send", b"never read")
    survivor.start("send_until_error")
    victim.kill()
    assert survivor.result(SECONDS) in BROKEN


@pytest.mark.parametrize("victim", ["client", "server"])
def test_sender_with_a_full_ring_gets_an_error(world, victim):
    join(*world)
    victim, survivor = sides(*world, victim)
    survivor.start("attempt", "send", bytes(64 << 20))            # blocks: more than all buffers hold
    victim.call("receive", 1 << 20)
    victim.kill()
    assert survivor.result(SECONDS) in BROKEN


@pytest.mark.parametrize("victim", ["client", "server"])
def test_stream_that_is_cut_is_right_up_to_the_cut(world, victim):
    join(*world)
    victim, survivor = sides(*world, victim)
    survivor.start("attempt", "stream", "from survivor", "from victim", 64 << 20)
    victim.start("stream", "from victim", "from survivor", 64 << 20)
    wait_until_busy(victim)
    victim.kill()
    assert survivor.result(SECONDS) in (*BROKEN, "cut")


def wait_until_busy(process):
    """Wait until the process has used some time of its own: it is in the middle of its stream."""
    def used():
        with open(f"/proc/{process.pid}/stat") as stat:
            return sum(map(int, stat.read().rpartition(") ")[2].split()[11:13]))
    before = used()
    while used() < before + 3:
        os.sched_yield()


@pytest.mark.parametrize("lock", ["tx_lock", "rx_lock"])
@pytest.mark.parametrize("victim", ["client", "server"])
def test_lock_of_the_dead_stops_nobody(world, victim, lock):
    join(*world)
    victim, survivor = sides(*world, victim)
    victim.call("send", b"before")
    assert victim.call("take_lock", lock) == 1
    victim.kill()
    assert survivor.call("receive_all") [0] == b"before"
    assert survivor.call("send_until_error") in BROKEN


@pytest.mark.parametrize("lock", ["tx_lock", "rx_lock"])
def test_receiver_that_died_with_bounds_outstanding_and_a_lock_stops_no_sender(world, lock):
    client, server = world
    join(client, server)
    client.call("sockets_timeout", 0.0)
    while client.call("attempt", "send", bytes(300_000)) != "EAGAIN":
        pass                                                      # over the ring and into the kernel lane
    assert server.call("take_lock", lock) == 1
    server.kill()
    client.call("sockets_timeout", None)
    assert client.call("send_until_error") in BROKEN


FIRST, SECOND, OWN = 24, 1000, 1      # bytes that are moved before the ring ends, after that, and sent then


def unread_at_the_end_of_a_ring(client, server):
    """Have the client send what nobody reads, in two pieces of the ring, to a server that looks in the kernel."""
    join(client, server)
    position, capacity = client.call("ring_position")
    before = (capacity - FIRST - position) % capacity
    client.call("send", bytes(before))
    server.call("receive", before)
    sent = secrets.token_bytes(FIRST + SECOND)
    client.call("send", sent)
    server.call("sockets_timeout", 0.0)
    return sent


@pytest.mark.parametrize("killed", [FIRST, SECOND, OWN])
@pytest.mark.parametrize("polls", ["recv", "select", "epoll"])
def test_bytes_that_the_dead_was_moving_to_the_kernel_arrive_once(world, killed, polls):
    client, server = world
    sent = unread_at_the_end_of_a_ring(client, server)
    client.start("send_until_killed", killed, b"x")
    with pytest.raises(Died, match="status -31"):
        client.result()
    if polls == "recv":
        server.call("sockets_timeout", None)
    data, end = server.call("receive_all" if polls == "recv" else "receive_all_polled", *[polls] * (polls != "recv"))
    assert data == sent and end in ENDS


@pytest.mark.parametrize("killed", [FIRST, SECOND, OWN])
@pytest.mark.parametrize("first", ["receiver", "heir"])
def test_a_process_that_shares_the_end_of_the_dead_goes_on_behind_its_bytes(world, killed, first):
    """While the heir is idle the receiver gets all that the dead had sent; either may be the first to act."""
    client, server = world
    sent = unread_at_the_end_of_a_ring(client, server)
    client.call("fork_answering", 100, 3, idle=True)
    client.start("send_until_killed", killed, b"x")
    assert client.popen.wait(SECONDS) == -31                      # its child keeps the pipe of its answers open
    server.call("sockets_timeout", None)
    asked = secrets.token_bytes(100)
    if first == "receiver":
        assert server.call("receive", len(sent)) == sent
        server.call("send", asked)
        assert server.call("receive", 100) == asked
    else:
        server.call("send", asked)
        assert server.call("receive", len(sent) + 100) == sent + asked
    for _ in range(2):
        server.call("send", asked)
        assert server.call("receive", 100) == asked
    assert server.call("receive_all") == (b"", "EOF")


def test_client_that_died_before_accept_loses_nothing(world):
    client, server = world
    client.call("send", b"early words")
    client.kill()
    server.call("accept")
    data, end = server.call("receive_all")
    assert data == b"early words" and end in ENDS


def test_server_that_died_before_accept_ends_the_connection(world):
    client, server = world
    client.call("send", b"early words")
    client.start("receive_all")
    server.kill()
    data, end = client.result(SECONDS)
    assert data == b"" and end in ENDS


def test_listener_of_the_dead_is_not_taken_for_a_living_one(world):
    client, server = world
    server.kill()
    assert client.call("attempt", "connect", server.address, "two") == "ECONNREFUSED"
    with Process() as heir:
        heir.call("listen", port=server.address[1])
        client.call("connect", server.address, "three")
        client.stacks = {client.call("home", "three")[0], heir.call("own_stack", "listener")}
        heir.call("accept")
        heir.start("answer", 10, 3)
        client.call("ask", 10, 3, "three")
        heir.result()


def test_process_that_kills_itself_is_reported():
    with Process() as process, pytest.raises(Died, match="status -9"):
        process.call("die")
