"""Read-only sight of stacks: the library under `shmstack list`, `netstat`, `stats` and under every tool.

Guarantee: looking changes nothing, waits for nobody and takes nothing, neither a lock nor a slot; it works on the
stack of a dead process, on one that is being made or removed, and on one full of garbage, where it shows what can
still be told and says what is wrong.

Theory.  `image` reads a stack's file into private memory; here its numbers become rows, each clamped.  Whoever owns
the file is the owner, whatever the header says.  `check` holds a stack against what must be true of it.
"""
from __future__ import annotations

import os
import pwd
import re
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from shmstack.shm import objects
from shmstack.shm.layout import COUNTERS
from shmstack.tcp.state import State
from shmstack.views.check import check
from shmstack.views.image import ESTABLISHED, KERNEL, OFFERED, Fields, Image, Process, images, shown, text

__all__ = ["Connection", "Image", "Listener", "Process", "Stack", "check", "connections", "counters", "images",
           "listeners", "shown", "stacks"]


class Stack(NamedTuple):
    """What a stack's header, file and process table say; `problem` is empty, or why the rest can't be believed."""

    name: str
    full: str
    owner_uid: int
    owner_name: str
    created_ns: int
    netns: int
    client: int
    server: int
    share_with: int
    endpoints_used: int
    endpoints_max: int
    capacity: int
    backed: int
    options: str
    processes: list[Process]
    problem: str


class Connection(NamedTuple):
    """One end of a connection."""

    stack: str
    endpoint: int
    peer: int
    local: tuple[str, int]
    remote: tuple[str, int]
    state: str
    recv_q: int
    send_q: int
    tx_lane: str
    rx_lane: str
    uid: int
    pid: int
    moves: int


class Listener(NamedTuple):
    """A record by which a listening socket is found."""

    stack: str
    local: tuple[str, int]
    server: int
    uid: int
    netns: int
    alive: bool


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def stacks(name: str | None = None) -> list[Stack]:
    """Return every stack of this host, or those called `name`."""
    made = []
    for image in images(name):
        header, owner = image.header, image.status.st_uid
        limit = 2 * header.get("pairs_max", 0)
        made.append(Stack(
            shown(image.full), image.full, owner, _user(owner),
            header.get("created_ns", image.status.st_mtime_ns), header.get("netns", 0), header.get("client", 0),
            header.get("server", 0), header.get("share_with", 0), max(0, min(2 * header.get("used", 0), limit)), limit,
            header.get("capacity", 0), image.status.st_blocks * 512, header.get("options", ""), image.processes(),
            image.problem))
    return made


def _host(family: int, address: bytes) -> str:
    return inet_ntop(AF_INET, address[:4]) if family == AF_INET else inet_ntop(AF_INET6, address[:16].ljust(16, b"\0"))


def _lane(direction: Fields, joined: bool) -> str:
    wished = direction["bell"] != KERNEL and not direction["kernel"]
    return "ring" if joined and (direction["nb"] & 1 or wished) else "kernel"


def connections(name: str | None = None) -> list[Connection]:
    """Return a row for each end of each connection.

    What one end sent and the other has not read is in the sender's `send_q` and in the reader's `recv_q`: it is in
    one place.
    """
    rows = []
    for image in images(name):
        for index, pair, tcbs, ways in image.pairs():
            if pair["state"] not in (OFFERED, ESTABLISHED):
                continue
            joined, ports, family = pair["state"] == ESTABLISHED, pair["ports"], pair["family"]
            ends = [(_host(family, pair["client_ip"]), ports >> 16 & 0xFFFF),
                    (_host(family, pair["server_ip"]), ports & 0xFFFF)]
            queues = [max(0, way["tail"] - way["head"]) for way in ways]
            for side in range(2 if joined else 1):
                if pair["closed"] >> side & 1:
                    continue
                tcb, other = tcbs[side], 1 - side
                state = State._value2member_map_.get(tcb["state"], f"?{tcb['state']}")
                rows.append(Connection(
                    shown(image.full), 2 * index + side, 2 * index + other, ends[side], ends[other], str(state),
                    queues[other], queues[side], _lane(ways[side], joined), _lane(ways[other], joined), tcb["uid"],
                    tcb["pid"], tcb["moves"]))
    return rows


def counters(name: str | None = None) -> dict[str, dict[str, int]]:
    """Return stack -> counter -> value."""
    found: dict[str, dict[str, int]] = {}
    for image in images(name):
        if image.header:
            key = shown(image.full)
            found[image.full if key in found else key] = dict(zip(COUNTERS, image.header["counters"], strict=False))
    return found


_LISTENER = re.compile(r"shmstack\.l\.([0-9a-f]+)\.(\d+)-((?:[0-9a-f]{8}){1,4})\.(\d+)(?:\.\d+)?")


def listeners() -> list[Listener]:
    """Return the records of listening sockets (see stack.directory); a record may be a lie, its `uid` is not."""
    rows = []
    for entry in sorted(os.listdir(objects.DIRECTORY)):
        match = _LISTENER.fullmatch(entry)
        try:
            path = f"{objects.DIRECTORY}/{entry}"
            words, owner = (os.readlink(path).split(":"), os.lstat(path).st_uid) if match else ([], 0)
            if match and len(words) == 5:
                netns, family, address, port = match.groups()
                rows.append(Listener(shown(text(words[1].encode())), (_host(int(family), bytes.fromhex(address)), int(port)),
                                     int(words[2]), owner, int(netns, 16), objects.living(words[1])))
        except (OSError, ValueError):
            continue                                          # gone, or not a record
    return rows
