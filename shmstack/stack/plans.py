"""What this process remembers of listeners that it connected to, so that the next connection is set up quickly.

A *plan* is a decision that `rendezvous` made for an address: which listener, whose stack, where the connection lives.
It holds as long as all that it was made from does: our own options and stack, and the listener's record, whose text
names the listening socket by a number that is never used again.  A stale plan would do no harm (an offer that nobody
finds leaves the connection in the kernel lane), it would only never get better.

Plans are made only where nobody but our own user and root can write to the listener's stack: there offers stand on
its board.  Between users there are records, and the checks of `rendezvous` each time.

The stacks of others that are used again and again are *kept* between two connections.  One that nobody else uses any
more is dropped at the next opportunity: when a connection in it ends, or another stack is come by.
"""
from __future__ import annotations

import os
import weakref
from typing import Any, NamedTuple

from shmstack import _native
from shmstack.options import Options
from shmstack.shm.layout import OFFER, OFFERS, OFFERS_MAX
from shmstack.stack import directory, names
from shmstack.stack.policy import Home
from shmstack.stack.stack import Stack

_MOST = 64                            # plans, and stacks that are kept
_O = OFFER.at


class Plan(NamedTuple):
    """What to do for a connection to one address."""

    options: Options
    netns: int
    home: Home
    mine: weakref.ref[Stack]
    theirs: weakref.ref[Stack]
    record: directory.Listening
    text: str                         # what it says
    instead: str                      # a record here would be the better one; "" if there is none such

    def stacks(self) -> tuple[Stack, Stack]:
        """Return (ours, the listener's)."""
        mine, theirs = self.mine(), self.theirs()
        assert mine is not None and theirs is not None        # `find` has looked, they are kept
        return mine, theirs

    def holds(self) -> bool:
        """Return whether it would be made the same way now."""
        mine, theirs = self.mine(), self.theirs()
        return mine is not None and theirs is not None and self.options is names.options() \
            and names.existing_in(self.netns) is mine and mine.in_use and (theirs is mine or theirs.in_use) \
            and directory.says(self.record.path, self.text) and not (self.instead and directory.there(self.instead))


_plans: dict[Any, Plan] = {}
_kept: dict[str, Stack] = {}


def find(address: Any) -> Plan | None:
    """Return the plan for an address if there is one that still holds."""
    try:
        plan = _plans.get(address)
        if plan is None or plan.holds():
            return plan
    except TypeError:
        return None                                           # for the kernel to report
    del _plans[address]
    sweep()
    return None


def make(address: Any, mine: Stack, theirs: Stack, home: Home, record: directory.Listening, instead: str) -> Plan | None:
    """Remember what was decided for an address, if offers may stand on the listener's board; else return None."""
    if not theirs.private or record.owner not in (os.geteuid(), 0):
        return None
    plan = Plan(names.options(), mine.netns, home, weakref.ref(mine), weakref.ref(theirs), record, record.text, instead)
    if theirs is not mine:
        keep(theirs)
    if len(_plans) >= _MOST:
        _plans.clear()
    _plans[address] = plan
    return plan


def keep(stack: Stack) -> None:
    """Stay in a stack after the connection is closed."""
    if _kept.get(stack.name) is not stack:
        sweep()
        if len(_kept) >= _MOST:
            del _kept[next(iter(_kept))]
        _kept[stack.name] = stack


def sweep() -> None:
    """Drop every stack that nobody else uses any more."""
    for stack in tuple(_kept.values()):
        drop_if_alone(stack)


def drop_if_alone(stack: Stack) -> None:
    """Drop a stack if we keep it and nobody else uses it any more."""
    if _kept.get(stack.name) is stack and not (stack.in_use and stack.segment.others()):
        _kept.pop(stack.name, None)


def clean(stack: Stack) -> None:
    """Take the offers of dead processes off a board that is full."""
    native, living = _native.call, dict[int, bool]()
    for entry in range(stack.segment.base + OFFERS, stack.segment.base + OFFERS + OFFERS_MAX * OFFER.size, OFFER.size):
        cookie = native.load(entry + _O.cookie)
        holder = native.load(entry + _O.holder) if cookie > 0 else -cookie
        if cookie and not living.setdefault(holder, stack.holds(holder)):
            native.cas(entry + _O.cookie, cookie, 0)
