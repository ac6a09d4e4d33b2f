"""Listeners that share a port by SO_REUSEPORT: whichever of them the kernel gives a connection to, it is accelerated."""
from __future__ import annotations

import os

import pytest
from process import Process

MANY = 24
RECORDS = "/dev/shm"


@pytest.fixture
def processes():
    """Return a function that starts a process; at the end no record of their port is left."""
    made, ports = [], []

    def start(stack=None, listens=None, **settings):
        made.append(Process(**({"EF_NAME": stack} if stack else {}), **settings))
        if listens is not None:
            address = made[-1].call("listen", port=listens, reuse_port=True)
            ports.append(address[1])
            return made[-1], address
        return made[-1]

    yield start
    for process in made:
        process.end()
    with Process() as last:
        last.call("tidy")
    left = [name for name in os.listdir(RECORDS) if any(f".{port}" in name for port in ports) and ".l." in name]
    assert left == []


def talk(client, address, *servers, count=MANY):
    """Connect, accept wherever the kernel says; return (ends that are accelerated at the client, each server's number)."""
    ports = client.call("connect_many", address, count)
    accepted = [server.call("accept_all") for server in servers]
    assert sorted(ports) == sorted(port for found in accepted for port, _ in found)
    at_servers = sum(accelerated for found in accepted for _, accelerated in found)
    at_client = client.call("greeted", ports)
    assert at_client == at_servers
    for server, found in zip(servers, accepted, strict=True):
        for port, _ in found:
            server.call("close", port)
    return at_client, [len(found) for found in accepted]


def whys(*processes):
    counted = [process.call("counters") for process in processes]
    return sum(number for counters in counted for why, number in counters.items() if why.startswith(("accept_", "not_"))
               and why != "accept_accelerated")


@pytest.mark.parametrize("mode", [2, 3, 4])
@pytest.mark.parametrize("stacks", [(None, None), ("ra", "rb"), ("ra", "ra"), ("ra", "ra", "rb"), ("rb", "ra", "ra")],
                         ids=str)
def test_connections_to_listeners_that_share_a_port_are_accelerated(processes, stacks, mode):
    first, address = processes(stacks[0], 0)
    servers = [first, *[processes(stack, address[1])[0] for stack in stacks[1:]]]
    client = processes(EF_TCP_CLIENT_LOOPBACK=mode)
    accelerated, shares = talk(client, address, *servers)
    assert accelerated == MANY and all(shares)


@pytest.mark.parametrize("mode", [2, 3, 4])
@pytest.mark.parametrize("end", ["close", "kill", "end"])
@pytest.mark.parametrize("who", [0, 1])
def test_those_that_are_left_when_one_ended_are_accelerated(processes, end, who, mode):
    first, address = processes(None, 0)
    servers = [first, processes(None, address[1])[0], processes(None, address[1])[0]]
    client = processes(EF_TCP_CLIENT_LOOPBACK=mode)
    assert talk(client, address, *servers)[0] == MANY
    gone = servers.pop(who)
    if end == "close":
        gone.call("close", "listener")
    else:
        getattr(gone, end)()
    talk(client, address, *servers, count=1)                      # after a kill this may find a dead stack
    for server in servers:
        assert talk(client, address, *servers)[0] == MANY
        server.call("close", "listener")
        servers = servers[1:]


def test_one_that_comes_later_is_accelerated_too(processes):
    first, address = processes(None, 0)
    client = processes()
    assert talk(client, address, first) == (MANY, [MANY])
    second, _ = processes(None, address[1])
    assert talk(client, address, first, second)[0] == MANY
    second.call("close", "listener")
    assert talk(client, address, first) == (MANY, [MANY])


def test_what_is_not_accelerated_is_counted(processes):
    first, address = processes("ra", 0, EF_TCP_SERVER_LOOPBACK=1)
    second, _ = processes("rb", address[1], EF_TCP_SERVER_LOOPBACK=1)
    client = processes("ra")
    accelerated, (at_first, at_second) = talk(client, address, first, second)
    assert (accelerated, whys(first, second)) == (at_first, at_second) and at_second
