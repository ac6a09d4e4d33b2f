"""A stepper for kernels: their own source, with every access to memory as a point where others may run.

`Kernels` turns kernels into generators: each atomic becomes a `yield`, each call of another kernel a `yield from`.
What is yielded is answered by a `Memory`, which knows every word, so an address that nobody declared is an error.
`explore` runs a few such generators in every order (or with at most so many preemptions) and collects outcomes.

Only sequentially consistent orders are explored.  What the processor may reorder is not found here.
"""
from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from types import SimpleNamespace

from numba.types import ExternalFunction

from shmstack.tcp.handle import HANDLE

ATOMICS = {"load", "store", "load_acquire", "store_release", "cas", "swap", "fetch_add", "fetch_or", "copy"}
SWITCH = {"load_acquire", "store_release", "cas", "swap", "fetch_add", "fetch_or", "copy", "send", "recv",
          "sleep", "wake", "poll_lifeline", "kernel_written", "kernel_taken", "queued"}
# Kernels that ask the operating system; a Memory answers in their place, as it does for C functions.
OUTSIDE = {"sleep", "wake", "barrier", "spin_budget", "failure", "now_ns", "pause", "poll_lifeline", "kernel_written",
           "kernel_taken", "queued", "fence", "acknowledge", "keep_short", "interrupted", "nonblocking"}
MASK = (1 << 64) - 1


def signed(number: int) -> int:
    number &= MASK
    return number - (1 << 64) if number >> 63 else number


class _Yields(ast.NodeTransformer):
    def __init__(self, kernels, functions):
        self.kernels, self.functions = kernels, functions

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, "id", None)
        name = self.functions.get(name, name)
        if name in ATOMICS | OUTSIDE or name in self.functions.values():
            return ast.Yield(ast.Tuple([ast.Constant(name), *node.args], ast.Load()))
        return ast.YieldFrom(node) if name in self.kernels else node

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.decorator_list = []
        node.body.insert(0, ast.parse("if 0: yield").body[0])      # also one that touches nothing is a generator
        return node


class Kernels(SimpleNamespace):
    """The kernels of `modules`, those they import included, as generators.

    Parameters
    ----------
    planted : kernel's name -> source to take in its place, with a bug that a test must find
    constants : replace constants of the modules
    """

    def __init__(self, *modules, planted=(), **constants):
        super().__init__()
        self._made, self._planted, self._constants = {}, dict(planted), constants
        for module in modules:
            for name, value in vars(module).items():
                if hasattr(value, "py_func"):
                    setattr(self, name, self._kernel(value.py_func))

    def _kernel(self, function):
        key = function.__module__, function.__name__
        if key not in self._made:
            names = {name for name, value in function.__globals__.items() if hasattr(value, "py_func")}
            functions = {name: value.symbol for name, value in function.__globals__.items()
                         if isinstance(value, ExternalFunction)}
            source = self._planted.get(function.__name__) or inspect.getsource(function)
            tree = ast.parse(textwrap.dedent(source))
            tree = ast.fix_missing_locations(_Yields(names - OUTSIDE, functions).visit(tree))
            scope = {**function.__globals__, **{k: v for k, v in self._constants.items() if k in function.__globals__}}
            self._made[key] = lambda *args: scope[function.__name__](*args)
            for name in names - OUTSIDE:
                scope[name] = self._kernel(function.__globals__[name].py_func)
            exec(compile(tree, function.__module__, "exec"), scope)
        return self._made[key]


class Memory:
    """Words and bytes by address, and a lifeline; each access is checked against the declared areas.

    Parameters
    ----------
    areas : (first address, size) of everything that may be touched; None: all
    lifeline : bytes that the kernel lane takes before it says EAGAIN

    Attributes
    ----------
    polls : whether a poll of the lifeline sleeps until something comes there; else it always finds something
    """

    polls = False

    def __init__(self, areas=None, lifeline=1 << 30):
        self.cells, self.areas, self.lanes, self.limit = {}, areas, {}, lifeline
        self.written, self.taken, self.now, self.running = Counter(), Counter(), 0, None
        self.closed, self.dead = set(), set()                 # descriptors; lock holders

    def check(self, address, size=8):
        if self.areas is not None and not any(at <= address and address + size <= at + n for at, n in self.areas):
            raise AssertionError(f"touches {size} bytes at {address:#x}, outside of all areas")

    def word(self, address):
        self.check(address)
        return self.cells.get(address, 0)

    def set(self, address, value):
        self.check(address)
        self.cells[address] = signed(value)

    def write(self, address, data):
        self.check(address, len(data))
        self.cells.update(enumerate(data, address))

    def read(self, address, size):
        self.check(address, size)
        return bytes(self.cells.get(at, 0) for at in range(address, address + size))

    def do(self, operation, *args):
        """Carry out what a kernel yielded; return the answer."""
        return getattr(self, "_" + operation)(*args)

    def _load(self, address):
        return self.word(address)

    def _store(self, address, value):
        self.set(address, value)

    _load_acquire, _store_release = _load, _store

    def _swap(self, address, value):
        before = self.word(address)
        self.set(address, value)
        return before

    def _cas(self, address, old, new):
        before = self.word(address)
        if before == old:
            self.set(address, new)
        return before

    def _fetch_add(self, address, value):
        return self._swap(address, self.word(address) + value)

    def _fetch_or(self, address, value):
        return self._swap(address, self.word(address) | value)

    def _copy(self, to, source, size):
        assert size >= 0, f"copies {size} bytes"
        self.write(to, self.read(source, size))
        return 0

    # ---- the kernel: descriptors 2 n and 2 n + 1 are the two ends of one connection

    def _send(self, fd, source, size, _flags):
        assert size > 0, f"sends {size} bytes"
        lane = self.lanes.setdefault(fd, bytearray())
        size = min(size, self.limit - len(lane))
        lane += self.read(source, size)
        self.written[fd] += size
        return size or -1

    def _recv(self, fd, to, size, flags):
        assert size > 0, f"receives {size} bytes"
        lane = self.lanes.setdefault(fd ^ 1, bytearray())
        got = bytes(lane[:size])
        self.write(to, got)
        if not flags & 2:
            del lane[:len(got)]
            self.taken[fd] += len(got)
        return len(got) or (0 if fd ^ 1 in self.closed else -1)

    def _madvise(self, address, size, _advice):
        assert address >= 0 and size > 0, f"asks for {size} bytes at {address:#x}"
        return 0

    def _queued(self, h):
        return len(self.lanes.get(self.word(h + HANDLE.at.fd) ^ 1, b""))

    def _kernel_written(self, h):
        return self.written[self.word(h + HANDLE.at.fd)]

    def _kernel_taken(self, h):
        return self.taken[self.word(h + HANDLE.at.fd)]

    def _failure(self):
        return -11

    def _poll_lifeline(self, h, events, _limit):
        return events

    def _spin_budget(self, h, kind):
        return 0

    def _interrupted(self, result):
        return 0

    def _nonblocking(self, h):
        return 0

    def _now_ns(self):
        self.now += 1
        return self.now

    def _barrier(self, *_):
        return 0

    _pause = _fence = _wake = _acknowledge = _keep_short = _sched_yield = _barrier
    _PyEval_SaveThread = _PyEval_RestoreThread = _barrier


