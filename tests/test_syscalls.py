"""Round trips make no system call on either side, once both ends know each other and spinning is on."""
from __future__ import annotations

import shutil

import pytest
from process import Process

TRIPS = 100_000
SPIN_USEC = 60_000_000               # longer than this machine keeps either side from running


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_round_trips_make_no_system_call(tmp_path):
    logs = [tmp_path / "client", tmp_path / "server"]
    traced = [["strace", "-f", "-qq", "-o", str(log)] for log in logs]
    with Process(prefix=traced[0], EF_POLL_USEC=SPIN_USEC) as client, \
            Process(prefix=traced[1], EF_POLL_USEC=SPIN_USEC) as server:
        client.call("connect", server.call("listen"))
        server.call("accept")
        for times, marked in ((2000, False), (TRIPS, True)):
            server.start("answer_marked" if marked else "answer", 64, times)
            client.call("ask_marked" if marked else "ask", 64, times)
            server.result()
    for log in logs:
        lines = log.read_text().splitlines()
        marks = [number for number, line in enumerate(lines) if "getpriority(PRIO_PGRP" in line]
        assert len(marks) == 2, marks
        between = lines[marks[0] + 1:marks[1]]
        assert between == []
