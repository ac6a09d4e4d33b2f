"""What a steered process can do around its sockets: stacks without any, garbage, network namespaces."""
from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pickle
import random
import signal
import struct
import sys

import shmstack
import shmstack.select as select
import shmstack.socket as socket
from shmstack import _native
from shmstack.options import Options
from shmstack.shm.layout import HEADER
from shmstack.shm.segment import Segment
from shmstack.stack import names
from shmstack.stack.stack import Stack

held = {}                            # the stack
HOST = "127.0.0.1"
NEWUSER, NEWNET = 0x10000000, 0x40000000


# ---- stacks without sockets ----------------------------------------------------------------------------------

def stack_open(name, share=0):
    """Open a stack of namespace 0; return our slot."""
    held["stack"] = stack = Stack.open(name, 0, Options.from_env({"EF_MAX_ENDPOINTS": "8", "EF_SHARE_WITH": str(share)}))
    return stack.segment.slot


def stack_poke(value):
    _native.call.store(held["stack"].segment.base + HEADER.at.counters, value)


def stack_peek():
    return _native.call.load(held["stack"].segment.base + HEADER.at.counters)


def stack_others():
    return held["stack"].segment.others()


def stack_alive(slot):
    return held["stack"].segment.alive(slot)


def stack_in_child():
    """Return (slot, whether others are there) as a forked child of ours sees it."""
    end, start = os.pipe()
    if os.fork() == 0:
        shared = held["stack"].segment
        os.write(start, pickle.dumps((shared.slot, shared.others())))
        os._exit(0)
    os.wait()
    os.close(start)
    with open(end, "rb") as file:
        return pickle.load(file)


def stack_waiting_child():
    """Fork a child that waits to be killed; return its pid."""
    child = os.fork()
    while child == 0:
        signal.pause()
    while not held["stack"].segment.others() or not held["stack"].segment.alive(2):
        os.sched_yield()
    return child


def segment_attach(name, *owners):
    """Join a segment of namespace 0 and leave it; return its owner."""
    shared = Segment.attach(f"0.{name}", owners)
    owner = _native.call.load(shared.base + HEADER.at.owner_uid)
    shared.leave()
    return owner


def open_plainly(path):
    os.close(os.open(path, os.O_RDWR))
    return True


# ---- garbage -------------------------------------------------------------------------------------------------

_targets = {}


def aim(stack):
    """Open what `scribble` writes to: the victim may be through before the scribbling begins."""
    _targets[stack] = os.open(f"/dev/shm/shmstack.s.{stack}", os.O_RDWR)


def scribble(stack, start, end, kind, seed):
    """Write garbage between two offsets of a stack until the test wants something else; return how often."""
    chance, count = random.Random(seed), 0
    with open(_targets.pop(stack), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        while not select.select([sys.stdin], [], [], 0)[0]:
            count += 1
            if kind == "noise":
                size = min(chance.choice([8, 64, 4096]), end - start)
                words = chance.randbytes(size)
            else:
                words = struct.pack("q", chance.choice([0, 1, 2, 3, 16, 17, 1 << 14] if kind == "small numbers" else [-1]))
            at = chance.randrange(start, end - len(words) + 1, 8)
            memory[at:at + len(words)] = words
    return count


def suffer(rounds):
    """Open, use in many ways and close connections to ourselves, with time-outs; return the stack's name."""
    for number in range(max(1, rounds)):
        with socket.create_server((HOST, 0)) as listener:
            listener.settimeout(5)
            ends = [socket.create_connection(listener.getsockname(), 5), listener.accept()[0]]
        stack = names.current(ends[0]).name
        for step in range(4 if rounds else 0):
            for end in ends:
                end.settimeout([0.002, 0, 0.003, 0.001][(step + number) % 4])
                for use in (lambda end: end.send(bytes(5000)), lambda end: end.recv(3000), lambda end: end.sendall(bytes(9)),
                            lambda end: end.recv_into(bytearray(10_000)), lambda end: end.recv(5, socket.MSG_PEEK),
                            lambda end: select.select([end], [end], [], 0), shmstack.fd_stat, repr,
                            lambda end: end.recv(9, socket.MSG_WAITALL)):
                    try:
                        use(end)
                    except OSError:
                        pass
        for end in ends:
            try:
                if number % 2:
                    end.shutdown(socket.SHUT_WR)
                if number % 3 == 0:
                    end.dup().close()
            except OSError:
                pass
            end.close()
    return stack


# ---- network namespaces --------------------------------------------------------------------------------------

def unshare():
    """Go to a network namespace of our own, with its loopback device up; return its path."""
    flags = NEWNET if os.geteuid() == 0 else NEWNET | NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    address("lo", "127.0.0.1")
    return f"/proc/{os.getpid()}/ns/net"


def address(device, host):
    """Give a device an IPv4 address and start it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number, data in (
                (0x8916, struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(host))),             # SIOCSIFADDR
                (0x891C, struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("255.255.255.0"))),  # SIOCSIFNETMASK
                (0x8914, struct.pack("H14x", 0x1 | 0x40))):                                             # SIOCSIFFLAGS
            fcntl.ioctl(sock, number, device.encode().ljust(16, b"\0") + data)


def _attribute(kind, data):
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def veth(host, pid):
    """Make a pair of Ethernet devices, veth0 here with address `host`, veth1 in the namespace of process `pid`."""
    device = bytes(16)                                                                   # struct ifinfomsg
    peer = device + _attribute(3, b"veth1\0") + _attribute(19, struct.pack("I", pid))    # IFLA_IFNAME, NET_NS_PID
    info = _attribute(1, b"veth\0") + _attribute(2, _attribute(1, peer))                 # INFO_KIND, DATA, VETH_INFO_PEER
    body = device + _attribute(3, b"veth0\0") + _attribute(18, info)                     # IFLA_LINKINFO
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        # RTM_NEWLINK; NLM_F_REQUEST, ACK, CREATE, EXCL
        link.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        failed = -struct.unpack_from("i", link.recv(4096), 16)[0]
    if failed:
        raise OSError(failed, os.strerror(failed))
    address("veth0", host)


def enter(path):
    with open(path) as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
