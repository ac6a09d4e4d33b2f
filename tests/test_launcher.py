"""`shmstack run`: the command's own exit and signals, profiles, and the drop-in in every Python below."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import shmstack

SITE = Path(shmstack.__file__).parent / "_site"
WHICH = "import socket; print(socket.socket.__module__)"
OURS, PLAIN = "shmstack.socket", "socket"


def _environment(**more):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EF_", "SHMSTACK_"))}
    # Found however the tests found it: installed, where each Python of that environment finds it, or by the path.
    root = Path(shmstack.__file__).parent.parent
    if root not in map(Path, sysconfig.get_paths().values()):
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environ.get("PYTHONPATH")]))
    return {**environ, **more}


def _before(place):
    """The tests' own module path with `place` first, as PYTHONPATH."""
    return os.pathsep.join(filter(None, [str(place), _environment().get("PYTHONPATH")]))


def launch(*words, cwd="/", **more):       # not in the checkout: `-m` would look there first
    return subprocess.run([sys.executable, "-m", "shmstack", "run", *words], env=_environment(**more), cwd=cwd,
                          capture_output=True, text=True, check=False, timeout=120)


def python(code, *words, **more):
    done = launch("--", sys.executable, "-c", code, *words, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ---- the command is itself

def test_exit_status_is_the_commands():
    assert launch("sh", "-c", "exit 7").returncode == 7


def test_signal_ends_the_command_itself():
    assert launch("sh", "-c", "kill -9 $$").returncode == -signal.SIGKILL


def test_command_has_the_launchers_pid():
    child = subprocess.Popen([sys.executable, "-m", "shmstack", "run", "sh", "-c", "echo $$"], env=_environment(), cwd="/",
                             stdout=subprocess.PIPE, text=True)
    out, _ = child.communicate(timeout=60)
    assert int(out) == child.pid


def test_command_gets_default_signal_handling():
    ignored = int(launch("sh", "-c", "grep SigIgn /proc/$$/status").stdout.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize(("words", "code", "says"), [
    ((), 1, "usage: shmstack run"),
    (("--name", "a"), 1, "usage: shmstack run"),
    (("--no-such-option", "true"), 2, "--no-such-option"),
    (("--client-loopback", "7", "true"), 2, "found EF_TCP_CLIENT_LOOPBACK=7"),
    (("--share-with", "x", "true"), 2, "a number -1..4294967294, found EF_SHARE_WITH=x"),
    (("-p", "no-such-profile", "true"), 3, "profiles/no-such-profile.opf"),
    (("/etc/passwd",), 126, "Permission denied"),
    (("no-such-command",), 127, "no such command"),
])
def test_exit_code_says_what_was_wrong(words, code, says):
    done = launch(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_options_end_at_the_first_word_that_is_none():
    assert launch("--name", "a", "echo", "--name", "b", "-v", "--", "c").stdout == "--name b -v -- c\n"
    assert launch("-v", "--", "echo", "--", "c").stdout == "-- c\n"


def test_python_file_is_run_by_this_python(tmp_path):
    (tmp_path / "app.py").write_text("import sys; print(sys.executable, *sys.argv[1:])")
    assert launch("app.py", "--name", "x", cwd=tmp_path).stdout.split() == [sys.executable, "--name", "x"]


# ---- options and profiles

def _settings(*words, home, **more):
    done = launch(*words, "env", HOME=str(home), **more)
    assert done.returncode == 0, done.stderr
    return {name: value for name, _, value in (line.partition("=") for line in done.stdout.splitlines())
            if name.startswith("EF_")}


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".shmstack" / "profiles").mkdir(parents=True)
    return tmp_path


def _profile(home, name, text):
    path = home / ".shmstack" / "profiles" / f"{name}.opf"
    path.write_text(text)
    return path


def test_options_become_variables(home):
    words = "--name n --share-with -1 --client-loopback tolist --server-loopback=1".split()
    assert _settings(*words, home=home) == {"EF_NAME": "n", "EF_SHARE_WITH": "-1", "EF_TCP_CLIENT_LOOPBACK": "tolist",
                                            "EF_TCP_SERVER_LOOPBACK": "1"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (SITE.parent / "profiles").glob("*.opf")))
def test_shipped_profile_has_valid_settings(home, name):
    assert _settings("-p", name, home=home)


def test_environment_wins_over_a_profile_unless_forced(home):
    assert _settings("-p", "latency", home=home) == {"EF_POLL_USEC": "100000"}
    assert _settings("-p", "latency", home=home, EF_POLL_USEC="5") == {"EF_POLL_USEC": "5"}
    assert _settings("-p", "latency", "--force-profiles", home=home, EF_POLL_USEC="5") == {"EF_POLL_USEC": "100000"}


def test_option_wins_over_environment_and_forced_profile(home):
    _profile(home, "mine", "onload_set EF_NAME profile")
    assert _settings("-p", "mine", "--force-profiles", "--name", "option", home=home, EF_NAME="environment") == {
        "EF_NAME": "option"}


def test_user_profile_comes_before_the_shipped_one_and_may_import(home):
    _profile(home, "safe", "# mine\nonload_set EF_NAME 'safe.mine'   # quoted\n\nonload_import latency\n")
    assert _settings("-p", "safe", home=home) == {"EF_NAME": "safe.mine", "EF_POLL_USEC": "100000"}


def test_first_profile_holds_and_forced_the_last(home):
    _profile(home, "one", "onload_set EF_NAME one")
    two = _profile(home, "two", "onload_set EF_NAME two")
    assert _settings("-p", "one,two", home=home)["EF_NAME"] == "one"
    assert _settings("-p", "one", "-p", str(two), "--force-profiles", home=home)["EF_NAME"] == "two"


@pytest.mark.parametrize("line", ["onload_set EF_NAME", "export EF_NAME=a", "onload_set 'EF_NAME a", "onload_import bad"])
def test_bad_profile_line_is_named(home, line):
    path = _profile(home, "bad", f"\n{line}\n")
    done = launch("-p", "bad", "true", HOME=str(home))
    assert done.returncode == 2
    assert f"{path}:2: " in done.stderr


def test_bad_value_in_a_profile_is_an_error(home):
    _profile(home, "bad", "onload_set EF_MAX_ENDPOINTS 3")
    done = launch("-p", "bad", "true", HOME=str(home))
    assert done.returncode == 2
    assert "found EF_MAX_ENDPOINTS=3" in done.stderr


def test_unknown_option_is_a_warning(home):
    done = launch("echo", "on", HOME=str(home), EF_SHARE_WIHT="1")
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert "EF_SHARE_WIHT; the closest is EF_SHARE_WITH" in done.stderr


def test_verbose_says_what_is_run(home):
    assert "shmstack: EF_NAME=a true x" in launch("-v", "--name", "a", "true", "x", HOME=str(home)).stderr


# ---- the drop-in below

def test_program_has_the_drop_in():
    assert python(WHICH) == [OURS]


def test_program_that_makes_no_sockets_pays_nothing():
    code = "import sys; print([name for name in sys.modules if name in ('socket', 'shmstack.socket', 'numba', 'numpy')])"
    assert python(code) == ["[]"]


def test_shell_and_subprocess_pass_it_on():
    done = launch("sh", "-c", f'exec "{sys.executable}" -c "$0"', WHICH)
    assert done.stdout.split() == [OURS]
    assert python("import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])", WHICH) == [OURS]


def test_forked_child_has_it():
    say = "os.write(1, (socket.socket.__module__ + '\\n').encode())"                # a line in one call
    code = f"import os\npid = os.fork()\nimport socket\n{say}\nif pid: os.wait()"
    assert python(code) == [OURS, OURS]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_child_has_it(tmp_path, method):
    (tmp_path / "app.py").write_text(f"""
import multiprocessing, socket
def show(): print(socket.socket.__module__, flush=True)
if __name__ == "__main__":
    child = multiprocessing.get_context("{method}").Process(target=show)
    child.start(); child.join(); raise SystemExit(child.exitcode)
""")
    done = launch("app.py", cwd=tmp_path)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [OURS], "")


