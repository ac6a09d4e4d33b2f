"""A second process that a test steers: it carries out the functions of `acts`, under a uid and settings of its own."""
from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PATIENCE_S = 60          # an act that takes longer has failed


def read_exactly(fd, size, deadline):
    """Read `size` bytes; None at the end of the stream."""
    data = b""
    while len(data) < size:
        if not select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(fd, size - len(data))
        if not piece:
            return None
        data += piece
    return data


class Died(Exception):
    """The process ended before it answered."""


class Process:
    """A Python process; `call(act, ...)` runs `acts.act(...)` in it, `start` and `result` do so in two steps.

    Parameters
    ----------
    uid : run as this user
    settings : environment, EF_ variables above all
    """

    def __init__(self, uid=None, prefix=(), **settings):
        env = {name: value for name, value in os.environ.items() if not name.startswith("EF_")}
        env.update({name: str(value) for name, value in settings.items()})
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), env.get("PYTHONPATH")]))
        with tempfile.TemporaryFile() as errors:
            self._errors = os.dup(errors.fileno())
        self.popen = subprocess.Popen([*prefix, sys.executable, str(HERE / "acts.py")], env=env, cwd="/", bufsize=0,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self.pid = self.popen.pid
        if uid is not None:
            self.call("become", uid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def start(self, act, *args, **options):
        """Begin an act; one at a time."""
        data = pickle.dumps((act, args, options))
        self.popen.stdin.write(struct.pack("I", len(data)) + data)

    def result(self, seconds=PATIENCE_S):
        """Return what the act returned or raise what it raised; Died if the process ended instead."""
        deadline, out = time.monotonic() + seconds, self.popen.stdout.fileno()
        try:
            head = read_exactly(out, 4, deadline)
            data = head and read_exactly(out, struct.unpack("I", head)[0], deadline)
        except TimeoutError:
            self.popen.send_signal(signal.SIGABRT)            # faulthandler prints where it hangs
            self.popen.wait(PATIENCE_S)
            pytest.fail(f"no answer after {seconds} s:\n{self.errors()}")
        if not data:
            raise Died(f"ended with status {self.popen.wait(PATIENCE_S)}:\n{self.errors()}")
        good, value = pickle.loads(data)
        if not good:
            raise value
        return value

    def call(self, act, *args, **options):
        self.start(act, *args, **options)
        return self.result()

    def kill(self):
        self.popen.kill()
        self.popen.wait(PATIENCE_S)

    def end(self):
        """Let the process end by itself and return its status."""
        try:
            self.popen.stdin.close()
        except OSError:
            pass
        try:
            status = self.popen.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)
            self.popen.wait(PATIENCE_S)
            pytest.fail(f"did not end:\n{self.errors()}")
        self.popen.stdout.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1
        return status

    def errors(self):
        """Return what it wrote to stderr so far."""
        os.lseek(self._errors, 0, os.SEEK_SET)
        return os.read(self._errors, 1 << 16).decode(errors="replace")
