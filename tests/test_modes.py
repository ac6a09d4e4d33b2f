"""The loopback table: for each pair of settings, in the same stack and in different ones, where both ends land."""
from __future__ import annotations

import secrets

import pytest
from process import Process

TOTAL = 16 << 20
KERNEL, SAME, CLIENT, LISTENER, NEW = "kernel", "same", "client", "listener", "new"
# A row is the client's setting, a column the server's.
DIFFERENT = [
    [KERNEL, KERNEL, KERNEL],
    [KERNEL, KERNEL, KERNEL],
    [KERNEL, KERNEL, CLIENT],
    [KERNEL, LISTENER, LISTENER],
    [KERNEL, KERNEL, NEW],
]
ONE = [[KERNEL, KERNEL, KERNEL]] + [[KERNEL, SAME, SAME]] * 4
CELLS = [(client, server, same, (ONE if same else DIFFERENT)[client][server])
         for same in (True, False) for client in range(5) for server in range(3)]


def pair(stack, client=2, server=2, **settings):
    """Return (client process, server process); `stack` names a stack for both, None gives each its own."""
    values = {"EF_TCP_CLIENT_LOOPBACK": client, "EF_TCP_SERVER_LOOPBACK": server, **settings}
    if stack:
        values["EF_NAME"] = stack
    return Process(**values), Process(**values)


def open_connection(client, server, host="127.0.0.1", to=None, bind=None, dual=None):
    """Listen, connect and accept; the names of both ends agree."""
    _, port, *_ = server.call("listen", host, dual=dual)
    name = client.call("connect", (to or host, port), bind=bind)
    assert server.call("accept")[1] == name[1]


def settle(client, server):
    """Exchange a little, each side in turn, until both directions have found their lane."""
    server.start("answer", 10, 5)
    client.call("ask", 10, 5)
    server.result()


def homes(client, server):
    """Return where both ends are: "kernel", or the stack's name, on which they agree."""
    for _ in range(100):
        settle(client, server)
        ends = [process.call("home") for process in (client, server)]
        # A receiver that finds its bytes there already has no reason to change lanes: it may take some turns.
        if ends == [None, None] or [end and end[1:] for end in ends] == [("ring", "ring")] * 2:
            break
    if ends == [None, None]:
        return KERNEL
    assert [end and end[1:] for end in ends] == [("ring", "ring")] * 2
    assert ends[0][0] == ends[1][0]
    return ends[0][0]


@pytest.mark.parametrize(("client", "server", "same", "expected"), CELLS, ids=lambda value: str(value))
def test_both_ends_land_where_the_table_says_and_every_byte_arrives(client, server, same, expected):
    one, other = pair("m" + secrets.token_hex(5) if same else None, client, server)
    with one, other:
        open_connection(one, other)
        there = homes(one, other)
        other.start("stream", "to the client", "to the server", TOTAL)
        assert one.call("stream", "to the server", "to the client", TOTAL) == TOTAL
        assert other.result() == TOTAL
        if expected == KERNEL:
            assert there == KERNEL
            return
        mine, theirs = one.call("own_stack"), other.call("own_stack", "listener")
        assert (mine == theirs) == same
        assert there == homes(one, other)
        assert {SAME: there == mine, CLIENT: there == mine, LISTENER: there == theirs,
                NEW: there not in (mine, theirs)}[expected]


@pytest.mark.parametrize(("host", "to", "dual"), [
    ("127.0.0.1", "127.0.0.1", None), ("127.0.0.11", "127.0.0.11", None), ("0.0.0.0", "127.0.0.1", None),
    ("0.0.0.0", "127.0.0.11", None), ("::1", "::1", None), ("::", "::1", False), ("::", "127.0.0.1", True),
    ("::", "::ffff:127.0.0.1", True), ("127.0.0.1", "::ffff:127.0.0.1", None),
    ("::ffff:127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "localhost", None),
])
def test_every_local_address_is_accelerated(host, to, dual):
    one, other = pair(None)
    with one, other:
        open_connection(one, other, host, to, dual=dual)
        assert homes(one, other) == one.call("own_stack")


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.23"])
@pytest.mark.parametrize("client", [2, 3, 4])
def test_bound_client_is_accelerated_and_keeps_its_address(bind, client):
    one, other = pair(None, client)
    with one, other:
        address = other.call("listen")
        name = one.call("connect", address, bind=bind)
        assert name[0] == bind
        assert tuple(other.call("accept")) == tuple(name)
        assert homes(one, other) != KERNEL


@pytest.mark.parametrize("host", ["10.77.0.1", "0.0.0.0"])
def test_interface_address_is_accelerated(host):
    one, other = pair(None)
    with one, other:
        namespace = one.call("unshare")
        one.call("address", "lo:1", "10.77.0.1")
        other.call("enter", namespace)
        open_connection(one, other, host, "10.77.0.1")
        assert homes(one, other) == one.call("own_stack")


def test_listener_of_another_network_namespace_is_never_matched():
    one, other = pair("m" + secrets.token_hex(5))
    with one, other:
        other.call("unshare")
        address = other.call("listen")
        for host in ("127.0.0.1", "0.0.0.0"):
            assert one.call("attempt", "connect", (host, address[1])) == "ECONNREFUSED"
            assert one.call("home") is None


def test_remote_address_is_not_taken_for_a_wildcard_listener():
    one, other = pair(None)
    with one, other, Process() as far:
        one.call("enter", other.call("unshare"))
        far.call("unshare")
        other.call("veth", "10.78.0.1", far.pid)
        far.call("address", "veth1", "10.78.0.2")
        for server, host in ((other, "0.0.0.0"), (far, "10.78.0.2")):
            server.call("listen", host, port=7000)
        one.call("connect", ("10.78.0.2", 7000))
        far.call("accept")
        settle(one, far)
        assert one.call("home") is None
