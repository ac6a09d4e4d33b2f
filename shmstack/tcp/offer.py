"""How a client's offer is made and accepted, in one native call each; `stack.rendezvous` says when and why.

An offer stands on a *board*: a small table in the listener's stack, by the cookie of the client's socket.  Who posts
there takes a free entry by CAS, fills it, and shows it by storing the cookie last (SYNC offer).  No entry is believed:
the pair it names must be of that generation, and carry the cookie that the kernel says the socket at the other end has.
"""
from __future__ import annotations

from numba import types

from shmstack._jit import (
    cas, copy, cycles, extern, fetch_add, kernel, load, load32, load_acquire, scratch, store, store_release, swap)
from shmstack.ring.bell import KERNEL, RING
from shmstack.ring.doorbell import now_ns
from shmstack.shm.layout import (
    COUNTERS, DIRECTION, HEADER, OFFER, OFFERS_MAX, PAIR, PAIR_DIRECTION, PAIR_TCB, TCB)
from shmstack.tcp.codes import MSG_DONTWAIT
from shmstack.tcp.handle import FACTS, HANDLE
from shmstack.tcp.lane import recv_now, send_now
from shmstack.tcp.life import enter, pair_at, take_pair
from shmstack.tcp.state import State

_D, _F, _H, _O, _P, _T = DIRECTION.at, FACTS.at, HANDLE.at, OFFER.at, PAIR.at, TCB.at
_TCB, _OFFER = TCB.size, OFFER.size
_i, _i32 = types.int64, types.int32

OFFERED, ESTABLISHED, MOVED = 1, 2, 3                         # PAIR.state
EXDEV, EISCONN = 18, 106
SO_COOKIE, SO_NETNS_COOKIE, SO_RCVTIMEO = 57, 71, 66          # the latter with 64-bit times, SO_SNDTIMEO follows
WINDOW = 8                            # entries of a board that an offer may stand in
AF_INET, IPPROTO_TCP = 2, 6
SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 20, 1
LOW = 0xFFFFFFFF
_CONNECTED = HEADER.at.counters + 8 * COUNTERS.index("connect_accelerated")
_ACCEPTED = HEADER.at.counters + 8 * COUNTERS.index("accept_accelerated")
_STATE_SYN_SENT, _STATE_ESTABLISHED = int(State.SYN_SENT), int(State.ESTABLISHED)

_getsockopt = extern("getsockopt", _i32, _i32, _i32, _i32, _i, _i)
_getsockname = extern("getsockname", _i32, _i32, _i, _i)
_getpeername = extern("getpeername", _i32, _i32, _i, _i)
_getrandom = extern("getrandom", _i, _i, _i, _i32)
_geteuid = extern("geteuid", _i32)
_save_thread = extern("PyEval_SaveThread", _i)
_restore_thread = extern("PyEval_RestoreThread", types.void, _i)
_yield = extern("sched_yield", _i32)
_poll = extern("poll", _i32, _i, _i, _i32)


# ---- what the kernel says of a socket ------------------------------------------------------------------------

@kernel
def number_of(fd, option):
    """Return one of the 64-bit numbers that the kernel has given a socket, 0 if it won't say."""
    answer = scratch()
    store(answer, 0)
    store(answer + 8, 8)
    return load(answer) if _getsockopt(fd, 1, option, answer, answer + 8) == 0 else 0


@kernel
def limited(fd):
    """Return 1 if receives or sends of a blocking socket end after some time (SO_RCVTIMEO, SO_SNDTIMEO)."""
    answer = scratch()
    for option in range(SO_RCVTIMEO, SO_RCVTIMEO + 2):
        store(answer, 0)
        store(answer + 8, 0)
        store(answer + 16, 16)
        _getsockopt(fd, 1, option, answer, answer + 16)
        if load(answer) or load(answer + 8):
            return 1
    return 0


