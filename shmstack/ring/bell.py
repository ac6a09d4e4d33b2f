"""The values of a direction's `bell`; what they mean is told in `ring.doorbell`."""
from __future__ import annotations

RING, FUTEX, KERNEL, DEEP, WAITER = 0, 1, 2, 3, 16
