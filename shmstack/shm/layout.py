"""Every structure in shared memory, declared once.

A stack is one POSIX shared-memory object:

    +----------+-----------+---------+---------+------------+-------------------------------+
    | Header   | processes | offers  | waiters | pairs      | rings: 2 a pair, `capacity` B |
    | + counters           |         |         |            | each, sparse until written    |
    +----------+-----------+---------+---------+------------+-------------------------------+
    0          PROCESSES   OFFERS    WAITERS   PAIRS        header.rings

A *pair* is one connection: the TCBs of both its ends and the two directions of its stream.  Endpoint `2 * pair`
is the active opener (side 0), `2 * pair + 1` the passive one (side 1); direction d carries what side d sends.

    direction:  | tail | head | bell, passed | nb, fin, bound[] | tx lock | rx lock |   a pair of cache lines each
    written by:   sender receiver receiver      sender             senders   receivers

`tail` is SND.NXT - ISS and `head` is SND.UNA - ISS (RFC 9293 section 3.3.1): positions in the stream that only
grow.  The byte at position p lies in the ring at `p & (capacity - 1)`, unless it travelled in the kernel lane.
Which lane a position is in follows from the *bounds*: the stream starts in the kernel lane, and changes lane at
bound[0], bound[1] and so on; `nb` counts the bounds that the sender has set, `passed` those that the receiver
has gone through.  At most two are outstanding, so `bound` needs no more than four places.

Theory.  All numbers are 64-bit and aligned, so no word is ever half written.  A word has one writer, or is only
changed by an atomic.  Words that are written often stand on pairs of cache lines of their own (the adjacent line
is prefetched), those written rarely share one, which then stays in both cores' caches.  There are no pointers:
only numbers of slots.  No number that is read from here is believed: see `tcp.handle`.

`VERSION` and a digest of all declarations stand in every header; a process with another digest stays away.
"""
from __future__ import annotations

from collections import namedtuple
from typing import Any, Mapping

from shmstack._digest import blake2b

VERSION = 1
MAGIC = 0x6B6361_74736D6873          # "shmstack"
LINES = 128                           # a pair of cache lines
PAGE = 4096
COPY, REBUILD, ZERO = "copy", "rebuild", "zero"   # a field of a connection that moves: taken along, made anew, left empty


