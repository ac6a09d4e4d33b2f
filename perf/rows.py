"""What goes into a workload (Options) and what comes out (Row)."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from perf.latency import median
from perf.transports import CATALOGUE

Say = Callable[[str], None]


@dataclass
class Options:
    """What the command line asks for.

    Attributes
    ----------
    rounds : int
        Turns of each transport.
    slice_s : float
        Aimed length of a turn, in s.
    sizes : tuple of int
        Message sizes in bytes, where a workload has a choice.
    transports : tuple of str
        Names to measure; empty means the workload's own choice.
    pin : bool
        Give each process of a pair a core of its own.  Left to itself the scheduler moves a
        blocking pair between one core and two, and kernel TCP's figure with it, by ten times.
    count : int
        Messages a turn; 0 means as many as fill `slice_s`.
    """

    rounds: int = 5
    slice_s: float = 0.25
    sizes: tuple[int, ...] = ()
    transports: tuple[str, ...] = ()
    pin: bool = True
    count: int = 0


@dataclass
class Row:
    """One line of a table.

    `value` is the median over `rounds` in `unit`; `p50` to `max` are us; `cpu_us` is the CPU
    time of all processes a message; `shared` is the bytes of shared memory a connection;
    `missing` says why there is no figure.
    """

    workload: str
    case: str
    transport: str
    unit: str
    value: float = 0.0
    better: str = "less"
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None
    max: float | None = None
    cpu_us: float | None = None
    rounds: list[float] = field(default_factory=list)
    note: str = ""
    missing: str = ""
    curve: list[tuple[float, float]] = field(default_factory=list)
    size: int = 0
    shared: int | None = None

    @property
    def role(self) -> str:
        """The transport's role: "baseline", "ours", "ceiling" or "peer"."""
        known = CATALOGUE.get(self.transport)
        if known:
            return known.role
        return "ours" if self.transport.startswith("shmstack") else "baseline"

    def as_json(self) -> dict[str, Any]:
        """Return the fields that have something to say."""
        fields = asdict(self) | {"role": self.role}
        return {key: value for key, value in fields.items() if value not in (None, "", [])}


def pack(samples: array[int]) -> str:
    """Encode samples for one JSON line."""
    return base64.b64encode(samples.tobytes()).decode()


def unpack(text: str) -> array[int]:
    """Decode what `pack` encoded."""
    samples = array("q")
    samples.frombytes(base64.b64decode(text))
    return samples


def rate_row(
    workload: str,
    case: str,
    transport: str,
    unit: str,
    answers: list[dict[str, Any]],
    missing: str = "",
) -> Row:
    """Make a row of a rate, the median over the rounds.

    Parameters
    ----------
    answers : list of dict
        One a round: `rate` in `unit`, and, where known, `cpu_ns` of all processes for `done`
        messages.
    missing : str
        Why there are none.
    """
    row = Row(workload, case, transport, unit, better="more", missing=missing)
    if missing or not answers:
        row.missing = missing or "no round was finished"
        return row
    row.rounds = [answer["rate"] for answer in answers]
    row.value = median(row.rounds)
    done = sum(answer.get("done", 0) for answer in answers)
    if done:
        row.cpu_us = sum(answer["cpu_ns"] for answer in answers) / 1e3 / done
    return row


def human(size: int) -> str:
    """Write a size in bytes as people do: 64 B, 64 KiB, 1 MiB."""
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} B"
