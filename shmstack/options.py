"""Every EF_ option, declared once: parser, help, launcher, dump and the README's table come from here.

An option is a class attribute of `Options`; its variable is EF_ and the attribute in capitals.  The class attribute
is the declaration, the attribute of an instance the value:

    options = Options.from_env()
    options.tcp_client_loopback            # 2
    OPTIONS["EF_TCP_CLIENT_LOOPBACK"].doc  # what it means

An instance never changes.  Values are per stack (fixed when it is created) or per process.  None stands for "left
open": the spin options then adapt, others take the system's value.

This module is imported at each start of an interpreter under the launcher, hence no `typing`, no `enum`, no
`dataclasses`; what only errors need is imported there.
"""
from __future__ import annotations

import os

from shmstack._option import FOREVER, STACK, Flag, MaybeFlag, MaybeNumber, Number, Option, Text, Words
from shmstack.errors import OptionError, UnknownOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OPTIONS: dict[str, Option] = {}

# Names that Onload has and that find nothing to act on here: no packets, no interrupts, no pipes, no cluster.
ACCEPTED_ONLY = frozenset("EF_" + name for name in """
    AF_XDP_ZEROCOPY CLUSTER_HOT_RESTART CLUSTER_IGNORE CLUSTER_NAME CLUSTER_RESTART CLUSTER_SIZE CTPIO_MODE
    DEFER_WORK_LIMIT DUMP_STACK_ON_EXIT EPOLL_CTL_HANDOFF EPOLL_MT_SAFE FDTABLE_STRICT INT_DRIVEN KEEPALIVE_INTVL
    KEEPALIVE_PROBES KEEPALIVE_TIME LOG_THREAD LOG_TIMESTAMPS LOG_VIA_IOCTL MAX_PACKETS MAX_RX_PACKETS MAX_TX_PACKETS
    MIN_FREE_PACKETS ONLOAD_FD_BASE PIPE PIPE_RECV_SPIN PIPE_SEND_SPIN PIPE_SIZE PKT_WAIT_SPIN POLL_IN_KERNEL
    PREALLOC_PACKETS PREFAULT_PACKETS SLEEP_SPIN_USEC SOCK_LOCK_BUZZ SO_BUSY_POLL_SPIN STACK_LOCK_BUZZ TCP_BACKLOG_MAX
    TCP_FASTSTART_IDLE TCP_FASTSTART_INIT TCP_FIN_TIMEOUT TCP_FORCE_REUSEPORT TCP_RCVBUF_ESTABLISHED_DEFAULT
    TCP_RCVBUF_MODE TCP_RCVBUF_STRICT TCP_SEND_NONBLOCK_NO_PACKETS_MODE TCP_SNDBUF_ESTABLISHED_DEFAULT TCP_SNDBUF_MODE
    TCP_SYNRECV_MAX TCP_TCONST_MSL TCP_URG_MODE TPH_MODE UDP_RECV_SPIN UDP_SEND_SPIN UNIX_LOG USE_HUGE_PAGES VFORK_MODE
    XDP_MODE""".split())

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"


