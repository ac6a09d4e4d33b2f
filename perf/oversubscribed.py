"""Too few cores: what spinning must not make worse.

    both ends on one core          client and server take turns on core 0: while one spins, the
                                   other can't answer, so a spin that does not end is a wait
    4 pairs on 2 cores             8 processes, 2 cores: each spin takes time from another pair

The figure of the first is the round trip in us, that of the second the round trips a second of
all four pairs together.  Kernel TCP is the baseline and must not be faster than shmstack at
defaults; a program that asks for endless spinning here is shown for what it costs.
"""

from __future__ import annotations

import os
import time
from typing import Any

from perf import pingpong
from perf.harness import Crew, Pace, Pair
from perf.rows import Options, Row, Say, rate_row
from perf.transports import CATALOGUE

NAME = "oversubscribed"
NAMES = ("kernel-blocking", "unix", "shmstack")
PAIRS = 4
SIZE = 64


def run(options: Options, say: Say) -> list[Row]:
    """Measure both situations."""
    cores = sorted(os.sched_getaffinity(0))
    return _one_core(options, cores[:1], say) + _four_pairs(options, cores[:2], say)


def _one_core(options: Options, cores: list[int], say: Say) -> list[Row]:
    with Crew(options) as crew:
        pairs = [Pair(CATALOGUE[name]).open(crew, "perf.pingpong", cores=cores) for name in NAMES]
        rows = pingpong.rounds(pairs, options, "closed", SIZE, say)
    for row in rows:
        row.workload, row.case = NAME, "both ends on one core, 64 B"
    return rows


def _four_pairs(options: Options, cores: list[int], say: Say) -> list[Row]:
    rows = []
    with Crew(options) as crew:
        fleets = [
            [Pair(CATALOGUE[name]).open(crew, "perf.pingpong", cores=cores) for _ in range(PAIRS)]
            for name in NAMES
        ]
        paces = [Pace(options, 500) for _ in NAMES]
        told: list[list[dict[str, Any]]] = [[] for _ in NAMES]
        for number in range(options.rounds + 1):
            for fleet, pace, answers in zip(fleets, paces, told, strict=True):
                say(f"round {number} of {options.rounds}: {PAIRS} pairs of {fleet[0].transport.title}")
                answer = _together(fleet, pace)
                if number and answer:  # the first turn warms up
                    answers.append(answer)
        case = f"{PAIRS} pairs on {len(cores)} cores, 64 B"
        for fleet, answers in zip(fleets, told, strict=True):
            why = next((pair.missing for pair in fleet if pair.missing), "")
            rows.append(rate_row(NAME, case, fleet[0].transport.name, "round trips/s", answers, why))
    return rows


def _together(fleet: list[Pair], pace: Pace) -> dict[str, Any]:
    # One turn of all pairs at the same time; empty when one of them failed.
    count, began = pace.count, time.perf_counter_ns()
    for pair in fleet:
        pair.begin(case="closed", size=SIZE, count=count)
    answers = [pair.finish() for pair in fleet]
    took_ns = time.perf_counter_ns() - began
    if not all(answers):
        return {}
    pace.learn(took_ns / 1e9)
    cpu_ns = sum(answer["cpu_ns"] for answer in answers)
    rate = count * len(fleet) / max(answer["took_ns"] for answer in answers) * 1e9
    return {"rate": rate, "cpu_ns": cpu_ns, "done": count * len(fleet)}
