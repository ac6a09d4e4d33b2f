"""A handle: what one process knows about one endpoint, in memory that no other process can write.

Geometry (addresses, capacity) is set once, at attach, after the segment's header was checked; kernels take it from
here and never from the segment.  That is what makes garbage in a segment harmless: a position is masked and
clamped by the handle's capacity before it becomes an address.

A handle is `HANDLE.size` bytes of the C heap, known by its address.  It is never given back while a thread may be
asleep in it (`users`); closing one sets `dead`, and every call on a dead handle fails with EBADF.
"""
from __future__ import annotations

from shmstack.shm.layout import Struct

HANDLE = Struct("Handle", {
    "fd":         "descriptor of the lifeline, the connection's kernel socket",
    "side":       "0 active opener, 1 passive",
    "pair":       "address of the pair",
    "tx":         "address of the direction that this end sends",
    "rx":         "address of the direction that it receives",
    "tx_ring":    "address of the bytes it sends",
    "rx_ring":    "address of the bytes it receives",
    "capacity":   "bytes of each ring",
    "me":         "this process as a lock holder: its number in the stack",
    "timeout_ns": "-1 blocking, 0 non-blocking, or ns",
    "receive_ns": "the same for a receive: a blocking socket's is SO_RCVTIMEO, if set",
    "spin_ns":    "how long a wait spins before it sleeps",
    "bell":       "what to tell the sender while nobody reads: RING, KERNEL or WAITER + n",
    "dead":       "1: closed in this process",
    "users":      "threads inside a wait",
    "memory_fd":  "descriptor of the segment",
    "counters":   "address of the stack's counters",
    "tx_offset":  "offset of the sent ring in the segment",
    "checked":    "cycle counter when a send last looked whether the peer lives",
    "checked_at": "tail at that time",
    "foreign":    "1: bytes in the lifeline are nobody's count (someone else writes there)",
    "pair_index": "number of the pair in its stack",
    "generation": "of the pair when it was taken",
    "failed":     "an errno that every call now gives, 0 if none",
    "lost":       "an errno that the kernel told, which it does once, to a call that could not pass it on",
    "waiters":    "address of the stack's waiters",
    "waiter_size": "bytes from one waiter to the next",
    "shut":       "1: this end said that it sends no more",
    "adapts":     "1: a spin yields the core, and grows and shrinks with its success",
    "spin_now":   "ns: how long a wait of an adaptive handle spins at present",
    "held_spin":  "spins before the GIL is given up",
    "awake":      "waits that ended without a sleep, since the last sleep",
    "held_vain":  "how often in a row those were in vain",
    "deep":       "threads asleep on the lifeline: as long as there are any, input must come there",
    "wake":       "bytes of the next message part that wakes a poller, see tcp.course",
    "lowat":      "1: the lifeline was told to be writable only when it has little to send",
    "streak":     "receives since the last send",
    "emptied":    "ns: when the last of a streak of receives emptied the ring, 0 if it didn't",
    "offer":      "address of our entry on the listener's board, 0 if there is none",
})

# What this process knows of a stack, in memory that no other process can write.
FACTS = Struct("Facts", {
    "base":       "address of the segment",
    "pairs":      "address of the first pair",
    "rings":      "offset of the first ring",
    "capacity":   "bytes of each ring",
    "pairs_max":  "connection slots",
    "memory_fd":  "descriptor of the segment",
    "me":         "this process as a lock holder",
    "waiters":    "address of the stack's waiters",
    "waiter_size": "bytes from one waiter to the next",
    "offers":     "address of the board",
    "netns":      "cookie of the network namespace",
    "pid":        "of this process",
    "name":       (32, "full name"),
})
