"""A pytest plug-in: each test process has a stack of its own, and leaves nothing of it behind.

Guarantee.  A test that asks for the fixture `shmstack_stack`, and every process that it starts, meet in one stack that
no other worker of pytest-xdist and no other run on the machine can have.  After the last test of a worker its
segment and records are gone, also those of processes that were killed; one that is still in use by then is named in an
error.

Theory.  The name is made of the run's identity and the worker's, and handed down as EF_NAME: subprocesses and forks
read it as any program does.  A test that doesn't ask for the fixture never sees the plug-in: it is imported at pytest's
start, so it imports nothing of shmstack by itself.

Rejected: a stack for each test (a segment is made and removed each time, and connections of session fixtures have to be
somewhere), and to put the drop-in under pytest itself, which is `shmstack run pytest`.
"""
from __future__ import annotations

import os
import time
from typing import Any, Iterator

import pytest

_PATIENCE_S = 2.0                    # a child that was just killed may take that long to be gone
_MOST = 16                           # letters of a stack's name


def _name(config: pytest.Config) -> str:
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    run = str(worker.get("testrunuid") or f"{os.getpid():x}")
    return f"t{run[-8:]}.{worker.get('workerid', 'main')}"[:_MOST]


def _left(name: str) -> list[str]:
    from shmstack.shm import objects
    from shmstack.stack import directory
    objects.reap()
    directory.reap()
    return [entry for entry in os.listdir(objects.DIRECTORY)
            if entry.startswith(objects.PREFIX) and entry.partition(".")[2].endswith(f".{name}")]


@pytest.fixture(scope="session")
def shmstack_options() -> dict[str, str]:
    """Options for the stack of this worker, by their EF_ names: override this fixture in your conftest.py."""
    return {}


@pytest.fixture(scope="session")
def shmstack_stack(pytestconfig: pytest.Config, shmstack_options: dict[str, str]) -> Iterator[str]:
    """Return the name of this worker's stack, which is EF_NAME for this process and those that it starts."""
    from shmstack.stack import names
    name = _name(pytestconfig)
    with pytest.MonkeyPatch.context() as environment:
        for option, value in {**shmstack_options, "EF_NAME": name}.items():
            environment.setenv(option, str(value))
        names.forget_environment()
        yield name
    names.forget_environment()
    names.leave(name)
    end = time.monotonic() + _PATIENCE_S
    while _left(name) and time.monotonic() < end:
        time.sleep(0.01)
    if _left(name):
        raise RuntimeError(f"wanted stack {name!r} to be unused after the last test, found {_left(name)}")