@pytest.mark.parametrize("order", ["import ssl, socket", "import socket, ssl"])
def test_tls_socket_keeps_the_plain_class(order):
    assert python(f"{order}\nprint(ssl.SSLSocket.__mro__[1].__module__, socket.socket.__module__)") == [PLAIN, OURS]


def test_modules_look_as_usual():
    code = """
import inspect, socket, ssl
print(type(socket.__spec__.loader).__name__, type(ssl.__spec__.loader).__name__, "exec_module" in vars(ssl.__loader__),
      "class socket" in inspect.getsource(socket))"""
    assert python(code) == ["SourceFileLoader", "SourceFileLoader", "False", "True"]


def test_looking_for_ssl_does_not_lose_it():
    code = "import importlib.util, socket; importlib.util.find_spec('ssl')\n" \
           "import ssl; print(ssl.SSLSocket.__mro__[1].__module__)"
    assert python(code) == [PLAIN]


def test_path_is_the_programs_own(tmp_path):
    code = "import os, sys; print(sys.path[1], os.environ['PYTHONPATH']); print('_site' in ' '.join(sys.path))"
    first, inherited, seen = python(code, PYTHONPATH=_before(tmp_path))
    assert (first, seen) == (str(tmp_path), "False")
    assert inherited.startswith(f"{SITE}:{tmp_path}")


