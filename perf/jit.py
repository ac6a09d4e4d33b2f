"""Jitted programs: a round trip between user code that numba compiled, on both ends.

    client (one jitted loop)               server (one jitted loop)
      |---- 64 B ---------------------------->|   shmstack.jit: send and recv in nopython mode
      |<--------------------------- 64 B -----|

No Python runs during a message, so the ceiling is two cache lines.  Both are timed in tens of
round trips, because a look at the clock costs a good part of one.
"""

from __future__ import annotations

from dataclasses import replace

from perf import pingpong
from perf.harness import Crew, Pair
from perf.rows import Options, Row, Say
from perf.transports import CATALOGUE, SPIN_ENV

NAME = "jit"
SIZE = 64


def run(options: Options, say: Say) -> list[Row]:
    """Measure two cache lines and shmstack's jitted ends."""
    jitted = replace(
        CATALOGUE["shmstack"],
        name="shmstack-jit",
        title="shmstack, jitted ends",
        kind="jit",
        env=SPIN_ENV,
        needs=("shmstack.jit",),
    )
    with Crew(options) as crew:
        pairs = [Pair(transport).open(crew, "perf.pingpong") for transport in (CATALOGUE["lines"], jitted)]
        rows = pingpong.rounds(pairs, options, "closed", SIZE, say)
    for row in rows:
        row.workload = NAME
    return rows
