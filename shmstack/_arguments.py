"""What is wrong with the arguments of a call: the standard library says it, in its order and its words.

A call whose arguments aren't of the plainest kind is first made on a socket that isn't open.  There the standard
library's own method checks them, and then finds no descriptor.  So nothing of its checks is written down here, and a
call with plain arguments pays nothing for them.
"""
from __future__ import annotations

import ctypes
import errno
import os
import socket as _stdlib
from operator import index
from typing import Any, Iterable

from shmstack.tcp import lifeline

_standard: Any = lifeline.standard
_MOST = 0x7FFFFFFF
_PIECES = os.sysconf("SC_IOV_MAX")
_closed: dict[int, Any] = {}          # family -> a socket that isn't open


def check(name: str, args: tuple[Any, ...], named: dict[str, Any] | None = None, family: int = _stdlib.AF_INET) -> None:
    """Raise what the standard library raises for wrong arguments of a method."""
    sock = _closed.get(family)
    if sock is None:
        sock = _closed[family] = _standard(family, _stdlib.SOCK_STREAM)
        sock.close()
    try:
        getattr(_standard, name)(sock, *args, **named or {})
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def _plain(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and 0 <= number <= _MOST for number in numbers)


def numbers(name: str, args: tuple[Any, ...], most: int = 2) -> list[int]:
    """Return what a method was called with that takes up to `most` integers, 0 for those left out."""
    if not 1 <= len(args) <= most or not _plain(args):
        check(name, args)
    return [index(number) for number in args] + [0] * (most - len(args))


def target(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, int, int]:
    """Return (buffer, how many bytes at most, flags) of a call that receives into a buffer."""
    if named or not 1 <= len(args) <= 3 or type(args[0]) is not bytearray or not _plain(args[1:]) \
            or (len(args) > 1 and args[1] > len(args[0])):
        check(name, args, named)
        known = dict(zip(("buffer", "nbytes", "flags"), args, strict=False)) | named
        args = known["buffer"], known.get("nbytes", 0), known.get("flags", 0)
    size = index(args[1]) if len(args) > 1 else 0
    return args[0], size or memoryview(args[0]).nbytes, index(args[2]) if len(args) > 2 else 0


def source(name: str, args: tuple[Any, ...]) -> tuple[Any, int]:
    """Return (data, flags) of a call that sends one buffer."""
    if not 1 <= len(args) <= 2 or type(args[0]) not in (bytes, bytearray) or not _plain(args[1:]):
        check(name, args)
    return args[0], index(args[1]) if len(args) > 1 else 0


def pieces(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a call that takes many buffers, those in a list."""
    if args and hasattr(args[0], "__iter__"):
        args = (list(args[0]), *args[1:])
    check(name, args)
    if len(args[0]) > _PIECES:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return args


def scatter(data: bytes, buffers: list[Any]) -> None:
    """Copy `data` to the buffers, one after the other."""
    done = 0
    for buffer in buffers:
        size = min(memoryview(buffer).nbytes, len(data) - done)
        if size:
            ctypes.memmove((ctypes.c_char * size).from_buffer(buffer), data[done:done + size], size)
        done += size
