"""What a steered process can do (see `process`): sockets are known by a name of the test's choice."""
from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import pickle
import pkgutil
import random
import resource
import signal
import struct
import sys
import threading
import time
import traceback

import surroundings

import shmstack
import shmstack.select as select
import shmstack.socket as socket
from shmstack import _native, views
from shmstack.errors import NotMovable, StackFull
from shmstack.shm.layout import COUNTERS, DIRECTION, HEADER
from shmstack.stack import names
from shmstack.stack.stack import attached
from shmstack.tcp import lifeline

held = {}                            # name -> socket
HOST = "127.0.0.1"


# ---- sockets -------------------------------------------------------------------------------------------------

def listen(host=HOST, name="listener", port=0, dual=None, reuse_port=False):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held[name] = sock = socket.socket(family)
    if dual is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if reuse_port else socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen()
    return sock.getsockname()


def bind(host=HOST, name="one"):
    """Bind a socket, for `listen_bound` or `connect_bound`."""
    held[name] = sock = socket.socket()
    sock.bind((host, 0))
    return sock.getsockname()


def bound(name="one"):
    return held[name].getsockname()


def listen_bound(name="one"):
    held["listener"] = held.pop(name)
    held["listener"].listen()


def connect_bound(address, name="one"):
    held[name].connect(tuple(address))


def cookie(name="one"):
    return lifeline.cookie(held[name])


def connect(address, name="one", bind=None):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    held[name] = sock = socket.socket(family)
    if bind is not None:
        sock.bind((bind, 0))
    sock.connect(tuple(address))
    return sock.getsockname()


def accept(name="one", listener="listener"):
    held[name], address = held[listener].accept()
    return address


def connect_many(address, count):
    """Connect so many sockets, called by their ports; return those."""
    ports = []
    for _ in range(count):
        port = connect(address, "new")[1]
        held[port] = held.pop("new")
        ports.append(port)
    return ports


def greeted(ports):
    """Take the greeting of each of the sockets called by their ports, and close them; return how many were accelerated."""
    accelerated = 0
    for port in ports:
        if held[port].recv(5, socket.MSG_WAITALL) != b"%5d" % port:
            raise ValueError(f"another greeting on port {port}")
        end = held[port]._endpoint
        accelerated += end is not None and end.joined
        close(port)
    return accelerated


def accept_all(listener="listener"):
    """Accept what waits and greet it; return [port of the client, whether it is accelerated]."""
    found = []
    held[listener].setblocking(False)
    while True:
        try:
            sock, (_, port) = held[listener].accept()
        except BlockingIOError:
            return found
        sock.setblocking(True)
        sock.sendall(b"%5d" % port)
        held[port] = sock
        found.append((port, sock._endpoint is not None))


def send(data, name="one", times=1):
    for _ in range(times):
        held[name].sendall(data)


def receive(size, name="one"):
    return held[name].recv(size, socket.MSG_WAITALL)


def receive_all(name="one"):
    """Return (everything up to the end, how it ended: "EOF" or an errno's name)."""
    got = bytearray()
    while True:
        try:
            piece = held[name].recv(1 << 16)
        except OSError as error:
            return bytes(got), errno.errorcode[error.errno]
        if not piece:
            return bytes(got), "EOF"
        got += piece


def receive_all_polled(kind, name="one"):
    """As `receive_all`, of a socket that doesn't block and is waited for by select or (edge-triggered) epoll."""
    sock, got = held[name], bytearray()
    sock.setblocking(False)
    if kind == "epoll":
        poller = select.epoll()
        poller.register(sock, select.EPOLLIN | select.EPOLLET)
    while True:
        assert poller.poll(30) if kind == "epoll" else select.select([sock], [], [], 30)[0]
        try:
            while piece := sock.recv(300):
                got += piece
        except BlockingIOError:
            continue
        except OSError as error:
            return bytes(got), errno.errorcode[error.errno]
        return bytes(got), "EOF"


def send_until_error(name="one"):
    """Send until that fails; return the errno's name."""
    try:
        while True:
            held[name].send(bytes(1000))
    except OSError as error:
        return errno.errorcode[error.errno]


def close(name="one"):
    held.pop(name).close()


def attempt(act, *args):
    """Return what the act returned, or the errno's name of the OSError that it raised, or "cut" at an early end."""
    try:
        return known(act)(*args)
    except EOFError:
        return "cut"
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))


# ---- streams -------------------------------------------------------------------------------------------------

def _messages(seed, total):
    chance = random.Random(seed)
    while total:
        size = min(total, int(2 ** chance.uniform(0, 18)))
        yield chance.randbytes(size)
        total -= size


def _check(sock, seed, total):
    room = memoryview(bytearray(1 << 18))
    for number, message in enumerate(_messages(seed, total)):
        got = 0
        while got < len(message):
            new = sock.recv_into(room[got:len(message)])
            if not new:
                raise EOFError(f"message {number} ends after {got} of {len(message)} bytes")
            got += new
        if room[:got] != message:
            raise ValueError(f"message {number} of {len(message)} bytes is another one")
        if got < len(message):
            raise EOFError(f"message {number} ends after {got} of {len(message)} bytes")


