"""How long a poller spins before it sleeps: what the options say, or as long as it pays.

Theory.  A spin that found something is a point won, one that found nothing two points lost.  With none left only every
16th wait tries again; so a program that waits for long, or whose peer needs the core, spins next to never.

Two that both sleep are slow for each other: a wake-up may take ten times as long as the answer itself (a virtual
core that idles), and then no spin of the usual length ever finds one.  So where sleeps are short, a try is long; it
counts as found if it took less than half a sleep.  Then the other one's spins find their answers at once, it spins
too, and both are back at the usual length.
"""
from __future__ import annotations

from shmstack.stack import threads

LONG_NS = 500_000                     # the longest try
_MOST, _PAUSE = 16, 16


class Spin:
    """How the waits of one poller spin.

    Parameters
    ----------
    limit_ns : the usual length
    adapts : nobody asked for it, so spin as long as it pays, and let others have the core meanwhile
    where : the kind of wait, for threads that say how theirs spin
    """

    def __init__(self, limit_ns: int, adapts: bool, where: str = "") -> None:
        self.usual, self.adapts, self._where = limit_ns, adapts, where
        self._points, self._waits, self._limit, self._sleep = _MOST // 2, 0, limit_ns, 0

    def limit(self) -> int:
        """Return how many ns to spin this time."""
        if threads.said and (own := threads.own(self._where)) is not None:
            return own
        if self._points > 0 or not self.adapts or not self.usual:
            return self._limit
        self._waits += 1
        if self._waits % _PAUSE:
            return 0
        return LONG_NS if 0 < self._sleep < 2 * LONG_NS else self.usual

    def pays(self) -> bool:
        """Return whether the next wait is to spin."""
        if threads.said and (own := threads.own(self._where)) is not None:
            return own > 0
        return self.usual > 0 and (self._points > 0 or not self.adapts)

    def came(self, found: bool, took_ns: int = 0) -> None:
        """Note whether a spin found something in shared memory, and after how long if that was unusual."""
        if not found or (took_ns > self.usual and 2 * took_ns > self._sleep):
            self._points = max(self._points - 2, -1)
            return
        self._points = min(max(self._points, 1) + 1, _MOST)
        if self.adapts:
            self._limit = min(max(self.usual, 2 * took_ns), LONG_NS)

    def slept(self, ns: int) -> None:
        """Note how long a wait took that ended well, but asleep."""
        self._sleep = (3 * self._sleep + ns) // 4 if self._sleep else ns