class Options:
    """One value for every option.

    Make one by `from_env`; keyword arguments are options by attribute name, and None leaves an option unset.
    """

    # -- which connections are accelerated, and where they live
    tcp_client_loopback = Number(
        """What connect() to an address of this host does: stay on kernel TCP; use the listener's stack if that is
        ours; else make the accepted socket in our stack; else move ours into the listener's stack; else move both
        into a new stack.""", 2, 0, 4, names="no samestack toconn tolist tonew", scope=STACK)
    tcp_server_loopback = Number(
        """What a listener accepts from this host: nothing accelerated; connections that end up in its own stack;
        or also connections that live in another stack.""", 2, 0, 2, names="no samestack allowalien", scope=STACK)
    name = Text("Processes with the same name share one stack; empty gives each process its own.", letters=_LETTERS)
    share_with = Number(
        """Who besides ourselves and root may use the stack: 0 nobody, a user's number that user, -1 everybody.""",
        0, -1, 2**32 - 2, scope=STACK)
    stack_per_thread = Flag("Give each thread that creates sockets a stack of its own.", False)
    dont_accelerate = Flag("Accelerate nothing, except where the program names a stack with set_stackname().", False)
    tcp = Flag("Accelerate TCP sockets at all.", True)
    udp = Flag("Taken for compatibility; UDP always stays in the kernel.", True)
    tcp_listen_handover = Flag("Give each listening socket to the kernel, unaccelerated.", False, STACK)
    tcp_connect_handover = Flag("Give each connecting socket to the kernel, unaccelerated.", False, STACK)
    no_hw = Flag("Make stacks that use no network device.", False, STACK)

    # -- the life of a stack
    no_fail = Flag("Use kernel TCP when acceleration is impossible; 0 raises the reason instead.", True)
    fork_netif = Number("After fork(), whose new sockets go to a new stack.", 3, 0, 3, names="none child parent both")
    netif_dtor = Number(
        """Which stacks end with their last socket: none, those that several processes used, or all; each ends with
        its last process.""", 1, 0, 2, names="none shared all")
    probe = Flag("Look for accelerated sockets among the descriptors that a new program inherits.", True)
    max_endpoints = Number("How many sockets a stack has room for; more stay on kernel TCP.", 8192, 4, 2**21,
                           scope=STACK)
    tcp_sndbuf = Number("Bytes of send buffer, instead of what the program sets; 0 leaves it alone.", 0, scope=STACK)
    tcp_rcvbuf = Number("Bytes of receive buffer, instead of what the program sets; 0 leaves it alone.", 0,
                        scope=STACK)

    # -- waiting
    poll_usec = MaybeNumber(
        """Spin this long before sleeping: sets EF_SPIN_USEC, and turns spinning on in recv, send, select, poll and
        epoll, and off in accept and connect, where those are not set themselves.""", None, FOREVER)
    spin_usec = MaybeNumber(
        "How long a wait spins before it sleeps, -1 for ever; unset adapts to what spinning gained so far.",
        None, FOREVER)
    buzz_usec = Number("How long to spin for a lock that another thread holds, -1 for ever.", 0, FOREVER, scope=STACK)
    tcp_recv_spin = MaybeFlag("Spin in a blocking recv; unset adapts.", None)
    tcp_send_spin = MaybeFlag("Spin in a blocking send; unset adapts.", None)
    tcp_accept_spin = MaybeFlag("Spin in a blocking accept; unset adapts.", None)
    tcp_connect_spin = MaybeFlag("Spin in a blocking connect; unset adapts.", None)
    select_spin = MaybeFlag("Spin in select(); unset adapts.", None)
    poll_spin = MaybeFlag("Spin in poll(); unset adapts.", None)
    epoll_spin = MaybeFlag("Spin in epoll_wait(); unset adapts.", None)

    # -- select, poll, epoll
    ul_select = Flag("Look at accelerated sockets in select() without a system call.", True)
    ul_poll = Flag("Look at accelerated sockets in poll() without a system call.", True)
    ul_epoll = Number("How epoll sees accelerated sockets: through the kernel alone, or in shared memory first.",
                      1, 0, 3, names="kernel user kernel-accelerated user-scalable")
    select_fast = Flag("Let select() return what is ready in shared memory without asking the kernel.", True)
    poll_fast = Flag("Let poll() return what is ready in shared memory without asking the kernel.", True)
    select_fast_usec = Number("While select() spins, ask the kernel only after this time.", 32)
    poll_fast_usec = Number("While poll() spins, ask the kernel only after this time.", 32)
    epoll_ctl_fast = Flag("Put off changes of an epoll set until it waits.", True)
    fds_mt_safe = Flag("Take it that no thread closes a descriptor that another one uses at that moment.", True)

    # -- sockets
    accept_inherit_nonblock = Flag("Accepted sockets are non-blocking if their listener is.", False)
    force_tcp_nodelay = Number("Whether TCP_NODELAY is left to the program, always on or always off.", 0, 0, 2,
                               names="program always never", scope=STACK)
    acceptq_min_backlog = Number("The least backlog that listen() sets, whatever the program asks.", 1, scope=STACK)
    acceptq_max_backlog = MaybeNumber("The most backlog that listen() sets; unset is the system's somaxconn.", None,
                                      scope=STACK)

    # -- messages
    log = Words("What to say on stderr.", "banner resource_warnings config_warnings usage_warnings",
                "conn_drop more_config_warnings debug", STACK)
    log_file = Text("Write messages to the end of this file instead of stderr.")
    validate_env = Flag("Warn about EF_ variables that no option is called by.", True, STACK)
    load_env = Flag("Read options from the environment; 0 ignores all the others.", True)

    def __init__(self, **given: Any) -> None:
        values = self.__dict__
        for name in given:
            if "EF_" + name.upper() not in OPTIONS:
                raise OptionError(f"wanted an option, found {name}{_closest('EF_' + name.upper())}")
        chosen = {name: OPTIONS["EF_" + name.upper()].parse(value)
                  for name, value in given.items() if value is not None}
        values.update((option.attribute, option.default) for option in OPTIONS.values())
        values.update(chosen)
        values["given"] = chosen
        self._derive(values, chosen)

    @staticmethod
    def _derive(values: dict[str, Any], given: dict[str, Any]) -> None:
        usec = values["poll_usec"]
        if usec is not None:
            meant = {"spin_usec": usec, "buzz_usec": min(usec, 100) if usec >= 0 else 100}
            meant.update(dict.fromkeys(_POLL_SPINS, usec != 0), tcp_accept_spin=False, tcp_connect_spin=False)
            values.update((name, value) for name, value in meant.items() if name not in given)
        # A client that insists on its own stack never reaches a listener that takes nothing.
        if values["tcp_server_loopback"] == 0 and values["tcp_client_loopback"] == 1:
            values["tcp_client_loopback"] = 0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Options:
        """Read the options of `environ`; `overrides` (by attribute name) win.

        Raises
        ------
        OptionError
            A value is out of range; the message names the variable.

        Warns
        -----
        UnknownOption
            A variable looks like an option and is none (unless EF_VALIDATE_ENV=0).
        """
        found = {name: text for name, text in environ.items() if name.startswith("EF_")}
        if found and not OPTIONS["EF_LOAD_ENV"].parse(found.get("EF_LOAD_ENV", "1")):
            found = {"EF_LOAD_ENV": "0"}
        given = {OPTIONS[name].attribute: text for name, text in found.items() if name in OPTIONS}
        made = cls(**{**given, **overrides})
        unknown = [name for name in found if name not in OPTIONS and name not in ACCEPTED_ONLY]
        if unknown and made.validate_env:
            import warnings
            for name in unknown:
                warnings.warn(UnknownOption(f"unknown option {name}{_closest(name)}"), stacklevel=2)
        return made

    def replace(self, **changes: Any) -> Options:
        """Return the same options except for `changes`; None unsets one."""
        return Options(**{**self.given, **changes})

    def as_env(self) -> dict[str, str]:
        """Return the variables that make the same options in another process."""
        return {OPTIONS["EF_" + name.upper()].name: OPTIONS["EF_" + name.upper()].format(value)
                for name, value in self.given.items()}

    def spin_ns(self, where: str) -> int | None:
        """Return how long to spin in `where` ("tcp_recv", "epoll" ...): ns, -1 for ever, None to adapt."""
        if self.__dict__[where + "_spin"] is False:
            return 0
        usec = self.spin_usec
        return usec if usec is None or usec < 0 else usec * 1000

    if TYPE_CHECKING:
        given: dict[str, Any]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"options do not change; replace({name}={value!r}) makes others")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.given.items())))

    def __repr__(self) -> str:
        return f"Options({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"


_POLL_SPINS = ("tcp_recv_spin", "tcp_send_spin", "select_spin", "poll_spin", "epoll_spin")
OPTIONS.update((option.name, option) for option in vars(Options).values() if isinstance(option, Option))


def _closest(name: str) -> str:
    import difflib
    near = difflib.get_close_matches(name, OPTIONS, 1)
    return f"; the closest is {near[0]}" if near else ""


def describe() -> list[tuple[str, str, str, str, str]]:
    """Return a row for each option: variable, default, range, scope, what it means."""
    return [(name, "" if option.default is None else option.format(option.default), option.range, option.scope,
             option.doc) for name, option in OPTIONS.items()]
