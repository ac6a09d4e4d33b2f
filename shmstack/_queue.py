"""A `multiprocessing.Queue` whose objects travel through a stack.

Guarantee: the standard class' interface and order; `put` never waits for a reader.

Theory.  The standard `put` leaves the object to a thread, which pickles and sends it: so `put` never waits for room in
the pipe, and each object waits for a wake-up and a turn of the GIL.  This `put` sends by itself what can go at once: the
thread has nothing left, nobody else is writing, and there is room for all of it.  Anything else goes the standard way, and
what follows goes behind it until the thread has sent it all.  So each thread's objects stay in order.
"""
from __future__ import annotations

import multiprocessing
from multiprocessing import queues as _queues
from multiprocessing import reduction as _reduction
from queue import Full
from typing import Any

from shmstack._connection import Connection

_WHOLE = 1 << 14                      # bytes of a message that is sent by one call, so that no signal parts it
_dumps: Any = _reduction.ForkingPickler.dumps


class _Count:
    """Objects given to the thread, and those that it is done with: each number has one writer."""

    def __init__(self) -> None:
        self.given = self.done = 0

    @property
    def nothing(self) -> bool:
        """Whether it has none."""
        return self.given == self.done

    def counting(self, send: Any) -> Any:
        """Return `send` so that what it sent is counted."""
        def sent(data: Any) -> None:
            send(data)
            self.done += 1
        return sent


class Queue(_queues.Queue):  # type: ignore[type-arg]
    """A queue of objects between processes.

    Parameters
    ----------
    pipe : its two ends
    maxsize : how many objects it holds, 0: any number
    ctx : the multiprocessing context, for its locks
    """

    def __init__(self, pipe: tuple[Connection, Connection], maxsize: int = 0, *, ctx: Any = None) -> None:
        super().__init__(maxsize, ctx=ctx or multiprocessing.get_context())
        this: Any = self
        this._reader.close()
        this._writer.close()
        this._reader, this._writer = pipe
        this._reset()

    def _reset(self, after_fork: bool = False) -> None:
        this: Any = self
        _queues.Queue._reset(this, after_fork)                # type: ignore[attr-defined]
        this._thread_has, this._sent = _Count(), False
        this._send_bytes = this._thread_has.counting(this._writer.send_bytes)

    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        this: Any = self
        _queues.Queue._on_queue_feeder_error(e, obj)          # type: ignore[attr-defined]
        this._thread_has.done += 1

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue; raise queue.Full if it has no room for as long as this may wait."""
        this: Any = self
        if this._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if not this._sem.acquire(block, timeout):
            raise Full
        if this._thread_has.nothing and self._send_now(obj):
            return
        with this._notempty:
            if this._thread is None:
                this._start_thread()
            this._thread_has.given += 1
            this._buffer.append(obj)
            this._notempty.notify()

    def _send_now(self, obj: Any) -> bool:
        # Without a lock of threads: pickling, or what the collector finds meanwhile, may put something too.
        this: Any = self
        try:
            data = _dumps(obj)
        except Exception:  # noqa: BLE001 - whatever it is, the thread says so in the standard way
            return False
        if len(data) > _WHOLE or not this._wlock.acquire(False):
            return False
        try:
            if not this._writer.takes(len(data)):
                return False
            this._writer.send_bytes(data)
            this._sent = True
        except OSError:
            return False
        finally:
            this._wlock.release()
        return True

    def close(self) -> None:
        """Say that this process puts nothing more into the queue."""
        this: Any = self
        super().close()
        if this._thread is None and this._sent:               # else the thread does so, once all is sent
            this._sent = False
            this._reader.close()
            this._writer.close()
