"""The pytest plug-in, in runs of pytest of its own."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path("/dev/shm")

CLIENT = """
import sys, shmstack.socket as socket
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(sock.recv(5, socket.MSG_WAITALL).upper())
    sock.recv(1)
    print(sock._endpoint.stack.name)
"""

MEET = """
import os, signal, subprocess, sys, pathlib
import pytest
import shmstack.socket as socket

@pytest.fixture(scope="session")
def shmstack_options():
    return {"EF_MAX_ENDPOINTS": "64"}

@pytest.mark.parametrize("number", range(4))
def test_meet(shmstack_stack, number):
    assert os.environ["EF_NAME"] == shmstack_stack
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = subprocess.Popen([sys.executable, CLIENT, str(listener.getsockname()[1])], stdout=subprocess.PIPE)
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"hello")
            assert sock.recv(5, socket.MSG_WAITALL) == b"HELLO"
            assert sock._endpoint.stack.name.endswith("." + shmstack_stack)
            assert sock._endpoint.stack.pairs_max == 32
            if number % 2:
                client.kill()
        out = client.communicate(timeout=60)[0]
        assert number % 2 or out.decode().strip().endswith("." + shmstack_stack)
    pathlib.Path(NAMES).open("a").write(shmstack_stack + "\\n")
"""


def run_pytest(where, text, *options):
    path = where / "test_inner.py"
    path.write_text(text)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("EF_", "PYTEST"))}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "shmstack.pytest_plugin", "-p", "no:cacheprovider",
               "--rootdir", str(where), *options, str(path)]
    done = subprocess.run(command, env=env, cwd=where, text=True, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def meet(where, *options):
    (where / "client.py").write_text(CLIENT)
    setting = f"CLIENT, NAMES = {str(where / 'client.py')!r}, {str(where / 'names')!r}\n"
    code, text = run_pytest(where, setting + MEET, *options)
    assert code == 0, text
    return (where / "names").read_text().split()


def test_processes_of_a_test_meet_in_one_stack_that_is_gone_afterwards(tmp_path):
    names = meet(tmp_path)
    assert len(names) == 4
    assert len(set(names)) == 1
    assert not list(SHARED.glob(f"*{names[0]}*"))


def test_each_worker_has_a_stack_of_its_own(tmp_path):
    names = meet(tmp_path, "-n", "2", "--dist", "each")
    assert len(names) == 8
    first, second = sorted(set(names))
    assert first.rpartition(".")[2] == "gw0"
    assert second.rpartition(".")[2] == "gw1"
    assert not list(SHARED.glob(f"*{first}*")) + list(SHARED.glob(f"*{second}*"))


def test_stack_that_is_still_used_is_an_error(tmp_path):
    inner = ("import subprocess, sys\nimport shmstack.socket as socket\n"
             "def test_leave(shmstack_stack):\n"
             "    code = 'import shmstack.socket as s, sys; l = s.create_server((\"127.0.0.1\", 0)); print(1); input()'\n"
             "    child = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
             "    child.stdout.readline()\n"
             "    globals()['kept'] = child\n"
             "    sys.unraisablehook = lambda _: None\n")
    code, text = run_pytest(tmp_path, inner)
    assert code == 1, text
    assert "to be unused after the last test" in text


def test_nothing_of_shmstack_is_loaded_unless_asked_for(tmp_path):
    inner = ("import os, socket, sys\n"
             "def test_inert():\n"
             "    loaded = {name for name in sys.modules if name.startswith('shmstack.')}\n"
             "    assert loaded == {'shmstack.pytest_plugin'}\n"
             "    assert socket.socket.__module__ == 'socket'\n"
             "    assert 'EF_NAME' not in os.environ\n")
    code, text = run_pytest(tmp_path, inner)
    assert code == 0, text
