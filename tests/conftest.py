"""What holds for every test: nothing may be skipped in CI, and nothing may be left in shared memory.

Hangs are ended by pytest's own faulthandler (see pyproject.toml), which prints all stacks first.
"""
from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path("/dev/shm")
IN_CI = os.environ.get("CI") == "1"

_before = pytest.StashKey[set[str]]()
_left = pytest.StashKey[list[str]]()


def _entries() -> set[str]:
    return {entry.name for entry in SHARED.glob("shmstack*")}


def pytest_configure(config):
    config.stash[_before] = _entries()


def _skip_is_failure(report):
    if IN_CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI runs everything, found: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _skip_is_failure((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _skip_is_failure((yield))


def _dead(names: set[str]) -> list[str]:
    """Return those that stay after the dead's things were reaped, and that no living stack explains."""
    from shmstack.shm import objects
    from shmstack.stack import directory
    objects.reap()
    directory.reap()
    dead = []
    for name in sorted(names & _entries()):
        place = SHARED / name
        try:
            stack = os.readlink(place).split(":")[1] if place.is_symlink() else name.removeprefix(objects.PREFIX)
            if not objects.living(stack):
                dead.append(name)
        except (OSError, IndexError):
            dead.append(name)
    return [name for name in dead if name in _entries()]


def pytest_sessionfinish(session):
    # One look, by the process that outlives the workers: theirs are done by then.
    if hasattr(session.config, "workerinput"):
        return
    session.config.stash[_left] = left = _dead(_entries() - session.config.stash[_before])
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    left = config.stash.get(_left, [])
    if left:
        terminalreporter.write_sep("=", "left in shared memory", red=True)
        for name in left:
            terminalreporter.write_line(name)
