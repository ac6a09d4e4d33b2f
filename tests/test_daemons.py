"""Servers that take their port and then give up what they can: the user, the files, the modules, all other descriptors.

What was opened before goes on as it was, what comes later is accelerated if it can be, neither ever fails for that, and
nothing of theirs is touched.
"""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Both ends of each connection are in one process, so one parameter gives all of it up.
PROGRAM = """
import _socket, contextlib, encodings.idna, gc, os, stat, sys, threading
import shmstack.socket as socket
from shmstack.shm import objects
from shmstack.stack import stack as stacks

NOBODY, SIZE = 65534, 300_000

def echo(listener):
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()

def serve(sock):
    with sock:
        while data := sock.recv(1 << 16):
            sock.sendall(data)

def listen():
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    return listener.getsockname()

def talk(sock):
    sender = threading.Thread(target=sock.sendall, args=(bytes(SIZE),))
    sender.start()
    left = SIZE
    while left:
        left -= len(sock.recv(left))
    sender.join()

def connect(address):
    sock = socket.create_connection(address, timeout=60)
    talk(sock)
    return sock

class Nothing:
    def find_spec(self, name, path=None, target=None):
        raise ModuleNotFoundError(f"{name} can't be read")

def user():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)

def files():
    os.chroot(sys.argv[3])
    os.chdir("/")

def modules():
    sys.meta_path[:] = [Nothing()]

def family(number):
    sock = _socket.socket(fileno=number)
    try:
        return sock.family
    finally:
        sock.detach()

def descriptors():
    global log, theirs, mine
    log, (theirs, mine) = os.open(sys.argv[3], os.O_RDWR | os.O_CREAT), socket.socketpair()
    links = 0
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if number > 2 and not stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(log, number)
            elif number > 2 and family(number) == socket.AF_NETLINK:
                links += 1
                os.dup2(theirs.fileno(), number)
    assert links and os.path.samefile(log, kept._endpoint.stack.segment.fd)
    os.write(log, b"one")
    with open(os.path.join(objects.DIRECTORY, objects.PREFIX + kept._endpoint.stack.name), "rb") as anew:
        assert objects.in_use(anew.fileno())

kept = None
if sys.argv[1] != "modules":
    before = listen()
    kept = connect(before)
{"user": user, "files": files, "modules": modules, "descriptors": descriptors}[sys.argv[1]]()
address = listen()
socks = [connect(address)]
if kept:
    talk(kept)
    socks += [connect(before), kept]
if sys.argv[2] == "fork":
    reader, writer = os.pipe()
    segment = kept._endpoint.stack.segment
    parent = segment.slot
    pid = os.fork()
    if pid == 0:
        talk(connect(address))
        talk(kept)
        assert segment.slot != parent and segment.alive(parent) and segment.others()
        os.write(writer, b"%d" % segment.slot)
        threading.Event().wait()
    os.close(writer)
    child = int(os.read(reader, 100))
    assert segment.slot == parent and segment.alive(child)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert not segment.alive(child)
    talk(kept)
if sys.argv[1] == "descriptors":
    for stack in list(stacks._attached.values()):
        stack.leave()
    os.write(log, b" two")
    assert os.pread(log, 99, 0) == b"one two"
    theirs.send(b"nothing else")
    assert mine.recv(99) == b"nothing else"
print(*[int(sock._endpoint is not None) for sock in socks], flush=True)
os._exit(0)
"""


def run(what, *more, mode=2):
    """Return 1 or 0 for each of the program's connections: whether it is accelerated."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EF_", "SHMSTACK_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM, what, *more], env={**environ, "EF_TCP_CLIENT_LOOPBACK": str(mode)},
                          capture_output=True, text=True, check=False, timeout=120, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("mode", [2, 3, 4])
def test_program_that_can_read_no_module_any_more_is_accelerated(mode):
    assert run("modules", "stay", mode=mode) == ["1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("forks", ["stay", "fork"])
@pytest.mark.parametrize("mode", [2, 3, 4])
def test_program_that_becomes_another_user_keeps_its_connections_and_gets_new_ones(mode, forks):
    assert run("user", forks, mode=mode) == ["1", "1", "1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root directory")
@pytest.mark.parametrize("forks", ["stay", "fork"])
def test_program_that_sees_no_files_any_more_keeps_its_connections_and_gets_kernel_ones(forks, tmp_path):
    assert run("files", forks, str(tmp_path)) == ["0", "0", "1"]


@pytest.mark.parametrize("forks", ["stay", "fork"])
@pytest.mark.parametrize("mode", [2, 3, 4])
def test_program_that_closes_all_it_does_not_know_may_use_the_numbers_again(mode, forks, tmp_path):
    assert run("descriptors", forks, str(tmp_path / "log"), mode=mode) == ["1", "1", "1"]
