"""Forked processes that must end well."""

from __future__ import annotations

import os
import signal
import sys
import traceback

import pytest

from .waiting import TEST_S, eventually


class Child:
    """A forked process that runs `function()` and exits 0 if that returned."""

    def __init__(self, function) -> None:
        if (pid := os.fork()) == 0:
            status = 1
            signal.setitimer(signal.ITIMER_REAL, TEST_S)    # the handler is the watchdog's
            try:
                function()
                status = 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        self.pid = pid

    def join(self, exitcode: int = 0) -> None:
        """Wait for the end of the process, which must be with `exitcode` (negative: by a signal)."""
        try:
            _, status = eventually(self.ended, "the child ended")
        except pytest.fail.Exception:
            os.kill(self.pid, signal.SIGABRT)       # it prints its stacks
            raise
        assert os.waitstatus_to_exitcode(status) == exitcode

    def ended(self):
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return pid and (pid, status)
