"""What the kernel knows of a TCP socket: its cookie, its namespace, and who holds the other end.

The kernel's word is the ground that trust stands on: a record in the shared directory is believed only if the uid
that owns it also owns the kernel socket at the other end, and a peer is dead when no process holds that socket any
more.  Both are one query of an exact 4-tuple to sock_diag(7), 3 us, open to every user.

Rejected: /proc/net/tcp (reads every socket of the machine); pids (namespaces, reuse).
"""
from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from typing import Any, NamedTuple

from shmstack.shm.access import aside

SO_COOKIE, SO_NETNS_COOKIE = 57, 71
LIMITS = (20, 21, 66, 67)              # SO_RCVTIMEO, SO_SNDTIMEO, and the same with 64-bit times on any machine
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _NLMSG_ERROR = 4, 20, 1, 2
_ANY_COOKIE = 0xFFFFFFFF
standard = socket.socket               # the standard class, whatever is put in its place later


class Holder(NamedTuple):
    """A kernel socket as sock_diag shows it."""

    state: int
    cookie: int
    uid: int
    inode: int
    unacked: int                       # bytes written there that the other end has not acknowledged

    @property
    def held(self) -> bool:
        """Whether some process has a descriptor of it."""
        return self.inode != 0


def cookie(sock: Any) -> int:
    """Return the socket's number: unique since the machine started."""
    number: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    return number


def netns(sock: Any) -> int:
    """Return the number of the network namespace that the socket lives in."""
    number: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
    return number


def limits(sock: Any) -> tuple[int, int]:
    """Return how many ns a receive and a send of a blocking socket may wait in the kernel; 0: for ever."""
    found = [struct.unpack("=qq", sock.getsockopt(socket.SOL_SOCKET, option, 16)) for option in LIMITS[2:]]
    receive, send = (seconds * 1_000_000_000 + micros * 1000 for seconds, micros in found)
    return receive, send


def packed(host: str) -> tuple[int, bytes]:
    """Return (family, address in network order) of a numeric host; an IPv4-mapped address is IPv4."""
    if ":" not in host:
        return socket.AF_INET, socket.inet_aton(host)
    address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if address[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.AF_INET, address[12:]
    return socket.AF_INET6, address


_local = threading.local()


class _Link:
    """A netlink socket, closed with the thread that has it.

    A program may close descriptors that it doesn't know, and get the number again for a file of its own: then `sock`
    is None.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._inode = self._number()

    def _number(self, fstat: Any = os.fstat) -> tuple[int, int] | None:     # os is None at the end
        try:
            status = fstat(self._sock.fileno())
        except OSError:
            return None
        return status.st_ino, status.st_dev

    @property
    def sock(self) -> socket.socket | None:
        return self._sock if self._number() == self._inode else None

    def __del__(self) -> None:
        if self.sock is None:
            self._sock.detach()
        self._sock.close()


def _diag(namespace: int) -> Any:
    # One netlink socket a thread and namespace: requests and answers can't cross.
    links = _local.__dict__.setdefault("links", {})
    sock = links[namespace].sock if namespace in links else None
    if sock is None:
        kind = socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG
        made = standard(*kind, fileno=aside(standard(*kind).detach()))
        if netns(made) != namespace:
            made.close()
            return None
        made.settimeout(1.0)
        links[namespace] = _Link(made)
    return links[namespace].sock


def link(namespace: int) -> int:
    """Return the descriptor of this thread's netlink socket in a namespace, -1 if it can't be had."""
    made = _diag(namespace)
    return -1 if made is None else made.fileno()


def forget() -> None:
    """Drop the netlink sockets (a child must not share its parent's)."""
    _local.__dict__.pop("links", {}).clear()


def holder(family: int, source: tuple[str, int], to: tuple[str, int], namespace: int, sure: bool = False) -> Holder | None:
    """Return the socket bound to `source` and connected to `to` (("", 0): listening), or None if there is none.

    Parameters
    ----------
    family : the family of the socket that is looked for; a v6 socket may carry IPv4-mapped addresses
    source, to : (numeric host, port)
    namespace : as `netns` returns it
    sure : raise OSError if the kernel can't be asked or doesn't say
    """
    link = _diag(namespace)
    if link is None:
        if sure:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return None

    def wire(host: str) -> bytes:
        kind, address = packed(host) if host else (family, b"")
        if family == socket.AF_INET6 and kind == socket.AF_INET:
            address = b"\0" * 10 + b"\xff\xff" + address
        return address.ljust(16, b"\0")

    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + struct.pack(
        "!HH16s16s", source[1], to[1], wire(source[0]), wire(to[0])) + struct.pack("=III", 0, _ANY_COOKIE, _ANY_COOKIE)
    link.send(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + request)
    answer = link.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        error = -struct.unpack_from("=i", answer, 16)[0]
        if sure and error != errno.ENOENT:
            raise OSError(error, os.strerror(error))
        return None
    low, high = struct.unpack_from("=II", answer, 60)
    _, _, unacked, uid, inode = struct.unpack_from("=IIIII", answer, 68)
    return Holder(answer[17], low | high << 32, uid, inode, unacked)


def peer(family: int, local: tuple[str, int], remote: tuple[str, int], namespace: int, sure: bool = False) -> Holder | None:
    """Return the socket at the other end of a loopback connection, in either family it may have."""
    families = (family, socket.AF_INET6 if family == socket.AF_INET else socket.AF_INET)
    mapped = packed(local[0])[0] == socket.AF_INET
    for kind in families if mapped else families[:1]:
        found = holder(kind, remote, local, namespace, sure)
        if found is not None:
            return found
    return None
