"""How two ends come together: the listener's record, the client's offer, the accepting side's checks.

connect() finds the listener's record, decides by the table (`policy`) in which stack the connection will live,
takes a pair there, and offers it under its socket's cookie.  accept() asks the kernel whose socket is at the other
end of the connection it got, and looks for an offer under that cookie.  Neither ever fails the program: whatever is
missing, forbidden or full leaves the connection in the kernel lane, where it is already, and a counter says why.
"""
from __future__ import annotations

import errno
import os
import sys
import time
from typing import Any

from shmstack import _native, errors
from shmstack.shm.layout import OFFER, OFFERS
from shmstack.stack import directory, listening, names, plans, policy, reaping, spares, threads
from shmstack.stack.attachment import Spin
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.policy import Home
from shmstack.stack.stack import Stack
from shmstack.tcp import lifeline
from shmstack.tcp.handle import HANDLE
from shmstack.tcp.state import State

_H, _O = HANDLE.at, OFFER.at
_ADAPTIVE_SPIN_NS = 50_000
ACCEPT_SPIN_NS = 300_000              # at most: between two connections are the end of one and the start of another
_SLICE_NS = 100_000_000               # longest time without a look at pending signals
_CORES = os.cpu_count() or 1

_spins: tuple[Any, dict[str, Spin]] = None, {}                # by the kind of wait, as these options say


def spin(where: str) -> Spin:
    """Return how a wait of this kind spins: as EF_SPIN_USEC and friends say, or about as long as a wake-up costs.

    One core: not at all, the peer could not answer meanwhile.
    """
    global _spins
    options = names.options()
    if _spins[0] is not options:
        _spins = options, {}
    how = _spins[1].get(where)
    if how is None:
        chosen = options.spin_ns(where)
        how = Spin(1 << 60 if chosen < 0 else chosen, False) if chosen is not None \
            else Spin(_ADAPTIVE_SPIN_NS if _CORES > 1 else 0, True)
        _spins[1][where] = how
    return how


def accept(sock: Any, lately: int) -> tuple[int, Any, int, bool]:
    """Wait for a connection and take it from the kernel; return (descriptor, address, how long to spin the next time,
    whether it was there soon).

    Parameters
    ----------
    lately : ns to spin, as this returned it the last time
    """
    timeout, own = sock.gettimeout(), threads.own("tcp_accept") if threads.said else None
    how = spin("tcp_accept") if own is None else Spin(own, False)
    if timeout == 0 or how.ns == 0:
        return *sock._accept(), lately, timeout == 0
    began, limit = time.monotonic_ns(), _SLICE_NS if timeout is None else int(timeout * 1e9)
    _native.call.spin_accept(sock._descriptor(), min(limit, lately if how.adapts else how.ns, _SLICE_NS), how.adapts)
    found = sock._accept()
    soon = time.monotonic_ns() - began < ACCEPT_SPIN_NS
    return *found, min(2 * lately + 1000, ACCEPT_SPIN_NS) if soon else lately // 2, soon


def refuse(stack: Stack | None, why: str, detail: object = "") -> None:
    """Count, and say if EF_LOG has debug, why a socket gets kernel TCP."""
    if stack is not None:
        stack.count(why)
    # Not by `logging`: a program's handler may be what connects here.
    if "debug" in names.options().log and sys.stderr is not None:
        print(f"shmstack[{os.getpid()}]: kernel TCP: {why} {detail}".rstrip(), file=sys.stderr)


# ---- connecting ----------------------------------------------------------------------------------------------

def offer(sock: Any, address: Any) -> Endpoint | None:
    """Before the kernel's connect: prepare the connection to `address`, or return None for kernel TCP."""
    try:
        plan = plans.find(address)
        if plan is not None:
            end = _open(sock, *plan.stacks(), plan.home, True)
            if end is not None or lifeline.netns(sock) == plan.netns:
                return end
        return _offer(sock, address)
    except (OSError, errors.OptionError) as error:
        if not names.options().no_fail:
            raise
        refuse(names.existing(sock), "not_stack_full" if isinstance(error, errors.StackFull) else "not_error", error)
        return None


def _offer(sock: Any, address: Any) -> Endpoint | None:
    chosen = names.options()
    if not chosen.tcp or chosen.tcp_connect_handover or chosen.tcp_client_loopback == 0:
        refuse(names.existing(sock), "not_client_off" if chosen.tcp_client_loopback == 0 else "not_option")
        return None
    try:
        family, where = lifeline.packed(address[0] or "0.0.0.0")
        port = int(address[1])
    except (OSError, ValueError, TypeError, IndexError):
        return None                                          # a host name, or an error for the kernel to report
    netns = lifeline.netns(sock)
    found = listening.record(netns, family, where, port)
    if found is None or not listening.is_local(family, where):
        refuse(names.existing(sock), "not_no_listener")
        return None
    mine = names.current(sock)
    if mine is None:
        return None
    # Which of several the kernel will choose nobody knows: one in our stack is as good as any, unless we insist on it.
    home = policy.home(mine.client, found.server, found.stack == mine.name and not (found.several and mine.client == 1))
    if home is Home.KERNEL:
        refuse(mine, policy.reason(mine.client, found.server))
        return None
    if not listening.owner_listens(found, family, address[0], port, netns):
        refuse(mine, "not_other_owner", found)
        return None
    theirs = mine if home is Home.SAME or (found.several and home is not Home.LISTENER) else _their_stack(mine, found)
    if theirs is None or home in (Home.CLIENT, Home.NEW) and not _joins(found, mine):
        return None
    exact = directory.listener_path(directory.Place(netns, family, where, port))
    if found.several:
        return _open(sock, mine, theirs, home, False)        # a record, which whoever accepts will find
    plan = plans.make(address, mine, theirs, home, found, exact if exact != found.path else "")
    return _open(sock, mine, theirs, home, plan is not None)