def stream(out, into, total, name="one"):
    """Send the messages drawn with seed `out` and check those of seed `into` at the same time; return the total."""
    sock, failure = held[name], []

    def sending():
        try:
            for message in _messages(out, total):
                sock.sendall(message)
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=sending, daemon=True)
    thread.start()
    _check(sock, into, total)
    thread.join()
    if failure:
        raise failure[0]
    return total


def answer(size, times, name="one"):
    """Send back `times` messages of `size` bytes."""
    sock = held[name]
    for _ in range(times):
        sock.sendall(sock.recv(size, socket.MSG_WAITALL))


def ask(size, times, name="one"):
    """Send `times` messages and wait for each to come back."""
    sock, data = held[name], bytes(size)
    for _ in range(times):
        sock.sendall(data)
        if sock.recv(size, socket.MSG_WAITALL) != data:
            raise ValueError("another answer")


def ask_marked(size, times, name="one"):
    """Like `ask`, between two system calls that a tracer sees; each message comes whole."""
    sock, data = held[name], bytes(size)
    os.getpriority(os.PRIO_PGRP, 0)
    for _ in range(times):
        sock.sendall(data)
        sock.recv(size)
    os.getpriority(os.PRIO_PGRP, 0)


def answer_marked(size, times, name="one"):
    sock = held[name]
    os.getpriority(os.PRIO_PGRP, 0)
    for _ in range(times):
        sock.sendall(sock.recv(size))
    os.getpriority(os.PRIO_PGRP, 0)


# ---- what is where -------------------------------------------------------------------------------------------

def home(name="one"):
    """Return (stack, tx lane, rx lane) of a socket, None for a kernel socket."""
    end = held[name]._endpoint
    return None if end is None else (end.stack.name, *end.lanes())


def own_stack(name="one"):
    stack = names.current(held[name])
    return stack and stack.name


def counters():
    """Return the counters that are not 0, added over all stacks of this process."""
    found = {}
    for stack in attached():
        for index, counter in enumerate(COUNTERS):
            number = _native.call.load(stack.segment.base + HEADER.at.counters + 8 * index)
            if number:
                found[counter] = found.get(counter, 0) + number
    return found


def take_lock(which, name="one"):
    """Take the lock of what this end sends ("tx_lock") or receives ("rx_lock") and keep it."""
    end = held[name]._endpoint
    direction = end.tx if which == "tx_lock" else end.rx
    return _native.call.take(direction + getattr(DIRECTION.at, which), end.stack.holder)


def sockets_timeout(seconds, name="one"):
    held[name].settimeout(seconds)


def tidy():
    names.tidy()


def become(uid):
    """Go on as another user, who need not be able to read the interpreter: what is imported later is imported now."""
    ours = (found.name for found in pkgutil.walk_packages(shmstack.stack.__path__, "shmstack.stack."))
    for module in ("posix_ipc", "importlib", *ours):
        __import__(module)
    _native.load()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)                  # PR_SET_DUMPABLE, which the change of user took away


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def ring_position(name="one"):
    """Return (position of the next byte that is sent, bytes of the ring)."""
    end = held[name]._endpoint
    return _native.call.load(end.tx + DIRECTION.at.tail), end.stack.capacity


def send_until_killed(size, data, name="one"):
    """Send; the kernel kills this process at its first system call that sends `size` bytes, before it does so."""
    _at_call({"x86_64": 44, "aarch64": 206}, size, 0x80000000)                    # sendto; kill the process
    held[name].sendall(data)


def be_an_old_kernel():
    """Have madvise answer that it doesn't know MADV_POPULATE_WRITE, as Linux before 5.14 does."""
    _at_call({"x86_64": 28, "aarch64": 233}, 23, 0x00050000 | errno.EINVAL)


def _at_call(numbers, third, action):
    """Have seccomp do this at each system call of that number whose third argument is `third`."""
    steps = [(0x20, 0, 0, 0), (0x15, 0, 3, numbers[os.uname().machine]), (0x20, 0, 0, 32), (0x15, 0, 1, third),
             (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):     # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        raise OSError(ctypes.get_errno(), "seccomp")


# ---- moves ---------------------------------------------------------------------------------------------------

def move(stack, name="one", **settings):
    """Move a connection to the stack called `stack`, made now with these options; return where it is then."""
    for option, value in settings.items():
        shmstack.stack_opt_set(option, value)
    shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_GLOBAL, stack)
    try:
        shmstack.move_fd(held[name])
    finally:
        shmstack.set_stackname(shmstack.THIS_THREAD, shmstack.SCOPE_NOCHANGE, "")
        shmstack.stack_opt_reset()
    return shmstack.stack_name(held[name])


def move_while(act, *args, stacks=(), pause=0.0005, name="one"):
    """Run an act in a thread and move its socket all the time; return (what it returned, moves)."""
    answers, moves, over = [], 0, threading.Event()

    def running():
        try:
            answers.append(globals()[act](*args, name=name))
        except BaseException as error:
            answers.append(error)
        over.set()

    threading.Thread(target=running, daemon=True).start()
    while not over.wait(pause):
        try:
            move(stacks[moves % len(stacks)], name)
            moves += 1
        except (NotMovable, StackFull):
            pass
    if isinstance(answers[0], BaseException):
        raise answers[0]
    return answers[0], moves


