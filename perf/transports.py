"""The catalogue of transports: everything that a round trip can be measured over.

    role        name             what it is
    baseline    kernel-blocking  stdlib socket, TCP on 127.0.0.1, blocking calls
                kernel-spin      the same, non-blocking, asking again until data is there
                kernel-nodelay   blocking with TCP_NODELAY, where that makes a difference
                unix             stdlib socket, AF_UNIX stream
                mp-pipe          multiprocessing's Connection, as Pipe() makes it
    ours        shmstack         `import shmstack.socket as socket`, nothing set
                shmstack-spin    the same program with EF_POLL_USEC=100000
                shmstack-nocopy  messages written and read where they lie, by shmstack.nocopy
    ceiling     ring, lines, memcpy    bare shared memory (see `ceilings`)
    peer        zmq-ipc, iceoryx2, faster-fifo, membridge, sockperf    see `peers`

The server and client code of kernel TCP and shmstack is the same ordinary socket code: only the
imported module differs.  `ends` makes the two ends of each inside the workers.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass, field

SPIN_ENV = {"EF_POLL_USEC": "100000"}


@dataclass(frozen=True)
class Transport:
    """One way for two processes to talk.

    Attributes
    ----------
    name, title : str
        Short name for options and JSON; words for the table.
    role : str
        "baseline", "ours", "ceiling" or "peer".
    kind : str
        Which pair of functions of `ends` makes its ends: "tcp", "unix", "pipe", "ring", "lines" or a peer.
    module : str
        The socket module that its programs import.
    spin : bool
        Whether it asks again instead of sleeping (kernel sockets only).
    env : dict
        Environment of both processes.
    needs : tuple of str
        Importable modules, or "command:NAME", without which there is no figure.
    """

    name: str
    title: str
    role: str
    kind: str
    module: str = "socket"
    spin: bool = False
    env: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def missing(self) -> str:
        """Return why it can't run here, or an empty string."""
        for need in self.needs:
            if need.startswith("command:"):
                if not shutil.which(need.partition(":")[2]):
                    return f"{need.partition(':')[2]} is not on PATH"
            elif not importable(need):
                return f"module {need} is not installed"
        return ""


def importable(name: str) -> bool:
    """Say whether a module (dotted names too) can be found, without running its code."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


OURS = "shmstack.socket"
CATALOGUE = {
    t.name: t
    for t in (
        Transport("kernel-blocking", "kernel TCP, blocking", "baseline", "tcp"),
        Transport("kernel-spin", "kernel TCP, spinning", "baseline", "tcp", spin=True),
        Transport("kernel-nodelay", "kernel TCP, TCP_NODELAY", "baseline", "tcp"),
        Transport("unix", "UNIX socket", "baseline", "unix"),
        Transport("mp-pipe", "multiprocessing.Pipe", "baseline", "pipe"),
        Transport("shmstack", "shmstack, defaults", "ours", "tcp", OURS, needs=(OURS,)),
        Transport(
            "shmstack-spin", "shmstack, spinning", "ours", "tcp", OURS, env=SPIN_ENV, needs=(OURS,)
        ),
        Transport(
            "shmstack-nocopy", "shmstack, in place", "ours", "nocopy", OURS, needs=("shmstack.nocopy",)
        ),
        Transport("ring", "bare ring (ceiling)", "ceiling", "ring", needs=("numba",)),
        Transport("lines", "two cache lines (ceiling)", "ceiling", "lines", needs=("numba",)),
        Transport("memcpy", "two memcpys (ceiling)", "ceiling", "memcpy", needs=("numba",)),
        Transport("zmq-ipc", "pyzmq ipc", "peer", "zmq", needs=("zmq",)),
        Transport("iceoryx2", "iceoryx2", "peer", "iceoryx2", needs=("iceoryx2",)),
        Transport("faster-fifo", "faster-fifo", "peer", "fifo", needs=("faster_fifo",)),
        Transport("membridge", "membridge", "peer", "membridge", needs=("membridge",)),
        Transport("sockperf", "sockperf (C)", "peer", "sockperf", needs=("command:sockperf",)),
    )
}

MAIN = (
    "kernel-blocking", "kernel-spin", "unix", "mp-pipe", "shmstack", "shmstack-spin", "ring",
)  # fmt: skip
PEERS = tuple(name for name, transport in CATALOGUE.items() if transport.role == "peer")