@kernel
def note_addresses(fd, pair, side):
    """Write the addresses of both ends to the pair, IPv4-mapped ones as IPv4."""
    name = scratch()
    ports, family = 0, 0
    for end in range(2):                                      # the client's, the server's
        store(name + 64, 56)
        if end == side:
            failed = _getsockname(fd, name, name + 64)
        else:
            failed = _getpeername(fd, name, name + 64)
        if failed:
            return 0
        head, low, high = load(name), load(name + 8), load(name + 16)
        family = head & 0xFFFF
        ports = ports << 16 | (head >> 16 & 0xFF) << 8 | (head >> 24 & 0xFF)
        if family == AF_INET or (low == 0 and high & LOW == 0xFFFF0000):
            low = (head if family == AF_INET else high) >> 32 & LOW
            high, family = 0, AF_INET
        store(pair + (_P.server_ip if end else _P.client_ip), low)
        store(pair + (_P.server_ip if end else _P.client_ip) + 8, high)
    store(pair + _P.family, family)
    store(pair + _P.ports, ports)
    return 1


@kernel
def ask_peer(fd, link, request, answer):
    """Ask sock_diag(7) on the netlink socket `link` for the socket at the other end of `fd`; return 1 if it is known."""
    for end in range(2):
        store(answer + 64, 56)
        if end == 0:
            failed = _getpeername(fd, answer, answer + 64)
        else:
            failed = _getsockname(fd, answer, answer + 64)
        if failed:
            return 0
        head, low, high = load(answer), load(answer + 8), load(answer + 16)
        family = head & 0xFFFF
        if family == AF_INET:
            low, high = head >> 32 & LOW, 0
        if end == 0:
            store(request + 16, family | IPPROTO_TCP << 8 | -1 << 32)             # in any state
            store(request + 24, (head >> 16 & 0xFFFF) | low << 32)
            store(request + 32, (low >> 32 & LOW) | high << 32)
            store(request + 40, high >> 32 & LOW)
        else:
            store(request + 24, load(request + 24) | (head >> 16 & 0xFFFF) << 16)
            store(request + 40, load(request + 40) | low << 32)
            store(request + 48, (low >> 32 & LOW) | high << 32)
            store(request + 56, high >> 32 & LOW)
    sequence = cycles() & 0x7FFFFFFF
    store(request, 72 | SOCK_DIAG_BY_FAMILY << 32 | NLM_F_REQUEST << 48)
    store(request + 8, sequence)
    store(request + 64, -1)                                   # with any cookie
    if send_now(link, request, 72, MSG_DONTWAIT) != 72:
        return 0
    for _ in range(8):                                        # an answer that nobody took may be before ours
        if recv_now(link, answer, 256, MSG_DONTWAIT) < 88:
            return 0
        if load32(answer + 8) == sequence:
            return 1 if load32(answer + 4) & 0xFFFF == SOCK_DIAG_BY_FAMILY else 0
    return 0


@kernel
def spin_accept(fd, limit_ns, polite):
    """Look for `limit_ns` whether a connection waits on a listener; return 1 as soon as there is one."""
    entry = scratch()
    store(entry, (fd & 0xFFFFFFFF) | 1 << 32)
    if _poll(entry, 1, 0) != 0:
        return 1
    state = _save_thread()
    end, came = now_ns() + limit_ns, 0
    while came == 0 and now_ns() < end:
        if polite:
            _yield()
        came = _poll(entry, 1, 0)
    _restore_thread(state)
    return 1 if came else 0


# ---- offers --------------------------------------------------------------------------------------------------

@kernel
def identify(facts, tcb, cookie, state):
    """Say in a TCB whose it is, and count the one that holds it."""
    number = scratch()
    store(number, 0)
    _getrandom(number, 4, 0)
    store(tcb + _T.holders, 1)
    store(tcb + _T.arrived, 1)
    store(tcb + _T.cookie, cookie)
    store(tcb + _T.uid, _geteuid() & LOW)
    store(tcb + _T.pid, load(facts + _F.pid))
    store(tcb + _T.iss, load(number))
    store_release(tcb + _T.state, state)
    return 0


@kernel
def rest(h, timeout_ns):
    """Say for the first time where the input of this end is looked for: who doesn't block polls in the kernel."""
    store(h + _H.timeout_ns, timeout_ns)
    store(h + _H.receive_ns, timeout_ns)
    swap(load(h + _H.rx) + _D.bell, KERNEL if timeout_ns == 0 else RING)
    return 0


@kernel
def entry_of(board, cookie, i):
    """Return the address of the i-th entry that an offer may stand in."""
    return board + ((cookie + i) & (OFFERS_MAX - 1)) * _OFFER


