"""Whatever stands in a segment, a process that uses it neither crashes nor hangs: it gets bytes or an OSError.

One process uses its sockets, all with time-outs, while another writes garbage over the stack that they live in.
"""
from __future__ import annotations

import secrets

import pytest
from process import Process

from shmstack.shm.layout import HEADER, PAGE, WAITERS, geometry

SETTINGS = {"EF_MAX_ENDPOINTS": 16, "EF_TCP_SNDBUF": 1 << 14}
PAIRS, RINGS, SIZE = geometry(8, 1 << 14)
AREAS = {"header": (0, PAGE), "counts": (HEADER.at.free, HEADER.at.counters), "processes": (PAGE, WAITERS),
         "waiters": (WAITERS, PAIRS), "pairs": (PAIRS, RINGS), "everything": (0, SIZE)}


@pytest.mark.parametrize("kind", ["noise", "small numbers", "ones"])
@pytest.mark.parametrize("area", AREAS)
def test_victim_of_a_scribbler_neither_crashes_nor_hangs(area, kind):
    name = "f" + secrets.token_hex(5)
    with Process(EF_NAME=name, **SETTINGS) as victim, Process(EF_NAME=name, **SETTINGS) as scribbler:
        stack = victim.call("suffer", 0)
        scribbler.call("aim", stack)
        scribbler.start("scribble", stack, *AREAS[area], kind, f"{area} {kind}")
        assert victim.call("suffer", 5) == stack
        assert victim.end() == 0                              # nor do the destructors
        scribbler.start("tidy")                               # it scribbles until there is something else to do
        assert scribbler.result() > 0
        scribbler.result()
