"""What the kernels answer besides a count: the negative of an errno, or one of these."""
from __future__ import annotations

EAGAIN, EPIPE, ECONNRESET, ETIMEDOUT, EBADF, EINTR = 11, 32, 104, 110, 9, 4
LOCKED = 4096                        # -LOCKED: somebody holds the lock; ask whether it lives
FULL = 4097                          # -FULL: the ring has no room
LOOK = 4098                          # -LOOK: the ring is empty and the stream may have ended; see `recv_end`
NO_MEMORY = 4099                     # -NO_MEMORY: the ring has no memory behind it there
MEND = 4100                          # -MEND: nothing more in the kernel lane, but a dead sender left something undone
CHANGED = 4101                       # -CHANGED: the lane has changed just now; ask again

MSG_PEEK, MSG_TRUNC, MSG_DONTWAIT, MSG_NOSIGNAL = 0x2, 0x20, 0x40, 0x4000
OVERFLOW = 1 << 32                   # flag of `send_some`: don't wait for room, go on in the kernel lane
LARGE = 1 << 33                      # and this: by the kernel in any case

PIECE = 1 << 16                      # bytes that are copied before the other side is told: so both sides copy at once

READY, FOLLOW, LATER = 1, 2, 3            # see ready.ring_ready
