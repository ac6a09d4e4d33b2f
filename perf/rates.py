"""Rounds of a rate: what all workloads have in common that count messages a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perf.harness import MOST, Pace, Pair, interleave
from perf.rows import Options, Row, Say, rate_row


@dataclass(frozen=True)
class Case:
    """One group of rows.

    Attributes
    ----------
    workload, name : str
        Heading of the group.
    unit : str
        Of the rate.
    first, most : int
        Messages in the first turn, and at most.
    scale : float
        What one message counts in `unit`: 1 for msg/s, size / 1e9 for GB/s.
    order : dict
        What the workers are told besides the count.
    size : int
        Bytes of a message, where it has a meaning.
    """

    workload: str
    name: str
    unit: str = "msg/s"
    first: int = 256
    most: int = MOST
    scale: float = 1.0
    order: dict[str, Any] = field(default_factory=dict)
    size: int = 0


def measure(case: Case, pairs: Sequence[Pair], options: Options, say: Say) -> list[Row]:
    """Warm up, give each pair its turns, and make a row of each pair."""
    pace = {pair.transport.name: Pace(options, case.first, case.most) for pair in pairs}

    def take(pair: Pair) -> dict[str, Any]:
        mine = pace[pair.transport.name]
        answer = pair.turn(count=mine.count, **case.order)
        if answer:
            answer["rate"] = mine.count / answer["took_ns"] * 1e9 * case.scale
            answer["done"] = mine.count
            mine.learn(answer["took_ns"] / 1e9)
        return answer

    for pair in pairs:
        take(pair)
    answers = interleave(pairs, options.rounds, take, say)
    rows = []
    for pair in pairs:
        told = answers[pair.transport.name]
        row = rate_row(case.workload, case.name, pair.transport.name, case.unit, told, pair.missing)
        row.size = case.size
        rows.append(row)
    return rows