def move_until_killed(stacks, calls, name="one"):
    """Move, and be killed before the `calls`-th word is touched; say "moved" if it took fewer."""
    real = _native.call
    left = calls

    class Counting:
        def __getattr__(self, function):
            nonlocal left
            left -= 1
            if left == 0:
                die()
            return getattr(real, function)

    for stack in stacks:
        names.Stack.open(stack, names.lifeline.netns(held[name]), names.options())
    _native.call = Counting()
    try:
        move(stacks[0], name)
    finally:
        _native.call = real
    return "moved"


def stream_until_cut(out, into, name="one"):
    """Stream both ways for ever; return how it was cut: an errno's name, or "cut" for an early end."""
    try:
        return stream(out, into, 1 << 40, name)
    except EOFError:
        return "cut"
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))


def stat(name="one"):
    return shmstack.fd_stat(held[name])


def peer_sleeps(name="one"):
    """Return whether the other end said that it sleeps on its bell."""
    return _native.call.load(held[name]._endpoint.tx + DIRECTION.at.bell) == 1


def peer_sleeps_deeply(name="one"):
    """Return whether the other end said that it sleeps on the lifeline."""
    return _native.call.load(held[name]._endpoint.tx + DIRECTION.at.bell) == 3


def receive_by_descriptor(size, name="one"):
    """Give the socket up, and read from its descriptor."""
    fd, got = held.pop(name).detach(), b""
    while len(got) < size and (piece := os.read(fd, size)):
        got += piece
    os.close(fd)
    return got


def receive_beside(size, name="one"):
    """Begin to receive in another thread, which sends the same back."""
    sock = held[name]
    threading.Thread(target=lambda: sock.sendall(sock.recv(size, socket.MSG_WAITALL)), daemon=True).start()


def receive_with_timeout(size, seconds, name="one"):
    held[name].settimeout(seconds)
    return held[name].recv(size)


def receive_with_alarm(size, seconds, name="one"):
    """Receive, with a signal on the way; return (what came, how often its handler ran before that)."""
    ran = []
    signal.signal(signal.SIGALRM, lambda *_: ran.append(1))
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    try:
        return held[name].recv(size), len(ran)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def wait_in(kind, name="one"):
    """Wait for input in a poll, a select or an epoll; return whether it is there."""
    if kind == "select":
        return bool(select.select([held[name]], [], [])[0])
    waiting = select.poll() if kind == "poll" else select.epoll()
    waiting.register(held[name], 1)
    return bool(waiting.poll())


def stalls(name="one"):
    """Return whether the other end waits for room."""
    return _native.call.load(held[name]._endpoint.rx + DIRECTION.at.stalled) == 1


def duplicate(name="one", other="two"):
    held[other] = held[name].dup()


def fork_answering(size, times, name="one", idle=False):
    """Fork; the child sends back `times` messages, closes and ends; return its pid.

    idle : until something comes for it, the child doesn't touch its socket
    """
    pid = os.fork()
    if pid == 0:
        try:
            while idle and not _native.call.arrived(held[name]._endpoint.handle):
                time.sleep(0.01)
            answer(size, times, name)
            for sock in held.values():
                sock.close()
        finally:
            os._exit(0)
    return pid


def reap(pid):
    return os.waitpid(pid, 0)[1]


def check_polled(seed, total, kind, name="one"):
    """Check the messages of a seed, read as they become readable; return their total."""
    sock = held[name]
    if kind == "epoll":
        sock.setblocking(False)
        poller = select.epoll()
        poller.register(sock, select.EPOLLIN)

        def wait():
            assert poller.poll(30)
    else:
        def wait():
            assert select.select([sock], [], [], 30)[0]

    class Polled:
        def recv_into(self, room):
            while True:
                wait()
                try:
                    return sock.recv_into(room)
                except BlockingIOError:
                    continue

    _check(Polled(), seed, total)
    sock.setblocking(True)
    return total


def send_messages(seed, total, name="one"):
    for message in _messages(seed, total):
        held[name].sendall(message)


def look(stack):
    """Return (endpoints used, what is wrong) of a stack."""
    row, = views.stacks(stack)
    return row.endpoints_used, views.check(row)


def known(act):
    return globals().get(act) or getattr(surroundings, act)


def main():
    faulthandler.enable()
    out, asked = os.dup(1), sys.stdin.buffer
    os.dup2(2, 1)
    while head := asked.read(4):
        act, args, options = pickle.loads(asked.read(struct.unpack("I", head)[0]))
        try:
            answer = True, known(act)(*args, **options)
            data = pickle.dumps(answer)
        except BaseException as error:
            traceback.print_exc()
            data = pickle.dumps((False, error))
        os.write(out, struct.pack("I", len(data)) + data)


if __name__ == "__main__":
    main()
