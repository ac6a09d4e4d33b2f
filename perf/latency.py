"""Percentiles of round-trip times.

A mean hides what hurts, so a round is kept as a histogram: hdrhistogram's when it is installed
(three digits anywhere between 1 ns and 100 s, in constant memory), else the sorted samples, which
are exact and only cost memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

try:
    from hdrh.histogram import HdrHistogram
except ImportError:  # an extra: the sorted samples say the same
    HdrHistogram = None

LONGEST_NS = 100 * 10**9
POINTS = (50.0, 99.0, 99.9)


class Latencies:
    """Round-trip times in ns, of one round or of many.

    Parameters
    ----------
    samples : iterable of int
        Times in ns.
    exact : bool
        Keep every sample even where hdrhistogram is installed.
    """

    def __init__(self, samples: Iterable[int] = (), exact: bool = False) -> None:
        self._hdr: Any = None
        if HdrHistogram is not None and not exact:
            self._hdr = HdrHistogram(1, LONGEST_NS, 3)
        self._samples: list[int] = []
        self._max = 0
        self.add(samples)

    def add(self, samples: Iterable[int]) -> None:
        """Add times in ns."""
        if self._hdr is None:
            self._samples = sorted([*self._samples, *samples])
            self._max = self._samples[-1] if self._samples else 0
            return
        # A round has far fewer different values than samples: record each value once.
        for value, count in Counter(samples).items():
            self._hdr.record_value(min(max(value, 1), LONGEST_NS), count)
            self._max = max(self._max, value)

    def percentile(self, percent: float) -> int:
        """Return the time in ns that `percent` of the round trips did not exceed."""
        if self._hdr is not None:
            return min(int(self._hdr.get_value_at_percentile(percent)), self._max)
        if not self._samples:
            return 0
        rank = math.ceil(percent / 100 * len(self._samples))
        return self._samples[min(max(rank, 1), len(self._samples)) - 1]

    @property
    def max(self) -> int:
        """The longest round trip in ns, unrounded."""
        return self._max

    def summary(self) -> tuple[float, float, float, float]:
        """Return p50, p99, p99.9 and max in us."""
        return (*(self.percentile(point) / 1e3 for point in POINTS), self.max / 1e3)  # type: ignore[return-value]

    def curve(self) -> list[tuple[float, float]]:
        """Return (percent, us) pairs that draw the distribution, denser towards 100 %."""
        tail = [100 - 10 ** (-step / 4) * 100 for step in range(1, 17)]
        return [(percent, self.percentile(percent) / 1e3) for percent in (0.1, 10.0, 25.0, *tail)]


def median(values: Sequence[float]) -> float:
    """Return the middle value (the mean of the middle two), 0 when there is none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
