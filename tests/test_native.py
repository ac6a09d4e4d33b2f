"""The compiled kernels where none were installed: made once, at first use, with what the machine has."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "shmstack"
PATIENCE_S = 230
TALK = """
import shmstack.socket as socket
with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
    server, _ = listener.accept()
    client.sendall(b"x" * 100_000)
    assert server.recv(100_000, socket.MSG_WAITALL) == b"x" * 100_000
    print(server._endpoint.lanes(), socket.__file__)
"""


@pytest.mark.slow
def test_two_processes_at_once_make_one_library_without_a_compiler(tmp_path):
    copy = tmp_path / "copy" / "shmstack"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
    trap = tmp_path / "trap"                                  # what lies where the program runs is none of ours
    (trap / "shmstack").mkdir(parents=True)
    for name in ("shmstack/__init__.py", "numba.py", "tempfile.py"):
        (trap / name).write_text("raise ImportError('taken from the current directory')\n")
    env = {"PATH": str(trap), "HOME": str(tmp_path), "PYTHONPATH": str(copy.parent)}
    programs = [subprocess.Popen([sys.executable, "-P", "-c", TALK], cwd=trap, env=env, text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE) for _ in range(2)]
    for program in programs:
        said, errors = program.communicate(timeout=PATIENCE_S)
        assert (program.returncode, said) == (0, f"('ring', 'ring') {copy / 'socket.py'}\n"), errors
    made = [path for path in (copy / "_lib").iterdir() if path.name != ".lock"]
    assert [path.suffix for path in made] == [".o"]
    assert not made[0].stat().st_mode & 0o022 and made[0].stat().st_uid == os.geteuid()
