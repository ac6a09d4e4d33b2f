"""A listener's record: how it is published, found, and held against what the kernel says of the listening socket."""
from __future__ import annotations

import os
import socket
from typing import Any

from shmstack.stack import directory, names
from shmstack.tcp import lifeline

ANY: dict[int, bytes] = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}
_LOOPBACK_6 = bytes(15) + b"\1"


def publish(sock: Any) -> list[str]:
    """Record that `sock` listens; return the paths of the records (two for a dual-stack wildcard)."""
    chosen = names.options()
    to_device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:1] > b"\0"
    if not chosen.tcp or chosen.tcp_listen_handover or to_device:
        return []
    stack = names.current(sock)
    if stack is None or stack.server == 0:
        return []
    netns, cookie, address = lifeline.netns(sock), lifeline.cookie(sock), sock.getsockname()
    family, where = lifeline.packed(address[0])
    places = [(family, where)]
    if family == socket.AF_INET6 and where == ANY[family] and not sock.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        places.append((socket.AF_INET, ANY[socket.AF_INET]))
    found = [directory.publish(directory.Place(netns, kind, place, address[1]), stack.name, stack.server, cookie)
             for kind, place in places]
    return [path for path in found if path]


def record(netns: int, family: int, where: bytes, port: int) -> directory.Listening | None:
    for place in (where, ANY[family]):
        found = directory.listening(directory.Place(netns, family, place, port))
        if found is not None:
            return found
    return None


def is_local(family: int, where: bytes) -> bool:
    """Return whether this address is of this host: a wildcard listener's record matches any.

    Only those can be bound to.  Addresses of the loopback network need no asking.
    """
    if (where[0] == 127 and family == socket.AF_INET) or where in (ANY[family], _LOOPBACK_6):
        return True
    with lifeline.standard(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((socket.inet_ntop(family, where), 0))
        except OSError:
            return False
    return True


def owner_listens(found: directory.Listening, family: int, host: str, port: int, netns: int) -> bool:
    """Return whether a foreign record's owner is the uid that the kernel says listens there."""
    if found.owner in (os.geteuid(), 0):
        return True
    for kind in (family, socket.AF_INET6):
        for place in (host, "0.0.0.0" if kind == socket.AF_INET else "::"):
            holder = lifeline.holder(kind, (place, port), ("", 0), netns)
            if holder is not None:
                return holder.cookie == found.cookie and holder.uid == found.owner
    return False