class Struct:
    """Named fields at fixed offsets; each number is an int64, text is given as its size in bytes.

    Parameters
    ----------
    name : str
    fields : mapping
        name -> documentation (a number), or name -> (bytes, documentation) for text and arrays of numbers.
        Where a connection's field goes when it moves is the last item of its tuple: COPY, REBUILD or ZERO.
        A name that starts with "_" and maps to None opens a new pair of cache lines.
    size : int, optional
        Total size in bytes; the fields must fit.
    """

    def __init__(self, name: str, fields: Mapping[str, Any], size: int | None = None) -> None:
        self.name, self.fields = name, {}
        self.moves: dict[str, str] = {}
        offset = 0
        for field, what in fields.items():
            if what is None:
                offset = -(-offset // LINES) * LINES
                continue
            items: list[Any] = list(what) if isinstance(what, tuple) else [what]
            if items[-1] in (COPY, REBUILD, ZERO):
                self.moves[field] = items.pop()
            width, doc = items if len(items) == 2 else (8, items[0])
            self.fields[field] = (offset, width, doc)
            offset += -(-width // 8) * 8
        self.size = size or offset
        if offset > self.size:
            raise ValueError(f"{name}: fields take {offset} bytes, size={self.size}")
        offsets: Any = namedtuple(name + "At", self.fields)  # type: ignore[misc]
        self.at: Any = offsets._make(at for at, _, _ in self.fields.values())

    @property
    def dtype(self) -> Any:
        """The numpy dtype of one structure (for whole tables at a time)."""
        import numpy
        kinds = ["<i8" if width == 8 else f"S{width}" for _, width, _ in self.fields.values()]
        return numpy.dtype({"names": list(self.fields), "formats": kinds, "offsets": list(self.at),
                            "itemsize": self.size})

    def __str__(self) -> str:
        rows = [f"  {at:5} {width:4}  {self.moves.get(field, '-'):7}  {field:12} {doc}"
                for field, (at, width, doc) in self.fields.items()]
        return "\n".join([f"{self.name} ({self.size} bytes)", *rows])


HEADER = Struct("Header", {
    "magic":        "the letters shmstack",
    "version":      "layout version",
    "digest":       "of every declaration in this file",
    "size":         "bytes, the whole object",
    "capacity":     "bytes of a ring, a power of two",
    "pairs_max":    "connection slots",
    "pairs_at":     "offset of the first pair",
    "rings":        "offset of the first ring",
    "owner_uid":    "effective uid of the creator",
    "creator_pid":  "as the creator saw it",
    "created_ns":   "CLOCK_REALTIME",
    "netns":        "cookie of the network namespace",
    "share_with":   "EF_SHARE_WITH",
    "client":       "EF_TCP_CLIENT_LOOPBACK",
    "server":       "EF_TCP_SERVER_LOOPBACK",
    "name":         (32, "stack name"),
    "options":      (1024, "EF_ settings of the creator, NAME=VALUE separated by spaces"),
    "_ready":       None,
    "ready":        "1 once all of the above is true; published last",
    "_free":        None,
    "free":         "free list of pairs: tag << 32 | index + 1",
    "fresh":        "pairs below this were used before; those above have never been touched",
    "used":         "pairs in use",
    "backed":       "pairs below this have memory behind them",
    "moved_to":     "1: a connection was moved here, somebody may yet have to follow",
    "_counters":    None,
    "counters":     (128 * 8, "one word a counter, see COUNTERS"),
}, size=PAGE)

# Counters are never reset.  A reason not to accelerate is a counter, so that `shmstack stats` answers "why not".
COUNTERS = (
    "connect_accelerated", "accept_accelerated", "moves", "moves_refused", "forks",
    "not_client_off", "not_server_off", "not_no_listener", "not_other_stack", "not_alien", "not_permitted",
    "not_stack_full", "not_no_memory", "not_other_layout", "not_other_owner", "not_option", "not_error",
    "accept_no_offer", "accept_not_permitted", "accept_refused", "accept_withdrawn",
    "handed_back", "spills", "overflows", "peer_died", "corrupt", "reaped_pairs", "locks_broken",
)

PROCESS = Struct("Process", {
    "pid":        "in the process' own pid namespace; 0: free",
    "uid":        "effective uid",
    "start_ns":   "CLOCK_REALTIME at attach",
    "uses":       "grows with each new owner of the slot",
    "name":       (16, "command name"),
}, size=64)
PROCESSES_MAX = 512

# A lock holder's number: uses of its slot (modulo HOLDER_USES) * HOLDER_SLOTS + slot + 1.
HOLDER_SLOTS, HOLDER_USES = 1 << 10, 1 << 29

TCB = Struct("TCB", {
    "state":      ("RFC 9293 state, see tcp.state", COPY),
    "iss":        ("initial send sequence number (uint32)", COPY),
    "mss":        ("what TCP_MAXSEG says of the lifeline", COPY),
    "holders":    ("how many processes (and duplicates) hold this end", COPY),
    "cookie":     ("SO_COOKIE of the lifeline's socket at this end", COPY),
    "uid":        ("effective uid of the process that opened this end", COPY),
    "pid":        ("pid of that process", COPY),
    "arrived":    ("how many holders ever came to this pair", ZERO),
    "moves":      ("how often this end was moved to another stack", REBUILD),
    "sndbuf":     ("SO_SNDBUF that the program set, 0 if it didn't", COPY),
    "rcvbuf":     ("SO_RCVBUF that the program set, 0 if it didn't", COPY),
}, size=128)

DIRECTION = Struct("Direction", {
    "tail":       ("position after the last byte sent (SND.NXT - ISS); written by the sender", COPY),
    "_head":      None,
    "head":       ("position of the next unread byte (SND.UNA - ISS); written by the receiver", COPY),
    "_bell":      None,
    "bell":       ("where the receiver looks next, see ring.doorbell", REBUILD),
    "passed":     ("bounds that the receiver has gone through", COPY),
    "fenced":     ("whether senders make a fence before they look at the bell, see ring.doorbell", ZERO),
    "_sender":    None,
    "nb":         ("bounds that the sender has set; odd: it now writes to the ring", COPY),
    "fin":        ("1: nothing comes after tail, 2: nobody wants more", COPY),
    "backed":     ("bytes of the ring that have memory behind them", REBUILD),
    "window":     ("most bytes that may be unread in the ring, 0: what it holds", COPY),
    "stalled":    ("1: the sender sleeps on this word until there is room", ZERO),
    "kernel":     ("1: after the last bound everything is in the kernel lane, for good and uncounted", COPY),
    "run_start":  ("position at which the present run in the kernel lane began", COPY),
    "run_base":   ("bytes that the kernel had counted on the lifeline by then", COPY),
    "spilling":   ("bytes before this position are on their way from the ring to the kernel lane, 0: none are", ZERO),
    "bound0":     ("position at which the lane changes", COPY),
    "bound1":     ("", COPY), "bound2": ("", COPY), "bound3": ("", COPY),
    "_tx":        None,
    "tx_lock":    ("who sends: 0, owner (see ring.lock) or MOVED_LOCK", ZERO),
    "head_cache": ("before this position the ring is free, as the senders know", REBUILD),
    "_rx":        None,
    "rx_lock":    ("who receives", ZERO),
}, size=6 * LINES)

MOVED_LOCK = 1 << 40                  # holder of all locks of a pair that was moved away: nobody gets in any more

PAIR = Struct("Pair", {
    "state":      ("0 free, 1 offered, 2 established, 3 moved away, 4 withdrawn", REBUILD),
    "generation": ("grows each time the slot is taken; an offer names it", REBUILD),
    "next":       ("free list: index + 1", ZERO),
    "offer":      ("generation while it can be accepted or withdrawn, 0 accepted, -1 withdrawn", REBUILD),
    "closed":     ("bit per side: this end is done with the pair", COPY),
    "family":     ("AF_INET or AF_INET6", COPY),
    "ports":      ("client's port << 16 | server's port", COPY),
    "client_ip":  (16, "network order", COPY),
    "server_ip":  (16, "network order", COPY),
    "created_ns": ("CLOCK_REALTIME", COPY),
    "forward":    ("which of the two says where the pair was moved to", ZERO),
    "forward0":   (48, "pair number, generation, name of the stack", ZERO),
    "forward1":   (48, "", ZERO),
}, size=2 * LINES)

PAIR_TCB = PAIR.size                                     # TCB of side 0, then of side 1
PAIR_DIRECTION = PAIR_TCB + 2 * TCB.size                 # direction 0, then 1
PAIR_SIZE = PAGE // 2

WAITER = Struct("Waiter", {
    "owner":      "the process that has it, as a lock holder; 0: free",
    "uses":       "grows with each new owner",
    "_asleep":    None,
    "asleep":     "1: the poller is in the kernel, or about to be; 2: and each message must be an event there",
    "_summary":   None,
    "summary":    "1: some bit of the map is set",
}, size=4 * LINES)                                       # followed by one bit an endpoint
WAITERS_MAX = 64

# On the board of the listener's stack, at cookie modulo OFFERS_MAX and what follows.
OFFER = Struct("Offer", {
    "cookie":     "SO_COOKIE of the client's socket; 0: free, -holder: being written",
    "holder":     "the client's process, as a lock holder in this stack",
    "generation": "of the pair",
    "pair":       "number of the pair in its stack",
    "home":       (32, "full name of its stack, empty: this one"),
}, size=64)
OFFERS_MAX = 64

PROCESSES = HEADER.size
OFFERS = PROCESSES + PROCESSES_MAX * PROCESS.size
WAITERS = OFFERS + OFFERS_MAX * OFFER.size
STRUCTS = (HEADER, PROCESS, OFFER, WAITER, PAIR, TCB, DIRECTION)

if PAIR_DIRECTION + 2 * DIRECTION.size > PAIR_SIZE:
    raise ValueError(f"a pair takes {PAIR_DIRECTION + 2 * DIRECTION.size} bytes, more than {PAIR_SIZE}")


def describe() -> str:
    """Return the printed layout (tests hold it against a golden file)."""
    tail = [f"PAIR_SIZE {PAIR_SIZE}, PAIR_TCB {PAIR_TCB}, PAIR_DIRECTION {PAIR_DIRECTION}",
            f"PROCESSES {PROCESSES} x {PROCESSES_MAX}, OFFERS {OFFERS} x {OFFERS_MAX}, WAITERS {WAITERS} x {WAITERS_MAX}",
            "COUNTERS " + " ".join(COUNTERS)]
    return "\n\n".join([f"version {VERSION}", *map(str, STRUCTS), *tail]) + "\n"


DIGEST = int.from_bytes(blake2b(describe().encode(), digest_size=7).digest(), "little")


def waiter_size(pairs: int) -> int:
    """Bytes of one waiter with its map of `2 * pairs` endpoints."""
    return WAITER.size + -(-2 * pairs // 64) * 8


def geometry(pairs: int, capacity: int) -> tuple[int, int, int]:
    """Return (offset of the pairs, offset of the rings, size of the object) in bytes, pages kept whole."""
    pairs_at = -(-(WAITERS + WAITERS_MAX * waiter_size(pairs)) // PAGE) * PAGE
    rings = -(-(pairs_at + pairs * PAIR_SIZE) // PAGE) * PAGE
    return pairs_at, rings, rings + 2 * pairs * capacity