def test_sitecustomize_of_the_user_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os; 'SHMSTACK_RUN' in os.environ and print('mine', __file__)")
    out = python("import sitecustomize; print(sitecustomize.__file__); " + WHICH,
                 PYTHONPATH=_before(tmp_path))
    file = str(tmp_path / "sitecustomize.py")
    assert out == ["mine", file, file, OURS]


def test_failing_sitecustomize_is_reported_as_ever(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    path = _before(tmp_path)
    alone = subprocess.run([sys.executable, "-c", WHICH], env=_environment(PYTHONPATH=path), capture_output=True,
                           text=True, check=True)
    done = launch("--", sys.executable, "-c", WHICH, PYTHONPATH=path)
    assert (done.stdout, done.stderr) == (f"{OURS}\n", alone.stderr * 2)      # the launcher is a Python too
    assert "no_such_module" in done.stderr


# ---- interpreters that can't

@pytest.mark.parametrize("flag", ["-S", "-I", "-E"])
def test_interpreter_that_ignores_the_path_is_plain(flag):
    done = launch("--", sys.executable, flag, "-c", WHICH)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PLAIN}\n", "")


def test_every_other_python_here_runs_untouched():
    found = {str(Path(path).resolve()) for minor in range(6, 20) if (path := shutil.which(f"python3.{minor}"))}
    found |= {str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python")}
    code = "import sys, socket; print(socket.socket.__module__ == 'shmstack.socket'); sys.exit(5)"
    for path in found - {str(Path(sys.executable).resolve())}:
        tag = subprocess.run([path, "-c", "import sys; print(sys.implementation.cache_tag)"], capture_output=True,
                             text=True, check=False)
        done = launch(path, "-c", code)
        if tag.returncode == 0 and tag.stdout.strip() == sys.implementation.cache_tag:
            continue
        assert (done.returncode, done.stdout.strip(), done.stderr) in ((5, "False", ""), (127, "", done.stderr)), path


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An interpreter of this version that has nothing installed."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    return str(place / "bin" / "python")


def test_same_python_without_shmstack_borrows_it(bare):
    code = "import socket; print(socket.socket.__module__)\ntry: import numba\nexcept ImportError: print('no numba')"
    done = launch("--", bare, "-c", code)
    assert done.stdout.splitlines() == [OURS, "no numba"], done.stderr


def test_python_that_cannot_borrow_is_plain_and_silent(bare):
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SITE), "SHMSTACK_RUN": "1",
               "SHMSTACK_PATH": f"cpython-27:{SITE.parent.parent}"}
    done = subprocess.run([bare, "-c", WHICH], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PLAIN}\n", "")


# ---- what can't be set up

BROKEN = "import sys; sys.modules['shmstack.socket'] = None\n"


def test_failure_leaves_kernel_tcp_and_is_silent():
    done = launch("--", sys.executable, "-c", BROKEN + WHICH)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PLAIN}\n", "")


def test_failure_is_one_line_where_asked_for():
    done = launch("--", sys.executable, "-c", BROKEN + WHICH, EF_LOG="banner")
    assert (done.returncode, done.stdout) == (0, f"{PLAIN}\n")
    assert len(done.stderr.splitlines()) == 1
    assert "stays on kernel TCP" in done.stderr


def test_failure_is_an_error_where_asked_for():
    done = launch("--", sys.executable, "-c", BROKEN + WHICH, EF_NO_FAIL="0")
    assert done.returncode == 1
    assert "shmstack" in done.stderr


def test_bad_option_that_came_later_leaves_kernel_tcp():
    done = launch("sh", "-c", f'EF_MAX_ENDPOINTS=bad exec "{sys.executable}" -c "$0"', WHICH)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{PLAIN}\n", "")


def test_install_and_uninstall_in_a_process():
    code = """
import socket
plain = socket.socket
from shmstack import run
assert run.install() and run.install()
assert socket.socket is not plain and issubclass(socket.socket, plain)
with socket.socket() as made: assert type(made) is not plain
run.uninstall()
run.uninstall()
assert socket.socket is plain
assert run.install() and socket.socket is not plain
"""
    subprocess.run([sys.executable, "-c", code], env=_environment(), check=True)


# ---- together

def test_unchanged_server_and_client_talk(tmp_path):
    (tmp_path / "server.py").write_text("""
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())
with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.handle_request()
""")
    (tmp_path / "client.py").write_text("""
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock, sock.makefile("rw") as file:
    for number in range(1000):
        file.write(f"line {number}\\n"); file.flush()
        assert file.readline() == f"LINE {number}\\n"
print("done")
""")
    server = subprocess.Popen([sys.executable, "-m", "shmstack", "run", "server.py"], env=_environment(), cwd=tmp_path,
                              stdout=subprocess.PIPE, text=True)
    with server:
        done = launch("client.py", server.stdout.readline().strip(), cwd=tmp_path)
        assert (done.stdout, done.stderr) == ("done\n", "")
        assert server.wait(60) == 0
