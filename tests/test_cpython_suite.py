"""CPython's own tests of sockets and of what is built on them, plainly and under the launcher.

What passes without us must pass with us. A test that fails under the launcher is run again without it, three times: if it
fails there as well even once, on this machine it says nothing about us.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shmstack

RUNNER = Path(__file__).parent / "conformance" / "cpython_runner.py"
ROOT = Path(shmstack.__file__).resolve().parents[1]
PLAIN = [sys.executable]
LAUNCHED = [sys.executable, "-m", "shmstack", "run", "--", sys.executable]
PIECE_S = 150        # a piece of a module; about ten times what it takes
RESTARTS = 10        # how many tests of a piece may end its process
# Prefixes of tests that are about something else, and can hang on machines without it.
ELSEWHERE = ["test.test_socket.ThreadedVSOCKSocketStreamTest."]
PIECES = {
    "test.test_socket": 8, "test.test_socketserver": 1, "test.test_timeout": 1, "test.test_httplib": 1,
    "test.test_httpservers": 2, "test.test_select": 1, "test.test_poll": 1, "test.test_epoll": 1,
    "test.test_selectors": 3, "test.test_xmlrpc": 1, "test.test_asyncio.test_sock_lowlevel": 1,
    "test.test_asyncio.test_streams": 1, "test.test_asyncio.test_server": 1, "test.test_asyncio.test_events": 2,
    "test.test_asyncio.test_selector_events": 1, "test.test_asyncio.test_base_events": 1,
    "test.test_asyncio.test_sendfile": 1, "test.test_asyncio.test_ssl": 1, "test.test_asyncio.test_sslproto": 1,
    "test.test_asyncio.test_buffered_proto": 1, "test.test_ftplib": 1, "test.test_smtplib": 1, "test.test_poplib": 1,
    "test.test_imaplib": 1, "test.test_logging": 1, "test.test_wsgiref": 1, "test.test_ssl": 2,
    "mp_fork": 1, "mp_spawn": 2, "mp_forkserver": 2,
}
MULTIPROCESSING = ("Connection", "Listener", "Manager", "Wait", "Pickling", "OtherTest", "Challenge")     # in class names
FACE = "the class of sockets"       # what the runner notes of itself
CASES = [(module, piece, count) for module, count in PIECES.items() for piece in range(count)]


def outcomes(command, where, module, *selection):
    """Return {test id: (outcome, text)} of a selection of tests; a test that ended its process is `died`."""
    found, results = {}, where / "results"
    results.unlink(missing_ok=True)
    for _ in range(RESTARTS):
        known = sorted(found.keys() - {FACE})
        process = run_bounded([*command, str(RUNNER), str(results), module, *selection, *known], where)
        for line in results.read_text().splitlines() if results.exists() else ():
            record = json.loads(line)
            found[record["id"]] = record["outcome"], record["text"]
        unfinished = [name for name, (outcome, _) in found.items() if outcome == "started"]
        for name in unfinished:
            found[name] = "died", process.stderr[-3000:]
        if not unfinished:
            assert process.returncode == 0, process.stderr[-3000:]
            return found
        results.unlink()
    return found


def run_bounded(command, where):
    paths = str(ROOT), os.environ.get("PYTHONPATH"), str(RUNNER.parent / "mp")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    process = subprocess.Popen(command, cwd=where, env=environment, text=True, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=PIECE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        _, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


def is_there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:                               # not even its package
        return False


def failed(found):
    return {name for name, (outcome, _) in found.items() if outcome in ("failed", "died")}


@pytest.mark.parametrize(("module", "piece", "count"), CASES,
                         ids=[f"{module.removeprefix('test.')}-{piece + 1}of{count}" for module, piece, count in CASES])
def test_nothing_fails_under_the_launcher_that_passes_without_it(tmp_path, module, piece, count):
    needed = "test._test_multiprocessing" if module.startswith("mp_") else module
    if not is_there(needed):
        pytest.skip(f"this interpreter comes without {module} (Debian: libpython3.X-testsuite)")
    selection = (str(piece), str(count), *ELSEWHERE)
    if module.startswith("mp_"):
        selection += tuple(f"only={part}" for part in MULTIPROCESSING)
    plain = outcomes(PLAIN, tmp_path, module, *selection)
    launched = outcomes(LAUNCHED, tmp_path, module, *selection)
    assert plain[FACE][0] == "socket"
    assert launched[FACE][0] == "shmstack.socket"
    suspects = failed(launched) - failed(plain)
    for _ in range(3 if suspects else 0):
        suspects -= failed(outcomes(PLAIN, tmp_path, module, "test", *suspects))
    report = "\n\n".join(f"{name}: {launched[name][0]}\n{launched[name][1]}" for name in sorted(suspects))
    assert not suspects, f"fail under the launcher only:\n{report}"
    missing = {name for name, (outcome, _) in plain.items() if outcome == "passed"} - set(launched)
    assert not missing, f"never run under the launcher: {sorted(missing)}"
