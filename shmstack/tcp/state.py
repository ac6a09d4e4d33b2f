"""The states of a connection (RFC 9293 section 3.3.2), and the one table by which they change.

Rule: a state changes only through `step`.  On a loopback connection no segment is built, but the events are the
RFC's: what the peer does to the shared TCB arrives here as the segment that it would have sent.
"""
from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """RFC 9293's states; the numbers are those of Linux' TCP_INFO (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    FIN_WAIT_1 = 4
    FIN_WAIT_2 = 5
    TIME_WAIT = 6
    CLOSED = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11

    def __str__(self) -> str:
        return self.name.replace("_", "-")


class Event(IntEnum):
    """User calls and segments that move a connection."""

    OPEN = 0
    SYN_ACK = 1
    CLOSE = 2
    FIN = 3
    ACK_OF_FIN = 4
    RST = 5
    TIMEOUT = 6


S, E = State, Event
TRANSITIONS: dict[tuple[State, Event], State] = {
    (S.CLOSED, E.OPEN): S.SYN_SENT,
    (S.SYN_SENT, E.SYN_ACK): S.ESTABLISHED,
    (S.SYN_SENT, E.CLOSE): S.CLOSED,
    (S.SYN_SENT, E.RST): S.CLOSED,
    (S.SYN_RECEIVED, E.SYN_ACK): S.ESTABLISHED,
    (S.SYN_RECEIVED, E.CLOSE): S.FIN_WAIT_1,
    (S.SYN_RECEIVED, E.RST): S.CLOSED,
    (S.ESTABLISHED, E.CLOSE): S.FIN_WAIT_1,
    (S.ESTABLISHED, E.FIN): S.CLOSE_WAIT,
    (S.ESTABLISHED, E.RST): S.CLOSED,
    (S.FIN_WAIT_1, E.ACK_OF_FIN): S.FIN_WAIT_2,
    (S.FIN_WAIT_1, E.FIN): S.CLOSING,                    # simultaneous close
    (S.FIN_WAIT_1, E.RST): S.CLOSED,
    (S.FIN_WAIT_2, E.FIN): S.TIME_WAIT,
    (S.FIN_WAIT_2, E.RST): S.CLOSED,
    (S.CLOSE_WAIT, E.CLOSE): S.LAST_ACK,
    (S.CLOSE_WAIT, E.RST): S.CLOSED,
    (S.CLOSING, E.ACK_OF_FIN): S.TIME_WAIT,
    (S.CLOSING, E.RST): S.CLOSED,
    (S.LAST_ACK, E.ACK_OF_FIN): S.CLOSED,
    (S.LAST_ACK, E.RST): S.CLOSED,
    (S.TIME_WAIT, E.TIMEOUT): S.CLOSED,
    (S.TIME_WAIT, E.RST): S.CLOSED,
}


_BY_NUMBER: dict[tuple[int, int], State] = {(int(state), int(event)): to for (state, event), to in TRANSITIONS.items()}


def step(state: int, event: Event) -> State:
    """Return the state after `event`; a state stays as it is where the RFC names no transition."""
    known = _BY_NUMBER.get((state, event))
    if known is not None:
        return known
    return State(state) if state in State._value2member_map_ else State.CLOSED


def after(event: Event) -> int:
    """Return `step` for one event as a number: 4 bits for each state."""
    return sum(step(state, event) << 4 * state for state in range(12))
