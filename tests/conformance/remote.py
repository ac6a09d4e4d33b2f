"""The other end of a connection, in another process, used as if it were here.

A `Peer` is a spawned process that runs what it is sent: `peer.run(function, *args)`. Each call runs in a thread of its own
there, so one may wait while another sends. A result that cannot be pickled (a socket, a file) stays in that process and
a `RemoteObject` comes back: its methods run over there and raise here. So a test that was written for a pair of sockets runs
with either of them in another process. One peer serves all tests of a worker; one that does not answer in time
prints its stacks and is killed, and the next test gets a fresh one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import itertools
import multiprocessing
import os
import signal
import socket
import threading
from concurrent.futures import Future

from .waiting import PATIENCE_S

OBJECTS: dict[int, object] = {}     # in the peer: what the other side holds a RemoteObject of
NUMBERS = itertools.count(1)


class Peer:
    """A process that runs calls for this one."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._waiting: dict[int, Future] = {}
        self._sending = threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def start(self, function, *args) -> Future:
        """Begin `function(*args)` in the peer; return its future."""
        future, number = Future(), next(NUMBERS)
        self._waiting[number] = future
        with self._sending:
            self._pipe.send((number, function, args))
        return future

    def run(self, function, *args):
        """Return what `function(*args)` returns in the peer, or raise what it raises."""
        future = self.start(function, *args)
        try:
            return self._adopt(future.result(PATIENCE_S))
        except TimeoutError:                # the call's own, unless it has not ended
            if not future.done():
                self.kill()
            raise

    def kill(self) -> None:
        """Make the peer print its stacks and die."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGABRT)
        self._process.join(PATIENCE_S)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(PATIENCE_S)
        if self.alive:
            self.kill()

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, good, value = self._pipe.recv()
                future = self._waiting.pop(number)
                (future.set_result if good else future.set_exception)(value)
        for future in list(self._waiting.values()):
            future.set_exception(EOFError("the peer process died"))

    def _adopt(self, value):
        if isinstance(value, Stays):
            return RemoteObject(self, value.key, value.text)
        return tuple(map(self._adopt, value)) if type(value) is tuple else value


class Stays:
    """What the peer sends in place of an object that stays with it."""

    def __init__(self, value) -> None:
        self.key, self.text = next(NUMBERS), repr(value)
        OBJECTS[self.key] = value


class RemoteObject:
    """An object of a peer: methods run there, bytearrays given to them come back filled."""

    def __init__(self, peer: Peer, key: int, text: str) -> None:
        self._peer, self._key, self._text = peer, key, text

    def __repr__(self) -> str:
        return f"<remote {self._text}>"

    def __reduce__(self):
        return recall, (self._key,)

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args, **options):
            result, filled = self._peer.run(invoke, self, name, args, options)
            mine = (arg for arg in args if isinstance(arg, bytearray))
            for buffer, content in zip(mine, filled, strict=True):
                buffer[:] = content
            return result

        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def invoke(target, name, args, options):
    result = getattr(target, name)(*args, **options)
    return result, tuple(arg for arg in args if isinstance(arg, bytearray))


def at(sock, function, *args):
    """Return `function(sock, *args)`, run in the process where `sock` lives."""
    if isinstance(sock, RemoteObject):
        return sock._peer.run(function, sock, *args)
    return function(sock, *args)


def tracked_close(sock) -> None:
    """Close a socket, wherever it lives and whatever the test did to it."""
    with contextlib.suppress(OSError, EOFError):
        if not isinstance(sock, RemoteObject):
            sock.close()
        elif sock._peer.alive:
            sock.close()
            sock._peer.run(forget, sock._key)


def recall(key: int):
    return OBJECTS[key]


def forget(key: int) -> None:
    OBJECTS.pop(key, None)


def serve(pipe) -> None:
    """Run calls that arrive through `pipe` until it closes (the peer's main)."""
    faulthandler.enable()
    sending = threading.Lock()

    def run(number, function, args):
        try:
            good, value = True, leave(function(*args))
        except Exception as error:
            good, value = False, error
        with sending:
            pipe.send((number, good, value))

    with contextlib.suppress(EOFError):
        while (call := pipe.recv()) is not None:
            threading.Thread(target=run, args=call, daemon=True).start()
    os._exit(0)


def leave(value):
    if isinstance(value, (socket.socket, io.IOBase)):
        return Stays(value)
    return tuple(map(leave, value)) if type(value) is tuple else value
