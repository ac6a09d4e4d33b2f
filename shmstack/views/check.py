"""What must be true of a stack at every moment, as sentences about where it is not.

A look at a living stack is not one moment: two words of it may be read on either side of a change.  So what the
first look finds wrong is only reported if a second one, later, finds the very same.
"""
from __future__ import annotations

import time
from typing import Any, Iterator

from shmstack.shm.layout import MOVED_LOCK, PAGE
from shmstack.tcp.state import State
from shmstack.views.image import ESTABLISHED, FREE, MOVED, PAIR_STATES, Fields, Image, images

_BETWEEN_LOOKS = 0.02


def check(stack: Any) -> list[str]:
    """Return what is wrong with a stack, nothing if all is well; StackNotFound if there is no such stack.

    Parameters
    ----------
    stack : name of a stack (all of that name), or a row of `stacks()`
    """
    name = getattr(stack, "full", stack)
    first = _look(name)
    if not first:
        return []
    time.sleep(_BETWEEN_LOOKS)
    second = set(_look(name))
    return [fault for fault in first if fault in second]


def _look(name: str) -> list[str]:
    return [fault for image in images(name) for fault in (_faults(image) if image.header else [image.problem])]


def _faults(image: Image) -> Iterator[str]:
    if image.problem:
        yield image.problem
    living = {process.holder for process in image.processes() if process.alive}
    pairs = list(image.pairs())
    yield from _list_faults(image.header, [pair for _, pair, _, _ in pairs])
    for index, pair, tcbs, ways in pairs:
        if pair["state"] == FREE:
            continue
        for fault in _pair_faults(pair, tcbs):
            yield f"pair {index}: {fault}"
        for side, way in enumerate(ways):
            for fault in _way_faults(way, pair["state"], image.header["capacity"], living):
                yield f"pair {index} direction {side}: {fault}"
    for number, waiter in enumerate(image.waiters()):
        if not 0 <= waiter["owner"] < MOVED_LOCK:
            yield f"waiter {number}: owner={waiter['owner']}"


def _list_faults(header: Fields, pairs: list[Fields]) -> Iterator[str]:
    if not 0 <= header["fresh"] <= header["pairs_max"]:
        yield f"fresh={header['fresh']} of {header['pairs_max']}"
    busy = sum(pair["state"] != FREE for pair in pairs)
    if header["used"] != busy:
        yield f"used={header['used']}, pairs not free: {busy}"
    index, seen = header["free"] & 0xFFFFFFFF, set()
    while index:
        if index > len(pairs) or index in seen:
            yield f"free list: {'goes round' if index in seen else 'leaves the table'} at {index - 1}"
            return
        if pairs[index - 1]["state"] != FREE:
            yield f"free list: pair {index - 1} is {_state(pairs[index - 1])}"
        seen.add(index)
        index = pairs[index - 1]["next"] & 0xFFFFFFFF
    if len(seen) + busy != len(pairs):
        yield f"lost pairs: {len(pairs)} were used, {busy} are, {len(seen)} are free"


def _state(pair: Fields) -> str:
    return PAIR_STATES[pair["state"]] if 0 <= pair["state"] < len(PAIR_STATES) else f"state={pair['state']}"


def _pair_faults(pair: Fields, tcbs: list[Fields]) -> Iterator[str]:
    if not 0 <= pair["state"] < len(PAIR_STATES):
        yield _state(pair)
    if not 0 <= pair["closed"] <= 3 or (pair["closed"] == 3 and pair["state"] == ESTABLISHED):
        yield f"closed={pair['closed']} and {_state(pair)}"
    for side, tcb in enumerate(tcbs):
        if tcb["state"] not in State._value2member_map_ and (tcb["state"] or pair["state"] == ESTABLISHED):
            yield f"tcb {side}: state={tcb['state']}"
        if tcb["holders"] < 0:
            yield f"tcb {side}: holders={tcb['holders']}"


def _way_faults(way: Fields, state: int, capacity: int, living: set[int]) -> Iterator[str]:
    for lock in ("tx_lock", "rx_lock"):
        if way[lock] not in living and way[lock] != (MOVED_LOCK if state == MOVED else 0) and way[lock]:
            yield f"{lock}={way[lock]} is nobody's"
    if not 0 <= way["backed"] <= capacity or way["backed"] % PAGE:
        yield f"backed={way['backed']} of {capacity}"
    head, tail, set_bounds = way["head"], way["tail"], way["nb"] - way["passed"]
    if state == MOVED or way["kernel"]:
        return                                                # a decoy, or bytes that nobody counts
    if not 0 <= head <= tail:
        yield f"head={head} tail={tail}"
    if not 0 <= set_bounds <= 4:
        yield f"bounds: {way['passed']} passed of {way['nb']}"
        return
    at, lane, in_ring = head, way["passed"] & 1, 0
    for number in range(way["passed"], way["nb"]):
        bound = way[f"bound{number & 3}"]
        if not at <= bound <= tail:
            yield f"bound {number} at {bound}, between {at} and {tail}"
        at, lane, in_ring = bound, 1 - lane, in_ring + lane * (bound - at)
    if in_ring + lane * (tail - at) > capacity:
        yield f"{in_ring + lane * (tail - at)} bytes in a ring of {capacity}"