@kernel
def post(listener, facts, cookie, generation, index):
    """Put an offer on the listener's board; return the address of its entry, 0 if there is no room."""
    board = load(listener + _F.offers)
    for i in range(WINDOW):
        entry = entry_of(board, cookie, i)
        if load_acquire(entry + _O.cookie) == 0 and cas(entry + _O.cookie, 0, -load(listener + _F.me)) == 0:
            store(entry + _O.holder, load(listener + _F.me))
            store(entry + _O.generation, generation)
            store(entry + _O.pair, index)
            if facts == listener:
                store(entry + _O.home, 0)
            else:
                copy(entry + _O.home, facts + _F.name, 32)
            store_release(entry + _O.cookie, cookie)                             # SYNC offer
            return entry
    return 0


@kernel
def seek(board, cookie):
    """Return the address of the entry with the offer of this client's socket, 0 if there is none (SYNC offer)."""
    for i in range(WINDOW):
        entry = entry_of(board, cookie, i)
        if load_acquire(entry + _O.cookie) == cookie:
            return entry
    return 0


@kernel
def offer(facts, listener, fd, timeout_ns, spin_ns, adapts):
    """Take a pair for the connection that `fd` is about to make, and offer it to the listener.

    Returns the handle; its `offer` is 0 if there is no board or no room there.  -EISCONN: it is connected already,
    -EXDEV: it lives in another namespace, or as `take_pair`.
    """
    name = scratch()
    store(name + 64, 56)
    if _getpeername(fd, name, name + 64) == 0:
        return -EISCONN
    if number_of(fd, SO_NETNS_COOKIE) != load(facts + _F.netns):
        return -EXDEV
    index = take_pair(facts)
    if index < 0:
        return index
    pair, cookie = pair_at(facts, index), number_of(fd, SO_COOKIE)
    h = enter(facts, index, 0, fd, spin_ns, adapts)
    identify(facts, pair + PAIR_TCB, cookie, _STATE_SYN_SENT)
    rest(h, timeout_ns)
    store(pair + PAIR_DIRECTION + _D.bell, KERNEL)            # nobody reads the ring before the offer is accepted
    store_release(pair + _P.state, OFFERED)
    if listener:
        store(h + _H.offer, post(listener, facts, cookie, load(h + _H.generation), index))
    return h


@kernel
def established(facts, h):
    """The kernel has connected us: note it; return 0, or -1 if the pair was moved meanwhile: follow, and again."""
    pair = load(h + _H.pair)
    tcb = pair + PAIR_TCB
    if cas(tcb + _T.state, _STATE_SYN_SENT, _STATE_ESTABLISHED) == _STATE_SYN_SENT:      # or the other end was quicker
        note_addresses(load(h + _H.fd), pair, 0)
        if load_acquire(pair + _P.state) == MOVED:
            return -1
        fetch_add(load(facts + _F.base) + _CONNECTED, 1)
    return 0


@kernel
def claim(facts, index, generation, cookie, fd, timeout_ns, spin_ns, adapts):
    """Accept the offer of the socket `cookie`; return our handle, or 0 if it isn't there any more.

    The generation also tells this offer from the next one in the same pair, should the client withdraw it just now.
    No lock is needed: until the pair is established nobody moves it.
    """
    if index < 0 or index >= load(facts + _F.pairs_max):
        return 0
    pair = pair_at(facts, index)
    if load_acquire(pair + _P.generation) != generation or load_acquire(pair + PAIR_TCB + _T.cookie) != cookie:
        return 0
    if cas(pair + _P.offer, generation, 0) != generation:
        return 0
    h = enter(facts, index, 1, fd, spin_ns, adapts)
    identify(facts, pair + PAIR_TCB + _TCB, number_of(fd, SO_COOKIE), _STATE_ESTABLISHED)
    note_addresses(fd, pair, 1)
    if cas(pair + PAIR_TCB + _T.state, _STATE_SYN_SENT, _STATE_ESTABLISHED) == _STATE_SYN_SENT:
        fetch_add(load(facts + _F.base) + _CONNECTED, 1)      # a client that doesn't block may never ask
    rest(h, timeout_ns)                                       # now the client may write to the ring
    store_release(pair + _P.state, ESTABLISHED)
    fetch_add(load(facts + _F.base) + _ACCEPTED, 1)
    return h
