"""Round trips make no system call on either side, once both ends know each other and spinning is on; no wait sleeps."""
from __future__ import annotations

import shutil
import time

import pytest
from process import Process

TRIPS = 100_000
TURNS = 5
SPIN_USEC = 60_000_000


def calls(log):
    """Return what a process asked of the kernel between its last two marks."""
    lines = log.read_text().splitlines()
    marks = [number for number, line in enumerate(lines) if "getpriority(PRIO_PGRP" in line]
    return lines[marks[-2] + 1:marks[-1]]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_round_trips_make_no_system_call(tmp_path):
    """A side that isn't run for 100 ms makes the other ask whether it lives: on a busy machine there are more turns."""
    logs = [tmp_path / "client", tmp_path / "server"]
    traced = [["strace", "-f", "-qq", "-o", str(log)] for log in logs]
    with Process(prefix=traced[0], EF_POLL_USEC=SPIN_USEC) as client, \
            Process(prefix=traced[1], EF_POLL_USEC=SPIN_USEC) as server:
        client.call("connect", server.call("listen"))
        server.call("accept")
        found = []
        for turn in range(1 + TURNS):
            server.start("answer_marked", 64, TRIPS if turn else 2000)
            client.call("ask_marked", 64, TRIPS if turn else 2000)
            server.result()
            if turn:
                found.append([calls(log) for log in logs])
                if found[-1] == [[], []]:
                    return
    assert found == [[[], []]]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_wait_for_the_first_bytes_does_not_sleep(tmp_path):
    """Nothing came by either lane yet, but it will come by the ring."""
    log = tmp_path / "server"
    trace = ["strace", "-f", "-qq", "-o", str(log)]
    with Process(EF_POLL_USEC=SPIN_USEC) as client, Process(prefix=trace, EF_POLL_USEC=SPIN_USEC) as server:
        client.call("connect", server.call("listen"))
        server.call("accept")
        server.start("answer_marked", 64, 1)
        while "PRIO_PGRP" not in log.read_text():
            time.sleep(0.01)
        time.sleep(0.05)                                      # now it waits; if not yet, it has less to do wrong
        client.call("ask_marked", 64, 1)
        server.result()
    assert not [line for line in calls(log) if "FUTEX_WAIT" in line or "membarrier" in line]
