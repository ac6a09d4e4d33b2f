"""The directory: small records in /dev/shm by which processes find each other.

Three kinds, each a symbolic link whose target text is the record: the one kind of file that the kernel makes whole,
content and all, in a single call, and that can be read, and its owner asked, without opening it.

    shmstack.l.NETNS.FAMILY-ADDRESS.PORT[.K]    who listens there   -> stack, server policy, socket cookie
    shmstack.o.NETNS.COOKIE                     an offer: where the connection of that client socket lives
                                                                    -> stack, pair, generation
    shmstack.f.STACK:FROM:PAIR.GENERATION       STACK is owed to whoever has not yet followed a connection that was
                                                moved there, from that pair of the stack FROM

A name is derived from what it describes, so a look-up is one readlink.  Anybody may make a name in a sticky
directory, therefore no record is believed for its name: `owner` says whose it is, and the caller holds that against
what the kernel says of the socket at the other end (`tcp.lifeline`).
"""
from __future__ import annotations

import os
import re
from typing import NamedTuple

from shmstack.shm.objects import DIRECTORY, FORWARD, living, owed

_VERSION = "1"
_SAME_PORT = 64                       # SO_REUSEPORT listeners that can be told apart


class Place(NamedTuple):
    """Where somebody listens: namespace, family, address in network order, port."""

    netns: int
    family: int
    address: bytes
    port: int


class Listening(NamedTuple):
    """A listener's record."""

    stack: str
    server: int
    cookie: int
    owner: int
    path: str

    @property
    def text(self) -> str:
        """What the record says."""
        return f"{_VERSION}:{self.stack}:{self.server}:{self.cookie:x}"


class Offer(NamedTuple):
    """A connecting client's record."""

    stack: str
    pair: int
    generation: int
    owner: int
    path: str


def listener_path(place: Place) -> str:
    """Return where the first listener's record of a place stands."""
    return f"{DIRECTORY}/shmstack.l.{place.netns:x}.{place.family}-{place.address.hex()}.{place.port}"


def _offer_path(netns: int, cookie: int) -> str:
    return f"{DIRECTORY}/shmstack.o.{netns:x}.{cookie:x}"


NAME = re.compile(r"[0-9a-f]+\.[A-Za-z0-9_.-]{1,24}")


def _read(path: str) -> tuple[list[str], int] | None:
    try:
        words, owner = os.readlink(path).split(":"), os.lstat(path).st_uid
    except OSError:
        return None
    return (words[1:], owner) if words[0] == _VERSION and NAME.fullmatch(words[1]) else None


def publish(place: Place, stack: str, server: int, cookie: int) -> str | None:
    """Record that somebody listens; return the record's path, or None if there are too many already."""
    base = listener_path(place)
    for number in range(_SAME_PORT):
        path = f"{base}.{number}" if number else base
        for _ in range(2):
            try:
                os.symlink(Listening(stack, server, cookie, 0, path).text, path)
                return path
            except FileExistsError:
                found = _listening(path)
                if found is not None and living(found.stack) and found.cookie != cookie:
                    break                                 # a living neighbour on the same port
                remove(path)
            except OSError:
                return None
    return None


def _listening(path: str) -> Listening | None:
    found = _read(path)
    if found is None:
        return None
    try:
        (stack, server, cookie), owner = found
        return Listening(stack, int(server), int(cookie, 16), owner, path)
    except ValueError:
        return None


def listening(place: Place) -> Listening | None:
    """Return the listener's record for exactly this address, if one is there."""
    return _listening(listener_path(place))


def says(path: str, text: str) -> bool:
    """Return whether a record is there that says this; whose it is doesn't matter if it was true before."""
    try:
        return os.readlink(path) == text
    except OSError:
        return False


def there(path: str) -> bool:
    """Return whether a record is there."""
    try:
        os.readlink(path)
    except OSError:
        return False
    return True


def offer(netns: int, cookie: int, stack: str, pair: int, generation: int) -> str:
    """Offer the connection of the socket `cookie`; return the record's path."""
    path = _offer_path(netns, cookie)
    os.symlink(f"{_VERSION}:{stack}:{pair:x}:{generation:x}", path)
    return path


def offered(netns: int, cookie: int) -> Offer | None:
    """Return the offer for the connection of the socket `cookie`, if there is one."""
    path = _offer_path(netns, cookie)
    found = _read(path)
    if found is None:
        return None
    try:
        (stack, pair, generation), owner = found
        return Offer(stack, int(pair, 16), int(generation, 16), owner, path)
    except ValueError:
        return None


def forward_path(target: str, source: str, pair: int, generation: int) -> str:
    """Return the path of the record of a move."""
    return f"{DIRECTORY}/{FORWARD}{target}:{source}:{pair:x}.{generation:x}"


def forward(target: str, source: str, pair: int, generation: int) -> str:
    """Record that `target` is owed to the ends of a pair in `source`; return the record's path."""
    path = forward_path(target, source, pair, generation)
    try:
        os.symlink(f"{_VERSION}:{source}", path)
    except FileExistsError:
        pass                                              # of a process that was killed before it moved
    return path


def remove(path: str) -> None:
    """Remove a record that may be gone already, or not be ours to remove."""
    try:
        os.unlink(path)
    except OSError:
        pass


def reap() -> None:
    """Remove every record whose stack no process uses any more, nor is owed."""
    alive: dict[str, bool] = {}
    for entry in os.listdir(DIRECTORY):
        if entry.startswith(("shmstack.l.", "shmstack.o.", FORWARD)):
            found = _read(f"{DIRECTORY}/{entry}")
            stack = found[0][0] if found and found[0] else ""
            if stack not in alive:
                alive[stack] = living(stack) or owed(stack)
            if not alive[stack]:
                remove(f"{DIRECTORY}/{entry}")
