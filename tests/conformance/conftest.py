"""Fixtures: a face, and pairs of connected sockets with either end here or in another process."""

from __future__ import annotations

import pytest

from .ends import ENDS, client_there, server_there
from .faces import FACES, Net
from .remote import Peer
from .waiting import watchdog


@pytest.fixture(autouse=True)
def bounded():
    with watchdog():
        yield


@pytest.fixture(params=FACES)
def face(request):
    return request.param


@pytest.fixture
def net(face):
    net = Net(face)
    yield net
    net.close()


class Peers:
    """The peer process of this worker, started when first needed and again after it died."""

    def __init__(self) -> None:
        self._peer = None

    def get(self) -> Peer:
        if self._peer is None or not self._peer.alive:
            self._peer = Peer()
        return self._peer

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()


@pytest.fixture(scope="session")
def peers():
    peers = Peers()
    yield peers
    peers.close()


@pytest.fixture
def peer(peers):
    """Another process that runs calls for this one."""
    return peers.get()


@pytest.fixture(params=ENDS)
def pair(request, net):
    """Return a function that makes (client, server): both here, or one of them in another process."""
    if request.param == "threads":
        return net.pair
    peer = request.getfixturevalue("peer")
    return server_there(net, peer) if request.param == "server-process" else client_there(net, peer)
