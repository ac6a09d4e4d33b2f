"""The table of states against RFC 9293, section 3.3.2 and figure 5."""
from __future__ import annotations

import itertools

import pytest

from shmstack.tcp.state import TRANSITIONS, Event, State, step

S, E = State, Event

# Figure 5 and section 3.10, without LISTEN, which has no TCB here.  None: the state stays as it is.
FIGURE = {
    S.CLOSED: {E.OPEN: S.SYN_SENT},
    S.LISTEN: {},
    S.SYN_SENT: {E.SYN_ACK: S.ESTABLISHED, E.CLOSE: S.CLOSED, E.RST: S.CLOSED},
    S.SYN_RECEIVED: {E.SYN_ACK: S.ESTABLISHED, E.CLOSE: S.FIN_WAIT_1, E.RST: S.CLOSED},
    S.ESTABLISHED: {E.CLOSE: S.FIN_WAIT_1, E.FIN: S.CLOSE_WAIT, E.RST: S.CLOSED},
    S.FIN_WAIT_1: {E.ACK_OF_FIN: S.FIN_WAIT_2, E.FIN: S.CLOSING, E.RST: S.CLOSED},
    S.FIN_WAIT_2: {E.FIN: S.TIME_WAIT, E.RST: S.CLOSED},
    S.CLOSE_WAIT: {E.CLOSE: S.LAST_ACK, E.RST: S.CLOSED},
    S.CLOSING: {E.ACK_OF_FIN: S.TIME_WAIT, E.RST: S.CLOSED},
    S.LAST_ACK: {E.ACK_OF_FIN: S.CLOSED, E.RST: S.CLOSED},
    S.TIME_WAIT: {E.TIMEOUT: S.CLOSED, E.RST: S.CLOSED},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=str)
def test_every_pair_does_what_the_figure_says(state, event):
    assert step(state, event) == FIGURE[state].get(event, state)


def test_table_has_no_transition_that_the_figure_lacks():
    assert {(state, event): to for state, row in FIGURE.items() for event, to in row.items()} == TRANSITIONS


def test_every_state_but_closed_and_listen_leads_to_closed():
    closing, before = {S.CLOSED}, set()
    while closing != before:
        before = set(closing)
        closing |= {state for (state, _), to in TRANSITIONS.items() if to in closing}
    assert set(State) - closing == {S.LISTEN}


def test_every_state_but_the_listeners_can_be_reached():
    assert set(TRANSITIONS.values()) == set(State) - {S.LISTEN, S.SYN_RECEIVED}


@pytest.mark.parametrize(("events", "states"), [
    ((E.OPEN, E.SYN_ACK, E.CLOSE, E.ACK_OF_FIN, E.FIN, E.TIMEOUT),
     (S.SYN_SENT, S.ESTABLISHED, S.FIN_WAIT_1, S.FIN_WAIT_2, S.TIME_WAIT, S.CLOSED)),
    ((E.OPEN, E.SYN_ACK, E.FIN, E.CLOSE, E.ACK_OF_FIN),
     (S.SYN_SENT, S.ESTABLISHED, S.CLOSE_WAIT, S.LAST_ACK, S.CLOSED)),
    ((E.OPEN, E.SYN_ACK, E.CLOSE, E.FIN, E.ACK_OF_FIN),
     (S.SYN_SENT, S.ESTABLISHED, S.FIN_WAIT_1, S.CLOSING, S.TIME_WAIT)),
], ids=["active close", "passive close", "both close at once"])
def test_a_connection_goes_through_the_states_of_section_3_6(events, states):
    now, seen = S.CLOSED, []
    for event in events:
        now = step(now, event)
        seen.append(now)
    assert tuple(seen) == states


@pytest.mark.parametrize("garbage", [-1, 0, 12, 1 << 62])
def test_a_number_that_is_no_state_is_taken_for_closed(garbage):
    assert step(garbage, E.FIN) == S.CLOSED


def test_states_have_the_names_of_the_rfc_and_the_numbers_of_linux():
    assert str(S.FIN_WAIT_1) == "FIN-WAIT-1"
    numbers = "ESTABLISHED SYN_SENT SYN_RECEIVED FIN_WAIT_1 FIN_WAIT_2 TIME_WAIT CLOSED CLOSE_WAIT LAST_ACK LISTEN CLOSING"
    assert [State(number + 1).name for number in range(11)] == numbers.split()
