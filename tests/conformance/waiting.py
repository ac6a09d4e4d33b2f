"""Bounded waits: nothing in this suite may hang, and nothing is asserted about how soon it ends."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest

PATIENCE_S = 20      # a wait that lasts longer has failed
TEST_S = 45          # a test that lasts longer has failed
LAST_RESORT_S = 90   # a test that cannot even be interrupted ends its process


@contextmanager
def watchdog(seconds: float = TEST_S):
    """Fail a test that hangs, with the stacks of all threads; end the process if that does not help."""

    def fail(signum, frame):
        faulthandler.dump_traceback(file=sys.__stderr__)
        pytest.fail(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Background(threading.Thread):
    """A call in another thread; `result()` joins it, within bounds."""

    def __init__(self, function, *args) -> None:
        super().__init__(daemon=True)
        self._call, self._value, self._error = (function, args), None, None
        self.start()

    def run(self) -> None:
        function, args = self._call
        try:
            self._value = function(*args)
        except BaseException as error:
            self._error = error

    def result(self, seconds: float = PATIENCE_S):
        """Return what the call returned, or raise what it raised."""
        self.join(seconds)
        if self.is_alive():
            faulthandler.dump_traceback(file=sys.__stderr__)
            pytest.fail(f"a thread still runs after {seconds} s: {self._call}")
        if self._error is not None:
            raise self._error
        return self._value


def eventually(condition, what: str = "condition"):
    """Return the first true value of `condition()`, asked again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"never came true: {what}")
        time.sleep(0.001)
    return value


def asleep(thread: threading.Thread) -> bool:
    """Tell whether a thread sleeps in the kernel (or spins, which its clock shows as running)."""
    with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
        return stat.read().rpartition(") ")[2][0] == "S"
