"""How two ends come together: the listener's record, the client's offer, the accepting side's checks.

connect() finds the listener's record, decides by the table (`policy`) in which stack the connection will live,
takes a pair there, and offers it under its socket's cookie.  accept() asks the kernel whose socket is at the other
end of the connection it got, and looks for an offer under that cookie.  Neither ever fails the program: whatever is
missing, forbidden or full leaves the connection in the kernel lane, where it is already, and a counter says why.
"""
from __future__ import annotations

import os
import socket
import sys
from typing import Any

from shmstack import _native, errors
from shmstack.shm.layout import DIRECTION, PAIR, TCB
from shmstack.stack import directory, names, policy
from shmstack.stack.attachment import Spin
from shmstack.stack.endpoint import Endpoint
from shmstack.stack.policy import Home
from shmstack.stack.stack import ESTABLISHED, OFFERED, Stack
from shmstack.tcp import lifeline
from shmstack.tcp.state import Event, State

_P, _T, _BELL = PAIR.at, TCB.at, DIRECTION.at.bell
_ADAPTIVE_SPIN_NS = 50_000
_ANY: dict[int, bytes] = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}
_LOOPBACK_6 = bytes(15) + b"\1"


def spin(where: str) -> Spin:
    """Return how a wait of this kind spins: as EF_SPIN_USEC and friends say, or about as long as a wake-up costs.

    One core: not at all, the peer could not answer meanwhile.
    """
    chosen = names.options().spin_ns(where)
    if chosen is not None:
        return Spin(1 << 60 if chosen < 0 else chosen, False)
    return Spin(_ADAPTIVE_SPIN_NS if (os.cpu_count() or 1) > 1 else 0, True)


def _refuse(stack: Stack | None, why: str, detail: object = "") -> None:
    if stack is not None:
        stack.count(why)
    # Not by `logging`: a program's handler may be what connects here.
    if "debug" in names.options().log and sys.stderr is not None:
        print(f"shmstack[{os.getpid()}]: kernel TCP: {why} {detail}".rstrip(), file=sys.stderr)


# ---- listening -----------------------------------------------------------------------------------------------

def publish(sock: Any) -> list[str]:
    """Record that `sock` listens; return the paths of the records (two for a dual-stack wildcard)."""
    chosen = names.options()
    to_device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:1] > b"\0"
    if not chosen.tcp or chosen.tcp_listen_handover or to_device:
        return []
    stack = names.current(sock)
    if stack is None or stack.server == 0:
        return []
    netns, cookie, address = lifeline.netns(sock), lifeline.cookie(sock), sock.getsockname()
    family, where = lifeline.packed(address[0])
    places = [(family, where)]
    if family == socket.AF_INET6 and where == _ANY[family] and not sock.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        places.append((socket.AF_INET, _ANY[socket.AF_INET]))
    found = [directory.publish(directory.Place(netns, kind, place, address[1]), stack.name, stack.server, cookie)
             for kind, place in places]
    return [path for path in found if path]


def _record(netns: int, family: int, where: bytes, port: int) -> directory.Listening | None:
    for place in (where, _ANY[family]):
        found = directory.listening(directory.Place(netns, family, place, port))
        if found is not None:
            return found
    return None


