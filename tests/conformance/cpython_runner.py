"""Run tests of a module of CPython's own suite and write what became of each, one JSON object a line.

    python cpython_runner.py RESULTS MODULE PIECE PIECES SKIP...     the classes of one piece of a module;
                                                                     only=PART: those with PART in their names
    python cpython_runner.py RESULTS MODULE test ID...               these tests

A line is written when a test starts and another when it ends, so that a run that is killed, or that the time
limit of one test ends, still tells which test that was. Tests named by SKIP have their outcome already.
"""

import faulthandler
import importlib
import json
import os
import socket
import sys
import unittest

TEST_S = 40      # one test of the suite
# These two call the loopback network a network; in other modules the word means the internet.
RESOURCES = {"test.test_socketserver": ["network"], "test.test_timeout": ["network"]}


class Recorder(unittest.TestResult):
    """Writes each outcome at once; the last line about a test counts."""

    def __init__(self, path):
        super().__init__()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - open until the process ends

    def note(self, name, outcome, text=""):
        self._file.write(json.dumps({"id": name, "outcome": outcome, "text": text[-2000:]}) + "\n")

    def _write(self, test, outcome, text=""):
        self.note(test.id(), outcome, text)

    def startTest(self, test):
        super().startTest(test)
        faulthandler.dump_traceback_later(TEST_S, exit=True)
        self._failed = False
        self._write(test, "started")

    def stopTest(self, test):
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()

    def _fail(self, test, error):
        self._failed = True
        self._write(test, "failed", self._exc_info_to_string(error, test))

    def addError(self, test, err):
        self._fail(test, err)

    def addFailure(self, test, err):
        self._fail(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._fail(test, err)

    def addSuccess(self, test):
        if not self._failed:
            self._write(test, "passed")

    def addSkip(self, test, reason):
        self._write(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        self._write(test, "passed")

    def addUnexpectedSuccess(self, test):
        self._write(test, "passed")


def flat(suite):
    """Yield the tests of a suite of suites."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def chosen(name, piece, rest):
    """Return the tests that the arguments name."""
    tests = list(flat(unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(name))))
    if piece == "test":
        return [test for test in tests if test.id() in rest]
    pieces, *skip = rest
    parts = [word.removeprefix("only=") for word in skip if word.startswith("only=")]
    classes = [name for name in dict.fromkeys(type(test).__qualname__ for test in tests)
               if not parts or any(part in name for part in parts)][int(piece)::int(pieces)]
    return [test for test in tests if type(test).__qualname__ in classes and test.id() not in skip
            and not test.id().startswith(tuple(word for word in skip if word.endswith(".")))]


def main(results, name, piece, *rest):
    from test import support

    support.use_resources = RESOURCES.get(name, [])
    support.verbose = 0
    if name == "test.test_timeout":     # it asks a name server for hosts elsewhere
        importlib.import_module(name).resolve_address = lambda host, port: ("203.0.113.1", port)
    recorder = Recorder(results)
    recorder.note("the class of sockets", socket.socket.__module__)
    unittest.TestSuite(chosen(name, piece, rest)).run(recorder)
    sys.stdout.flush()
    os._exit(0)                         # threads that a test left behind must not hold us


if __name__ == "__main__":
    del sys.path[0]
    main(*sys.argv[1:])
