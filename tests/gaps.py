"""Where an accelerated socket is known to differ from a kernel socket, test by test, with what is missing.

Each of these tests runs and is expected to fail under shmstack; the same test passes on the standard library's
sockets.  Whoever closes a gap takes its line out.
"""
from __future__ import annotations

GAPS = {
    "test_edge_triggered_reports": "edge-triggered sets report an arrival twice when it changes lane",
    "test_maxevents_limits_one_answer_and_none_is_forgotten": "more ready sockets than maxevents are not rotated",
    "test_close_with_unread_data": "the reset of a close with unread bytes reaches a reader as the end of the stream",
    "test_reset_wakes_a_reader_and_a_writer": "reader and writer get each other's error",
    "test_close_by_another_thread_does_not_harm_a_waiting_reader": "a reader whose socket is closed gets EBADF",
    "test_fionread": "the ioctl sees the lifeline only",
    "test_multiprocessing_moves_a_socket": "a pickled socket needs the reducer that the launcher installs",
}


def gap(nodeid: str) -> str | None:
    """Return what is missing for this test, if anything is."""
    if "stdlib" in nodeid:
        return None
    return next((why for name, why in GAPS.items() if name in nodeid), None)