def _is_local(family: int, where: bytes) -> bool:
    """Return whether this address is of this host: a wildcard listener's record matches any.

    Only those can be bound to.  Addresses of the loopback network need no asking.
    """
    if (where[0] == 127 and family == socket.AF_INET) or where in (_ANY[family], _LOOPBACK_6):
        return True
    with lifeline.standard(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((socket.inet_ntop(family, where), 0))
        except OSError:
            return False
    return True


def _owner_listens(record: directory.Listening, family: int, host: str, port: int, netns: int) -> bool:
    """Return whether a foreign record's owner is the uid that the kernel says listens there."""
    if record.owner in (os.geteuid(), 0):
        return True
    for kind in (family, socket.AF_INET6):
        for place in (host, "0.0.0.0" if kind == socket.AF_INET else "::"):
            found = lifeline.holder(kind, (place, port), ("", 0), netns)
            if found is not None:
                return found.cookie == record.cookie and found.uid == record.owner
    return False


# ---- connecting ----------------------------------------------------------------------------------------------

def offer(sock: Any, address: Any) -> Endpoint | None:
    """Before the kernel's connect: prepare the connection to `address`, or return None for kernel TCP."""
    try:
        return _offer(sock, address)
    except (OSError, errors.OptionError) as error:
        if not names.options().no_fail:
            raise
        _refuse(names.existing(sock), "not_stack_full" if isinstance(error, errors.StackFull) else "not_error", error)
        return None


def _offer(sock: Any, address: Any) -> Endpoint | None:
    chosen = names.options()
    if not chosen.tcp or chosen.tcp_connect_handover or chosen.tcp_client_loopback == 0:
        return None
    try:
        family, where = lifeline.packed(address[0] or "0.0.0.0")
        port = int(address[1])
    except (OSError, ValueError, TypeError, IndexError):
        return None                                          # a host name, or an error for the kernel to report
    netns = lifeline.netns(sock)
    record = _record(netns, family, where, port)
    if record is None or not _is_local(family, where):
        _refuse(names.existing(sock), "not_no_listener")
        return None
    mine = names.current(sock)
    if mine is None:
        return None
    home = policy.home(mine.client, record.server, record.stack == mine.name)
    if home is Home.KERNEL:
        _refuse(mine, policy.reason(mine.client, record.server))
        return None
    if not _owner_listens(record, family, address[0], port, netns):
        _refuse(mine, "not_other_owner", record)
        return None
    stack = _home_stack(home, mine, record, netns)
    if stack is None:
        return None
    index = stack.take_pair()
    try:
        end = Endpoint(stack, index, 0, sock._descriptor(), sock.gettimeout(), spin("tcp_recv"))
        native, cookie = _native.call, lifeline.cookie(sock)
        native.store(end.tcb + _T.cookie, cookie)
        native.store(end.tcb + _T.uid, os.geteuid())
        native.store(end.tcb + _T.pid, os.getpid())
        native.store(end.tcb + _T.iss, int.from_bytes(os.urandom(4), "little"))
        native.store(end.tcb + _T.state, State.CLOSED)
        end.happened(Event.OPEN)
        native.store(stack.direction(index, 0) + _BELL, 2)    # nobody reads the ring before the offer is accepted
        native.store(end.pair + _P.state, OFFERED)
        end.offer = directory.offer(netns, cookie, stack.name, index, end.generation)
    except BaseException:
        stack.release_pair(index)
        raise
    return end


def _home_stack(home: Home, mine: Stack, record: directory.Listening, netns: int) -> Stack | None:
    """Return the stack that the connection will live in, having checked who may share what; None: kernel."""
    if home is Home.SAME:
        return mine
    try:
        theirs = Stack.attach(record.stack, (record.owner,))
    except errors.StackDenied as error:
        _refuse(mine, "not_permitted", error)
        return None
    except errors.LayoutMismatch as error:
        _refuse(mine, "not_other_layout", error)
        return None
    except errors.StackNotFound:
        directory.remove(record.path)                        # its stack has died: so has the record
        _refuse(mine, "not_no_listener")
        return None
    if home is Home.LISTENER:
        return theirs
    if not _may_join(record.owner, mine):
        _refuse(mine, "not_permitted", f"EF_SHARE_WITH={mine.share_with}, listener is uid {record.owner}")
        return None
    if home is Home.NEW:
        return Stack.unnamed(netns, names.options().replace(share_with=mine.share_with), pairs=2)
    return mine


def _may_join(uid: int, stack: Stack) -> bool:
    return uid in (0, stack.owner) or stack.share_with in (-1, uid) and stack.share_with != 0


def connected(end: Endpoint, sock: Any) -> None:
    """After the kernel's connect succeeded: note the addresses, and what the peer may write where."""
    if end.state != State.SYN_SENT:
        return
    end.happened(Event.SYN_ACK)
    _note_addresses(end, sock.getsockname(), sock.getpeername())
    end.stack.count("connect_accelerated")


def _note_addresses(end: Endpoint, client: Any, server: Any) -> None:
    native = _native.call
    for field, address in ((_P.client_ip, client), (_P.server_ip, server)):
        family, where = lifeline.packed(address[0])
        native.write(end.pair + field, where)
    native.store(end.pair + _P.family, family)
    native.store(end.pair + _P.ports, client[1] << 16 | server[1])


# ---- accepting -----------------------------------------------------------------------------------------------

def adopt(sock: Any, listener: Stack | None) -> Endpoint | None:
    """After the kernel's accept: take up the client's offer for this connection, or return None for kernel TCP."""
    if listener is None:
        return None
    try:
        return _adopt(sock, listener)
    except errors.StackDenied as error:
        _refuse(listener, "accept_not_permitted", error)
    except OSError as error:
        if not names.options().no_fail:
            raise
        _refuse(listener, "accept_refused", error)
    return None


def _adopt(sock: Any, listener: Stack) -> Endpoint | None:
    local, remote = sock.getsockname(), sock.getpeername()
    client = lifeline.peer(sock.family, local[:2], remote[:2], listener.netns)
    if client is None:
        return None
    found = directory.offered(listener.netns, client.cookie)
    if found is None:
        listener.count("accept_no_offer")
        return None
    if found.owner not in (client.uid, os.geteuid(), 0):
        _refuse(listener, "accept_refused", f"the offer is uid {found.owner}'s, the socket uid {client.uid}'s")
        return None
    if not policy.admits(listener.server, found.stack == listener.name):
        _refuse(listener, "accept_refused", f"EF_TCP_SERVER_LOOPBACK={listener.server}")
        return None
    stack = listener if found.stack == listener.name else Stack.attach(found.stack, (client.uid,))
    native = _native.call
    if not 0 <= found.pair < stack.pairs_max:
        return None
    pair = stack.pair(found.pair)
    right = native.load(pair + _P.generation) == found.generation and \
        native.load(stack.tcb(found.pair, 0) + _T.cookie) == client.cookie
    # The generation also tells this offer from the next one in the same pair, should the client withdraw it just now.
    if not right or native.cas(pair + _P.offer, found.generation, 0) != found.generation:
        listener.count("accept_withdrawn")
        return None
    end = Endpoint(stack, found.pair, 1, sock._descriptor(), sock.gettimeout(), spin("tcp_recv"))
    for field, value in ((_T.cookie, lifeline.cookie(sock)), (_T.uid, os.geteuid()), (_T.pid, os.getpid()),
                         (_T.iss, int.from_bytes(os.urandom(4), "little")), (_T.state, State.ESTABLISHED)):
        native.store(end.tcb + field, value)
    _note_addresses(end, remote, local)
    native.store(pair + _P.state, ESTABLISHED)
    end.set_timeout(sock.gettimeout())                       # now the client may write to the ring
    directory.remove(found.path)
    stack.count("accept_accelerated")
    return end