def killed(memory, me, generator, steps, closes=()):
    """Run a kernel as process `me`, which is killed before its step `steps`, counted where others may run.

    closes : descriptors that nobody holds then
    """
    answer = None
    try:
        while True:
            operation = generator.send(answer)
            steps -= operation[0] in SWITCH
            if steps < 0:
                break
            answer = yield operation
    except StopIteration:
        pass
    memory.dead.add(me)
    memory.closed.update(closes)
    return steps < 0


def run(memory, generator):
    """Run one kernel by itself; return its result."""
    answer = None
    while True:
        try:
            operation, *args = generator.send(answer)
        except StopIteration as done:
            return done.value
        answer = memory.do(operation, *args)


class _Actor:
    def __init__(self, generator):
        self.generator, self.pending, self.word, self.done, self.result = generator, None, None, False, None

    def advance(self, memory, answer=None):
        """Go on to the next switch point, doing what lies before it."""
        while True:
            try:
                operation = self.generator.send(answer)
            except StopIteration as end:
                self.done, self.result = True, end.value
                return
            if operation[0] in SWITCH:
                self.pending = operation
                return
            answer = memory.do(*operation)

    def step(self, memory, actors):
        operation, *args = self.pending
        if operation == "sleep":
            if memory.word(args[0]) == args[1]:
                self.word = args[0]
                return
            answer = -11
        elif operation == "wake":
            answer = 0
            for other in actors:
                if other.word == args[0]:
                    other.word, answer = None, answer + 1
                    other.advance(memory, 0)
        elif operation == "poll_lifeline" and memory.polls and not memory.do("queued", args[0]):
            self.word = memory.word(args[0] + HANDLE.at.fd) ^ 1, "sends"
            return
        else:
            answer = memory.do(operation, *args)
            for other in actors if operation == "send" else ():
                if other.word == (args[0], "sends"):
                    other.word = None
                    other.advance(memory, 1)
        self.advance(memory, answer)


def _one(scene, choices, preemptions):
    """Run one schedule that begins with `choices`; return (outcome, alternatives at each step)."""
    memory, generators, outcome = scene()
    actors = [_Actor(generator) for generator in generators]
    for actor in actors:
        actor.advance(memory)
    taken, running, left = [], None, preemptions
    while True:
        ready = [i for i, actor in enumerate(actors) if not actor.done and actor.word is None]
        if not ready:
            break
        options = ready
        if running in ready and left is not None:
            options = [running, *[i for i in ready if i != running]] if left else [running]
        number = choices[len(taken)] if len(taken) < len(choices) else 0
        taken.append((number, len(options)))
        chosen = options[number]
        if running in ready and chosen != running and left is not None:
            left -= 1
        running = memory.running = chosen
        actors[chosen].step(memory, actors)
    if any(not actor.done for actor in actors):
        return "sleeps for ever", taken
    return outcome(memory, *[actor.result for actor in actors]), taken


def explore(scene, preemptions=None, most=20_000):
    """Return {outcome: number of schedules} over all schedules of a scene.

    Parameters
    ----------
    scene : function without arguments -> (memory, generators, outcome); outcome(memory, *results) is what is counted
    preemptions : how often an actor that could go on may be interrupted in one schedule; None: without limit
    most : more schedules than this are an error, not a long wait
    """
    outcomes, choices, count = {}, [], 0
    while True:
        found, taken = _one(scene, choices, preemptions)
        outcomes[found] = outcomes.get(found, 0) + 1
        count += 1
        if count > most:
            raise AssertionError(f"more than {most} schedules")
        while taken and taken[-1][0] + 1 >= taken[-1][1]:
            taken.pop()
        if not taken:
            return outcomes
        choices = [number for number, _ in taken[:-1]] + [taken[-1][0] + 1]
