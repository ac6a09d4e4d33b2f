"""Other ways for Python processes to talk, where they are installed (`pip install shmstack[perf]`).

    zmq-ipc      pyzmq, a PAIR of sockets over ipc://: blocks
    iceoryx2     publish and subscribe on slices of bytes, one service each way: polls
    faster-fifo  two queues, shared with a forked child as its documents ask for: blocks
    membridge    one single-producer ring each way: polls
    sockperf     Debian's package, C on kernel TCP: what the kernel takes without Python in the way

Each is used as its own documents show, at its defaults.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import re
import socket
import subprocess
import time
from array import array
from pathlib import Path
from typing import Any

from perf.channels import Channel
from perf.ends import WAIT_S, Ready, fresh_path


def serve_zmq(cfg: dict[str, Any], ready: Ready) -> Channel:
    """Bind a PAIR socket."""
    import zmq

    address = f"ipc://{fresh_path(cfg, '.zmq')}"
    sock = zmq.Context().socket(zmq.PAIR)
    sock.bind(address)
    ready(address)
    return _over_zmq(sock)


def dial_zmq(_cfg: dict[str, Any], address: Any) -> Channel:
    """Connect to it."""
    import zmq

    sock = zmq.Context().socket(zmq.PAIR)
    sock.connect(address)
    return _over_zmq(sock)


def _over_zmq(sock: Any) -> Channel:
    sock.linger = 0
    return Channel(sock.send, lambda _most: sock.recv(), None, sock.close)


def serve_iceoryx2(_cfg: dict[str, Any], ready: Ready) -> Channel:
    """Make both services."""
    name = f"shmperf-{os.getpid()}"
    channel = _iceoryx2(name, "back", "out")
    ready(name)
    return channel


def dial_iceoryx2(_cfg: dict[str, Any], address: Any) -> Channel:
    """Open both services from the other side."""
    return _iceoryx2(address, "out", "back")


def _iceoryx2(name: str, out: str, back: str) -> Channel:
    import iceoryx2 as iox2

    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    kind = iox2.Slice[ctypes.c_uint8]
    services = [
        node.service_builder(iox2.ServiceName.new(f"{name}/{way}")).publish_subscribe(kind).open_or_create()
        for way in (out, back)
    ]
    publisher = (
        services[0]
        .publisher_builder()
        .initial_max_slice_len(4096)
        .allocation_strategy(iox2.AllocationStrategy.PowerOfTwo)
        .create()
    )
    subscriber = services[1].subscriber_builder().create()

    def send(data: Any) -> None:
        sample = publisher.loan_slice_uninit(len(data))
        ctypes.memmove(sample.payload_ptr, bytes(data), len(data))
        sample.assume_init().send()

    def recv(_most: int) -> bytes:
        while (sample := subscriber.receive()) is None:
            pass
        return ctypes.string_at(sample.payload_ptr, sample.payload().len())

    channel = Channel(send, recv)
    channel.kept = (node, services)  # type: ignore[attr-defined]
    return channel


def serve_membridge(_cfg: dict[str, Any], ready: Ready) -> Channel:
    """Create two rings."""
    import membridge

    name, size = f"/shmperf-{os.getpid()}", (16 << 20) + 24
    ways = [membridge.SharedMemory.create(f"{name}-{way}", size) for way in ("out", "back")]
    rings = [way.spsc() for way in ways]
    ready(name)
    return _over_membridge(ways, rings[1], rings[0])


def dial_membridge(_cfg: dict[str, Any], address: Any) -> Channel:
    """Open them and remove their names."""
    import membridge

    ways = [membridge.SharedMemory.open(f"{address}-{way}") for way in ("out", "back")]
    rings = [way.spsc() for way in ways]
    for way in ("out", "back"):
        membridge.SharedMemory.remove(f"{address}-{way}")
    return _over_membridge(ways, rings[0], rings[1])


def _over_membridge(ways: Any, out: Any, back: Any) -> Channel:
    push, pop = out.push, back.pop

    def send(data: Any) -> None:
        while not push(bytes(data)):  # full
            pass

    def recv(_most: int) -> bytes:
        while (data := pop()) is None:
            pass
        return data

    channel = Channel(send, recv)
    channel.kept = ways  # type: ignore[attr-defined]
    return channel


class FifoChannel(Channel):
    """Two queues and the forked child that echoes."""

    def __init__(self, core: int | None) -> None:
        import faster_fifo

        out, back = faster_fifo.Queue(), faster_fifo.Queue()
        super().__init__(out.put, lambda _most: back.get(timeout=WAIT_S))
        context = multiprocessing.get_context("fork")
        self._orders, theirs = context.Pipe()
        context.Process(target=_fifo_child, args=(theirs, out, back, core), daemon=True).start()

    def ask(self, size: int, count: int) -> array[int]:
        """Tell the child how many to echo, then ask as everybody does."""
        self._orders.send((size, count))
        return super().ask(size, count)


def _fifo_child(orders: Any, out: Any, back: Any, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, [core])
    channel = Channel(back.put, lambda _most: out.get(timeout=WAIT_S))
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            channel.echo(*orders.recv())


class Idle(Channel):
    """The serving worker of a transport whose other side starts a process of its own."""

    def __init__(self) -> None:
        super().__init__(len, bytes)

    def echo(self, size: int, count: int) -> None:
        """Leave it to the other."""


def serve_fifo(_cfg: dict[str, Any], ready: Ready) -> Channel:
    """Stand by."""
    ready("")
    return Idle()


def dial_fifo(cfg: dict[str, Any], _address: Any) -> Channel:
    """Make the queues and fork."""
    return FifoChannel(cfg["allowed"][0] if cfg["cores"] else None)


class SockperfChannel(Channel):
    """Runs sockperf's own client for a second and reads its log of all messages."""

    def __init__(self, cfg: dict[str, Any], port: int) -> None:
        super().__init__(len, bytes)
        self._port = port
        self._log = fresh_path(cfg, ".csv")

    def ask(self, size: int, count: int) -> array[int]:
        """Return the round trips in ns of one second, however many it makes of them."""
        command = ["sockperf", "ping-pong", "--tcp", "-i", "127.0.0.1", "-p", str(self._port), "-t", "1"]
        command += ["-m", str(max(size, 14)), "--full-rtt", "--full-log", str(self._log)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        # packet, txTime(sec), rxTime(sec), rtt(usec)
        found = re.findall(r"^\d+, [\d.]+, [\d.]+, ([\d.]+)$", self._log.read_text(), re.MULTILINE)
        times = array("q", (round(float(rtt) * 1e3) for rtt in found))
        if not times:
            raise ValueError("sockperf logged no message")
        return times


def serve_sockperf(_cfg: dict[str, Any], ready: Ready) -> Channel:
    """Start sockperf's server; `timeout` ends it if nobody else can."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["timeout", "300", "sockperf", "server", "--tcp", "-i", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(server.terminate)
    listening = f"0100007F:{port:04X}"
    for _ in range(100):
        if listening in Path("/proc/net/tcp").read_text():
            break
        time.sleep(0.05)
    ready(port)
    return Idle()


def dial_sockperf(cfg: dict[str, Any], address: Any) -> Channel:
    """Use it."""
    return SockperfChannel(cfg, address)
