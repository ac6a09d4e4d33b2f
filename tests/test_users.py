"""Different users: who may share whose memory, and what somebody gets who puts up names that are not his."""
from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

import pytest
from process import Process

from shmstack.shm import objects
from shmstack.stack import directory
from shmstack.tcp import lifeline

ALICE, BOB, EVE = 61001, 61002, 61003
KERNEL = "kernel"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")


def share(client_uid, client_mode, client_share, server_uid, server_share):
    """Connect a client of one user to a server of another; return ("kernel" or whose stack, counters of both)."""
    mode = {"EF_TCP_CLIENT_LOOPBACK": client_mode}
    with Process(client_uid, EF_SHARE_WITH=client_share, **mode) as client, \
            Process(server_uid, EF_SHARE_WITH=server_share) as server:
        client.call("connect", server.call("listen"))
        server.call("accept")
        server.start("stream", 1, 2, 1 << 20)
        client.call("stream", 2, 1, 1 << 20)
        server.result()
        ends = [process.call("home") for process in (client, server)]
        counters = [process.call("counters") for process in (client, server)]
        if ends[1] is None:
            assert ends[0] is None or ends[0][1:] == (KERNEL, KERNEL)
            return KERNEL, *counters
        assert ends[0][0] == ends[1][0]
        mine, theirs = client.call("own_stack"), server.call("own_stack", "listener")
        return {mine: "client", theirs: "listener"}.get(ends[0][0], "new"), *counters


# (client's mode, client's EF_SHARE_WITH, server's EF_SHARE_WITH) -> where a client of Alice and a server of Bob meet
MEETINGS = [
    (2, 0, 0, KERNEL), (2, BOB, 0, KERNEL), (2, 0, ALICE, KERNEL), (2, BOB, ALICE, "client"), (2, -1, -1, "client"),
    (2, EVE, ALICE, KERNEL), (2, BOB, EVE, KERNEL),
    (3, 0, 0, KERNEL), (3, BOB, 0, KERNEL), (3, 0, ALICE, "listener"), (3, 0, -1, "listener"), (3, -1, EVE, KERNEL),
    (4, 0, 0, KERNEL), (4, BOB, 0, KERNEL), (4, 0, ALICE, KERNEL), (4, BOB, ALICE, "new"), (4, -1, -1, "new"),
    (4, EVE, ALICE, KERNEL),
]


@pytest.mark.parametrize(("mode", "client_share", "server_share", "expected"), MEETINGS)
def test_users_meet_where_both_allow_it(mode, client_share, server_share, expected):
    where, client, _ = share(ALICE, mode, client_share, BOB, server_share)
    assert where == expected
    assert client.get("not_permitted", 0) == (1 if expected == KERNEL else 0), client
    assert client.get("connect_accelerated", 0) == (0 if expected == KERNEL else 1)


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_one_user_needs_no_permission(mode):
    assert share(ALICE, mode, 0, ALICE, 0)[0] == {2: "client", 3: "listener", 4: "new"}[mode]


@pytest.mark.parametrize(("mode", "client", "server", "expected"), [
    (3, 0, ALICE, "listener"), (2, 0, ALICE, KERNEL), (2, ALICE, 0, KERNEL)])
def test_root_may_enter_what_others_own_but_does_not_open_his_own(mode, client, server, expected):
    assert share(client, mode, 0, server, 0)[0] == expected


@pytest.mark.parametrize(("client_share", "server_share", "together"), [
    (0, 0, False), (BOB, 0, False), (BOB, EVE, False), (0, ALICE, False), (EVE, -1, False),
    (BOB, ALICE, True), (-1, ALICE, True), (-1, -1, True)])
def test_named_stack_of_another_user_is_joined_only_if_both_share(client_share, server_share, together):
    name = "u" + secrets.token_hex(5)
    with Process(BOB, EF_NAME=name, EF_SHARE_WITH=server_share) as server, \
            Process(ALICE, EF_NAME=name, EF_SHARE_WITH=client_share) as client:
        address = server.call("listen")
        client.call("connect", address)
        server.call("accept")
        server.start("answer", 10, 3)
        client.call("ask", 10, 3)
        server.result()
        assert (server.call("home") is not None) == together


# ---- squatters -----------------------------------------------------------------------------------------------

@contextlib.contextmanager
def squatter(path, kind, target=""):
    """Put up a file (and keep the turn on it for ever) or a link as Eve."""
    path, fd = Path(path), -1
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(bytes(1 << 16) if kind == "file" else b"")
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
    os.lchown(path, EVE, EVE)
    if kind != "link":
        path.chmod(0o666)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if fd >= 0:
            os.close(fd)


def network():
    with lifeline.standard() as sock:
        return lifeline.netns(sock)


def works_over_the_kernel(client, server, address=None):
    """Connect and talk; return the two ends' homes."""
    client.call("connect", address or server.call("listen"))
    server.call("accept")
    server.start("stream", 1, 2, 1 << 18)
    client.call("stream", 2, 1, 1 << 18)
    server.result()
    return client.call("home"), server.call("home")


@pytest.mark.parametrize("kind", ["file", "empty", "fifo", "link"])
def test_name_of_a_stack_that_is_taken_by_another_user_means_kernel_tcp(kind):
    name = "q" + secrets.token_hex(5)
    path = f"{objects.DIRECTORY}/{objects.PREFIX}{network():x}.{name}"
    with squatter(path, kind, "/etc/hostname"), Process(ALICE, EF_NAME=name) as client, \
            Process(ALICE, EF_NAME=name) as server:
        ends = works_over_the_kernel(client, server)
        assert ends == (None, None)
        assert Path(path).is_symlink() == (kind == "link")
        for process in (client, server):
            assert process.call("attempt", "own_stack") in ("EACCES", "ELOOP", "EPERM")


@pytest.mark.parametrize("where", ["own stack", "nonsense", "another stack"])
def test_listeners_record_of_another_user_gets_nothing(where):
    with Process(EVE, EF_SHARE_WITH=-1) as eve, Process(ALICE, EF_SHARE_WITH=-1) as client, \
            Process(BOB, EF_SHARE_WITH=-1) as server:
        eve.call("listen")
        server.call("bind")
        address = server.call("bound")
        stack = {"own stack": eve.call("own_stack", "listener"), "nonsense": "::::", "another stack": "3.nobody"}[where]
        path = directory.listener_path(directory.Place(network(), 2, bytes([127, 0, 0, 1]), address[1]))
        with squatter(path, "link", f"1:{stack}:2:abc"):
            server.call("listen_bound")
            ends = works_over_the_kernel(client, server, address)
            assert ends == (None, None)
            counters = client.call("counters")
            assert "connect_accelerated" not in counters
            if where == "own stack":
                assert counters["not_other_owner"] == 1
        assert "accept_accelerated" not in eve.call("counters")


def test_offer_of_another_user_gets_nothing():
    with Process(EVE, EF_SHARE_WITH=-1) as eve, Process(ALICE, EF_DONT_ACCELERATE=1) as client, \
            Process(BOB, EF_SHARE_WITH=-1) as server:
        address = server.call("listen")
        eve.call("listen")
        eve.call("connect", eve.call("bound", "listener"))
        stack = eve.call("home")[0]
        client.call("bind")
        path = directory._offer_path(network(), client.call("cookie"))
        with squatter(path, "link", f"1:{stack}:0:1"):
            client.call("connect_bound", address)
            server.call("accept")
            server.start("stream", 1, 2, 1 << 18)
            client.call("stream", 2, 1, 1 << 18)
            server.result()
        assert server.call("home") is None
        assert server.call("counters")["accept_refused"] == 1
