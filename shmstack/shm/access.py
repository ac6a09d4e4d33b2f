"""Opening an object, and who may: its mode, and a POSIX ACL for one more user.

The kernel checks it at each open; what a process has mapped stays mapped.
"""
from __future__ import annotations

import errno
import fcntl
import os
import struct

# Not when it is needed: by then a program may have dropped the privileges that it took to read its modules.
try:
    import posix_ipc
except ImportError:                   # installed without dependencies: the interpreter has the same two calls
    import _posixshmem
    posix_ipc = None

_HIGH = 700


def grant(fd: int, share_with: int) -> None:
    """Let others open the object: nobody (0), everybody (-1), or one uid, by a POSIX ACL.

    Source: the xattr form of POSIX.1e ACLs, linux/posix_acl_xattr.h.
    """
    if share_with == -1:
        os.fchmod(fd, 0o666)
    elif share_with > 0:
        undefined = 0xFFFFFFFF
        entries = [(1, 6, undefined), (2, 6, share_with), (4, 0, undefined), (0x10, 6, undefined), (0x20, 0, undefined)]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        os.setxattr(fd, "system.posix_acl_access", value)


def aside(fd: int) -> int:
    """Return the descriptor with a number that programs don't count on: those after the ones that they have."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:                   # a low limit
        return fd
    os.close(fd)
    return high


def shm_open(name: str, flags: int, mode: int) -> int:
    """Return a descriptor of the object; it is closed on exec."""
    if posix_ipc is None:
        fd: int = _posixshmem.shm_open("/" + name, flags | os.O_CLOEXEC, mode)
        return fd
    try:
        fd = posix_ipc.SharedMemory("/" + name, flags, mode).fd
    except posix_ipc.ExistentialError as error:
        code = errno.EEXIST if flags & os.O_EXCL else errno.ENOENT
        raise OSError(code, os.strerror(code), name) from error
    except posix_ipc.PermissionsError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from error
    os.set_inheritable(fd, False)
    return fd