def _open(sock: Any, mine: Stack, theirs: Stack, home: Home, board: bool) -> Endpoint | None:
    """Take a pair where the connection will live, and offer it on the listener's board or by a record."""
    stack = theirs if home is Home.LISTENER else mine
    if home is Home.NEW:
        chosen = names.options()
        if chosen.share_with != mine.share_with:
            chosen = chosen.replace(share_with=mine.share_with)
        stack = spares.take(mine.netns, chosen)
    timeout, how, native = sock.gettimeout(), spin("tcp_recv"), _native.call
    fd, wait_ns = sock._descriptor(), -1 if timeout is None else int(timeout * 1e9)
    for _ in range(2):
        handle = native.offer(stack.facts, theirs.facts if board else 0, fd, wait_ns, how.ns, how.adapts)
        if handle != -errno.ENFILE or not reaping.reap(stack):
            break
    if handle in (-errno.EISCONN, -errno.EXDEV):
        return None                                           # for the kernel to report; of another network namespace
    if handle < 0:
        raise stack.full(-handle)
    end = Endpoint(stack, native.load(handle + _H.pair_index), 0, fd, timeout, how, handle)
    if native.load(handle + _H.offer):
        end.board = theirs
        return end
    try:
        end.offer = directory.offer(stack.netns, end.cookie, stack.name, end.index, end.generation)
    except OSError:
        end.close()
        end.closed()
        raise
    if board:
        plans.clean(theirs)
    return end


def _their_stack(mine: Stack, found: directory.Listening) -> Stack | None:
    """Return the listener's stack if we may use it; None: kernel."""
    try:
        return Stack.attach(found.stack, (found.owner,))
    except errors.StackDenied as error:
        refuse(mine, "not_permitted", error)
    except errors.LayoutMismatch as error:
        refuse(mine, "not_other_layout", error)
    except errors.StackNotFound:
        directory.remove(found.path)                         # its stack has died: so has the record
        directory.settle(found.path)
        refuse(mine, "not_no_listener")
    return None


def _joins(found: directory.Listening, mine: Stack) -> bool:
    """Return whether the listener's user may come to a stack that is shared as ours is."""
    uid, shared = found.owner, mine.share_with
    if uid in (0, mine.owner) or shared in (-1, uid) and shared != 0:
        return True
    refuse(mine, "not_permitted", f"EF_SHARE_WITH={shared}, listener is uid {uid}")
    return False


def connected(end: Endpoint, sock: Any) -> None:
    """After the kernel's connect succeeded: note the addresses, and what the peer may write where."""
    if end.state != State.SYN_SENT:
        return
    while _native.call.established(end.stack.facts, end.handle) and end.follow(must=False):
        pass                                                  # moved meanwhile: what we noted may be lost


# ---- accepting -----------------------------------------------------------------------------------------------

def adopt(sock: Any, listener: Stack | None) -> Endpoint | None:
    """After the kernel's accept: take up the client's offer for this connection, or return None for kernel TCP."""
    if listener is None:
        return None
    try:
        return _adopt(sock, listener)
    except errors.StackDenied as error:
        refuse(listener, "accept_not_permitted", error)
    except OSError as error:
        if not names.options().no_fail:
            raise
        refuse(listener, "accept_refused", error)
    return None


def _adopt(sock: Any, listener: Stack) -> Endpoint | None:
    native, fd = _native.call, sock._descriptor()
    board = listener.segment.base + OFFERS if listener.private else 0
    cookie, uid, _, entry = native.meet(board, fd, lifeline.link(listener.netns))
    if not cookie:
        client = lifeline.peer(sock.family, sock.getsockname()[:2], sock.getpeername()[:2], listener.netns)
        if client is None:
            return None
        cookie, uid = client.cookie, client.uid
    if entry:
        # Only our own user, and root, can write to the board, so nobody else's word is taken.
        name = native.read(entry + _O.home, 32).split(b"\0")[0].decode("ascii", "replace")
        where = name or listener.name, native.load(entry + _O.pair), native.load(entry + _O.generation)
        native.unpost(entry, cookie)
        return _join(sock, listener, cookie, where, ())
    found = directory.offered(listener.netns, cookie)
    if found is None:
        listener.count("accept_no_offer")
        return None
    if found.owner not in (uid, os.geteuid(), 0):
        refuse(listener, "accept_refused", f"the offer is uid {found.owner}'s, the socket uid {uid}'s")
        return None
    end = _join(sock, listener, cookie, (found.stack, found.pair, found.generation), (uid,))
    if end is not None:
        directory.remove(found.path)
    return end


def _join(sock: Any, listener: Stack, cookie: int, where: tuple[str, int, int], owners: tuple[int, ...]) -> Endpoint | None:
    """Take up the offer of the socket `cookie`: (stack, pair, generation)."""
    name, index, generation = where
    if not policy.admits(listener.server, name == listener.name):
        refuse(listener, "accept_refused", f"EF_TCP_SERVER_LOOPBACK={listener.server}")
        return None
    if name == listener.name:
        stack = listener
    elif directory.NAME.fullmatch(name):
        stack = Stack.attach(name, owners)
    else:
        return None
    timeout, how, fd = sock.gettimeout(), spin("tcp_recv"), sock._descriptor()
    handle = _native.call.claim(stack.facts, index, generation, cookie, fd,
                                -1 if timeout is None else int(timeout * 1e9), how.ns, how.adapts)
    if not handle:
        listener.count("accept_withdrawn")
        return None
    if stack is not listener:
        (plans if stack.pairs_max > spares.PAIRS else spares).keep(stack)
    return Endpoint(stack, index, 1, fd, timeout, how, handle)
