"""Make the two ends of a transport, inside the workers.

`serve(cfg, ready)` calls `ready(address)` as soon as `dial(cfg, address)` can succeed in another
process; both return a Channel.  What has a file to remove registers it with atexit, and the
harness removes the folder they all live in besides.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from perf.channels import Channel

WAIT_S = 30.0  # the longest wait for the other end to come
Ready = Callable[[Any], None]


def serve(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Make the serving end of the transport that `cfg` describes."""
    return _maker(cfg["kind"], "serve")(cfg, ready)


def dial(cfg: dict[str, Any], address: Any) -> Channel:
    """Make the dialling end."""
    return _maker(cfg["kind"], "dial")(cfg, address)


def _maker(kind: str, what: str) -> Callable[..., Channel]:
    # Peers import what may be missing, so their module is imported only when one is used.
    own = globals().get(f"{what}_{kind}")
    return own or getattr(importlib.import_module("perf.peers"), f"{what}_{kind}")


def fresh_path(cfg: dict[str, Any], suffix: str, shared: bool = False) -> Path:
    """Return a path that nobody uses yet: in /dev/shm, or in the run's own folder."""
    folder = "/dev/shm" if shared else cfg["folder"]
    return Path(tempfile.mktemp(prefix=f"shmperf-{os.getpid()}-", suffix=suffix, dir=folder))


# Sockets: ordinary code, whichever module it runs on.


def serve_tcp(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Accept one TCP connection on 127.0.0.1."""
    socket = importlib.import_module(cfg["module"])
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(WAIT_S)
    ready(listener.getsockname()[1])
    sock, _ = listener.accept()
    listener.close()
    return over_socket(sock, cfg["spin"], cfg.get("nodelay", True))


def dial_tcp(cfg: dict[str, Any], address: Any) -> Channel:
    """Connect to it."""
    socket = importlib.import_module(cfg["module"])
    sock = socket.create_connection(("127.0.0.1", address), timeout=WAIT_S)
    return over_socket(sock, cfg["spin"], cfg.get("nodelay", True))


def serve_jit(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Accept one TCP connection for a compiled loop."""
    from perf.jitted import JitChannel

    socket = importlib.import_module(cfg["module"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        ready(listener.getsockname()[1])
        sock, _ = listener.accept()
    sock.setblocking(True)
    return JitChannel(sock)


def dial_jit(cfg: dict[str, Any], address: Any) -> Channel:
    """Connect to it."""
    from perf.jitted import JitChannel

    socket = importlib.import_module(cfg["module"])
    return JitChannel(socket.create_connection(("127.0.0.1", address)))


def serve_nocopy(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Accept one TCP connection whose messages are written and read in place."""
    from perf.inplace import NocopyChannel

    return NocopyChannel(serve_tcp(cfg, ready).send.__self__)


def dial_nocopy(cfg: dict[str, Any], address: Any) -> Channel:
    """Connect to it."""
    from perf.inplace import NocopyChannel

    return NocopyChannel(dial_tcp(cfg, address).send.__self__)


def serve_unix(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Accept one AF_UNIX stream."""
    import socket

    path = fresh_path(cfg, ".sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(WAIT_S)
        ready(str(path))
        sock, _ = listener.accept()
    path.unlink()
    return over_socket(sock, spin=False)


def dial_unix(cfg: dict[str, Any], address: Any) -> Channel:
    """Connect to it."""
    import socket

    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return over_socket(sock, spin=False)


def over_socket(sock: Any, spin: bool, nodelay: bool = False) -> Channel:
    """Wrap a connected stream socket.

    Parameters
    ----------
    sock : socket
        Connected; becomes blocking, or non-blocking with `spin`.
    spin : bool
        Ask again and again instead of sleeping in the kernel.
    nodelay : bool
        Set TCP_NODELAY, as a program that wants latency does.
    """
    sock.setblocking(not spin)
    if nodelay:
        sock.setsockopt(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY
    if not spin:
        return Channel(sock.sendall, sock.recv, sock.recv_into, sock.close)
    raw_send, raw_recv, raw_into = sock.send, sock.recv, sock.recv_into

    def send(data: Any) -> None:
        sent = 0
        while sent < len(data):
            with suppress(BlockingIOError):
                sent += raw_send(memoryview(data)[sent:] if sent else data)

    def recv(most: int) -> bytes:
        while True:
            try:
                return raw_recv(most)
            except BlockingIOError:
                pass

    def recv_into(view: Any) -> int:
        while True:
            try:
                return raw_into(view)
            except BlockingIOError:
                pass

    return Channel(send, recv, recv_into, sock.close)


# multiprocessing.Pipe() is a pair of Connections over AF_UNIX streams; a Listener of that family
# makes the same pair between processes that are not each other's children.


def serve_pipe(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Accept one multiprocessing Connection."""
    from multiprocessing.connection import Listener

    path = fresh_path(cfg, ".pipe")
    with Listener(str(path), "AF_UNIX") as listener:
        ready(str(path))
        return _over_connection(listener.accept())


def dial_pipe(cfg: dict[str, Any], address: Any) -> Channel:
    """Connect to it."""
    from multiprocessing.connection import Client

    return _over_connection(Client(address, "AF_UNIX"))


def _over_connection(conn: Any) -> Channel:
    # One send_bytes() is one recv_bytes(), so `most` is a limit that is never reached.
    def recv(_most: int) -> bytes:
        return conn.recv_bytes()

    return Channel(conn.send_bytes, recv, conn.recv_bytes_into, conn.close)


# Bare shared memory.


def serve_ring(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Make a file with a ring each way, and remove its name once the other side has it."""
    from perf.bare import Mapped, RingChannel
    from perf.ceilings import RING_BYTES

    path = fresh_path(cfg, ".ring", shared=True)
    mapped = Mapped(path, 2 * RING_BYTES, create=True)
    ready(str(path))
    return RingChannel(mapped, 0, RING_BYTES)


def dial_ring(cfg: dict[str, Any], address: Any) -> Channel:
    """Map it and remove its name."""
    from perf.bare import Mapped, RingChannel
    from perf.ceilings import RING_BYTES

    path = Path(address)
    mapped = Mapped(path, 2 * RING_BYTES, create=False)
    path.unlink()
    return RingChannel(mapped, RING_BYTES, 0)


def serve_lines(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Make a page with two lines."""
    from perf.bare import LinesChannel, Mapped

    path = fresh_path(cfg, ".lines", shared=True)
    mapped = Mapped(path, 4096, create=True)
    ready(str(path))
    return LinesChannel(mapped)


def dial_lines(cfg: dict[str, Any], address: Any) -> Channel:
    """Map it and remove its name."""
    from perf.bare import LinesChannel, Mapped

    path = Path(address)
    mapped = Mapped(path, 4096, create=False)
    path.unlink()
    return LinesChannel(mapped)


def serve_memcpy(_cfg: dict[str, Any], ready: Ready) -> Channel:
    """Stand by."""
    from perf.bare import CopyChannel

    ready("")
    return CopyChannel()


def dial_memcpy(_cfg: dict[str, Any], _address: Any) -> Channel:
    """Make the side that copies."""
    from perf.bare import CopyChannel

    return CopyChannel()
