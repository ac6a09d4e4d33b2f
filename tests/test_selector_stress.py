"""The random programs of test_stream_stress against a server of one thread, under each selector.

The server never blocks: each connection is a conversation that takes what came and sends what goes, and knows from its
seed what both must be. Clients are processes that connect, send, half-close, fork, are killed and time out.
"""

from __future__ import annotations

import importlib
import selectors

import pytest
from test_stream_stress import ACTS, CONNECTIONS, ENDLESS, HELLO, run_client

from conformance.children import Child
from conformance.faces import FACES, Net
from conformance.streams import pieces
from conformance.waiting import PATIENCE_S, watchdog

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
CLIENTS = 3


@pytest.fixture(params=FACES)
def net(request):
    net = Net(request.param)
    with watchdog():
        yield net
    net.close()


class Conversation:
    """The server's side of one connection: what it has to hear and to say, and how it ends."""

    def __init__(self, sock) -> None:
        sock.setblocking(False)
        self.sock, self.act, self.over = sock, "hello", False
        self.wanted, self.expected = bytearray(), iter(())
        self.unsaid, self.speech = b"", iter(())
        self.hello = b""

    def begin(self) -> None:
        seed, total, number = HELLO.unpack(self.hello)
        self.act = type(ACTS[number]).__name__
        hear = {"EarlyClose": min(total, 5000), "Kill": ENDLESS}.get(self.act, total)
        self.expected, self.answer = pieces(seed, hear), pieces(seed + 10, total)
        self.heard_all = False
        self.more_to_hear()
        if self.act in ("Close", "Fork", "Timeouts"):
            self.speech = self.answer

    def more_to_hear(self) -> None:
        while not self.wanted and not self.heard_all:
            self.wanted = bytearray(next(self.expected, b""))
            self.heard_all = not self.wanted
            if self.heard_all and self.act == "Reset":
                self.speech = iter([b"r"])

    def hear(self, data: bytes) -> None:
        if self.act == "hello":
            rest = HELLO.size - len(self.hello)
            self.hello, data = self.hello + data[:rest], data[rest:]
            if len(self.hello) < HELLO.size:
                return
            self.begin()
        while data:
            assert not self.heard_all, f"{self.act}: bytes after the end"
            part = data[:len(self.wanted)]
            assert part == self.wanted[:len(part)], f"{self.act}: other bytes"
            del self.wanted[:len(part)]
            data = data[len(part):]
            self.more_to_hear()

    def ended(self) -> None:
        """The peer says no more."""
        assert self.act == "Kill" or self.heard_all, f"{self.act}: an early end"
        assert self.act != "Reset", "an end where a reset was due"
        if self.act == "HalfClose":
            self.speech = self.answer
        self.over = True

    def read(self) -> None:
        try:
            data = self.sock.recv(50_000)
        except BlockingIOError:
            return
        except ConnectionResetError:
            assert self.act in ("Kill", "Reset"), f"{self.act}: reset"
            self.over = True
            return
        if data:
            self.hear(data)
        else:
            self.ended()

    def write(self) -> None:
        if not self.unsaid:
            self.unsaid = next(self.speech, b"")
        if self.unsaid:
            try:
                self.unsaid = self.unsaid[self.sock.send(self.unsaid):]
            except BlockingIOError:
                pass

    def events(self) -> int:
        """Return what to wait for, 0 when all is done."""
        if not self.unsaid:
            self.unsaid = next(self.speech, b"")
        return (0 if self.over else READ) | (WRITE if self.unsaid else 0)


def serve(listener, selector, connections: int) -> None:
    listener.setblocking(False)
    selector.register(listener, READ)
    left = connections
    while left:
        ready = selector.select(PATIENCE_S)
        assert ready, "nothing happens any more"
        for key, mask in ready:
            if key.fileobj is listener:
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                selector.register(sock, READ, Conversation(sock))
                continue
            talk = key.data
            if mask & READ:
                talk.read()
            if mask & WRITE:
                talk.write()
            events = talk.events()
            if not events:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
            elif events != key.events:
                selector.modify(key.fileobj, events, talk)


@pytest.mark.parametrize("name", ["SelectSelector", "PollSelector", "EpollSelector"])
def test_every_byte_arrives_under_each_selector(net, name):
    module = importlib.import_module("shmstack.selectors") if net.accelerated else selectors

    def run_server():
        with getattr(module, name)() as selector:
            serve(listener, selector, CLIENTS * CONNECTIONS)

    with net.listener(backlog=64) as listener:
        address = listener.getsockname()
        children = [Child(run_server)]
        children += [Child(lambda number=number: run_client(net, address, 5000 + number)) for number in range(CLIENTS)]
        for child in children:
            child.join()
