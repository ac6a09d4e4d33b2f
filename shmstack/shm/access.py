"""Who may open an object: its mode, and a POSIX ACL for one more user.

The kernel checks it at each open; what a process has mapped stays mapped.
"""
from __future__ import annotations

import os
import struct


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
