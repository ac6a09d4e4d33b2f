"""The two faces under test, and what a test needs from either: listeners, pairs, lanes.

A `Net` tracks every socket that it made and closes them when the test ends, so a failed test leaks nothing into
the next one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import select
import socket
import time

from .remote import at, tracked_close
from .waiting import Background

FACES = ("stdlib", "shmstack")
LOOPBACK = ("127.0.0.1", 0)
WARM_TURNS = 50


class Net:
    """A face: its socket and select modules, and sockets made from them.

    Parameters
    ----------
    face : str
        `stdlib` or `shmstack`.
    """

    def __init__(self, face: str) -> None:
        self.face = face
        self.accelerated = face == "shmstack"
        self.socket = importlib.import_module("shmstack.socket") if self.accelerated else socket
        self._open = contextlib.ExitStack()

    @functools.cached_property
    def select(self):
        return importlib.import_module("shmstack.select") if self.accelerated else select

    def keep(self, sock):
        """Close `sock` when the test ends; return it."""
        self._open.callback(tracked_close, sock)
        return sock

    def close(self) -> None:
        self._open.close()

    def new(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        """Return an unconnected socket."""
        return self.keep(self.socket.socket(family, kind))

    def listener(self, address=LOOPBACK, *, backlog=16, reuse_port=False, v6only=True):
        """Return a listening socket on `address`, IPv6 if the address is."""
        sock = self.new(family_of(address))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        sock.bind(address)
        sock.listen(backlog)
        return sock

    def connect(self, address, *, family=None, source=None):
        """Return a socket connected to `address`, from `source` if given."""
        sock = self.new(family or family_of(address))
        if source is not None:
            sock.bind(source)
        sock.connect(address)
        return sock

    def accept(self, listener):
        """Return an accepted socket."""
        return self.keep(listener.accept()[0])

    def pair(self, address=LOOPBACK):
        """Return (client, server), connected to each other, both in this process, warm."""
        with self.listener(address) as listener:
            client = self.connect(listener.getsockname())
            server, peer = listener.accept()
        self.keep(server)
        assert peer == client.getsockname()
        return self.warm(client, server)

    def lane(self, sock):
        """Return the lanes (tx, rx) of a socket, each `ring` or `kernel`; None if it is not accelerated."""
        return at(sock, lanes) if self.accelerated else None

    def assert_accelerated(self, *socks) -> None:
        """Check that each socket is an end of an accelerated connection, if this face has those."""
        for sock in socks:
            assert not self.accelerated or self.lane(sock), f"not accelerated: {sock!r}"

    def assert_ring(self, *socks) -> None:
        """Check that what each socket sends and receives goes through shared memory, if this face does that."""
        for sock in socks:
            assert self.lane(sock) == (("ring", "ring") if self.accelerated else None), f"not in the ring: {sock!r}"

    def warm(self, client, server):
        """Let each end wait for a byte of the other; return both.

        A receiver that has waited once has its input in the ring from then on, so what a test does afterwards is
        done to the ring.
        """
        for near, far in ((client, server), (server, client)):
            for turn in range(WARM_TURNS):
                waiting = Background(near.recv, 1)
                time.sleep(turn / 1000)         # the longer, the surer it waits already
                far.sendall(b"w")
                assert waiting.result() == b"w"
                if not self.accelerated or self.lane(near)[1] == "ring":
                    break
        self.assert_ring(client, server)
        return client, server


def family_of(address):
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def lanes(sock):
    stat = importlib.import_module("shmstack").fd_stat(sock)
    return stat and (stat.tx_lane, stat.rx_lane)
