"""One end of a `multiprocessing` connection, holding an accelerated socket; and waiting for many of them.

Guarantee: the interface, errors and wire format of `multiprocessing.connection.Connection`.  A message is its length in
4 bytes (or -1 and 8 bytes) and then its bytes; it is read in exactly these parts, so nothing is ever held back here that
`poll`, a foreign poller or a forked process would have to know of.

Rejected: the standard class on the bare descriptor with `os.read` and `os.write` replaced (they can't know whose it is).
"""
from __future__ import annotations

import io
import multiprocessing
import pickle
import select
import struct
import time
from multiprocessing import connection as _module
from multiprocessing import reduction as _reduction
from typing import Any

from shmstack import _native, selectors
from shmstack import socket as _socket
from shmstack.ring.bell import FUTEX, RING
from shmstack.shm.layout import DIRECTION

BufferTooShort = multiprocessing.BufferTooShort
_standard: Any = _module
_dumps: Any = _reduction.ForkingPickler.dumps
_LOOK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT
_SMALL = 1 << 14                     # up to here a copy is cheaper than a buffer of the right size
_SURELY = 1 << 12                    # bytes that the kernel has room for wherever it says that there is some
_HEAD, _POLLOUT = 12, 4              # most bytes before a message's own
_D = DIRECTION.at
_SLICE_NS = 100_000_000              # longest wait without a look at signals and the lifeline
_FLAT = frozenset((bytes, str, int, float, bool, type(None)))     # no reducer has a say in how these are pickled


class Connection(_standard.Connection):  # type: ignore[misc]
    """One end of a connection, as the standard library's class.

    Parameters
    ----------
    sock : connected socket, ours from now on
    readable, writable : which calls are allowed
    travels : whether it stays accelerated when it is pickled for another process
    """

    def __init__(self, sock: Any, readable: bool = True, writable: bool = True, travels: bool = False) -> None:
        super().__init__(sock._descriptor(), readable, writable)
        self._sock, self._travels = sock, travels
        self._failure: OSError | None = None          # an error that poll() met; the next receive raises it

    def fileno(self) -> int:
        """Return the descriptor; the kernel sees what arrives, until the next receive."""
        self._check_closed()
        fd: int = self._sock.fileno()
        return fd

    # Our own pollers ask these two instead, and leave the connection where it is.
    def _descriptor(self) -> int:
        self._check_closed()
        fd: int = self._sock._descriptor()
        return fd

    @property
    def _endpoint(self) -> Any:
        return self._sock._endpoint

    def _close(self, *_: Any) -> None:
        self._sock.close()

    # ---- sending

    def send(self, obj: Any) -> None:
        """Send an object that can be pickled."""
        self._check_closed()
        self._check_writable()
        self._send_bytes(pickle.dumps(obj) if obj.__class__ in _FLAT else _dumps(obj))

    def _send(self, buf: Any, *_: Any) -> None:
        self._sock.sendall(buf)

    def takes(self, size: int) -> bool:
        """Return whether a message of so many bytes can be sent without a wait, if nobody else sends one."""
        end = self._sock._endpoint
        if end is None or not end.open:
            return size <= _SURELY and bool(select.select((), (self._descriptor(),), (), 0)[1])
        native = _native.call
        here = native.load(end.tx + _D.bell) in (RING, FUTEX)
        if not here and (size > _SURELY or native.wait_lifeline(end.handle, _POLLOUT, 0) != _POLLOUT):
            return False
        return bool(native.has_room(end.handle, size + _HEAD))

    # ---- receiving

    def recv(self) -> Any:
        """Receive an object."""
        self._check_closed()
        self._check_readable()
        return pickle.loads(self._part(self._size()))

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive a message of at most `maxlength` bytes."""
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        size = self._size()
        if maxlength is not None and size > maxlength:
            self._bad_message_length()
        return self._part(size)

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Receive a message into `buf` from byte `offset` on, and return its size; BufferTooShort has what is larger."""
        self._check_closed()
        self._check_readable()
        with memoryview(buf) as items, items.cast("B") as room:
            if offset < 0:
                raise ValueError("negative offset")
            if offset > len(room):
                raise ValueError("offset too large")
            size = self._size()
            if len(room) < offset + size:
                raise BufferTooShort(self._part(size))
            with room[offset:offset + size] as place:
                self._fill(place)
            return size

    def _size(self) -> int:
        size: int = struct.unpack("!i", self._part(4))[0]
        if size == -1:
            size = struct.unpack("!Q", self._part(8))[0]
        return size

    def _part(self, size: int) -> bytes:
        # Exactly that many bytes; the end of the stream before the first is EOFError.
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        data = b""
        if size <= _SMALL:
            data = bytes(self._sock.recv(size))
            if len(data) == size:
                return data
            if not data:
                raise EOFError
        # What a BytesIO alone has may be written, and is given away by getvalue() without a copy.
        room = io.BytesIO(bytes(size))
        with room.getbuffer() as view:
            view[:len(data)] = data
            self._fill(view, len(data))
        return room.getvalue()

    def _fill(self, view: memoryview, got: int = 0) -> None:
        size = len(view)
        while got < size:
            with view[got:] as rest:
                new = self._sock.recv_into(rest)
            if not new:
                if got:
                    raise OSError("got end of file during message")
                raise EOFError
            got += new

    # ---- waiting

    def _poll(self, timeout: float | None) -> bool:
        sock, byte = self._sock, bytearray(1)
        end = time.monotonic_ns() + int(timeout * 1e9) if timeout is not None else 0
        while sock._endpoint is not None and self._failure is None:
            try:
                sock.recv_into(byte, 1, _LOOK)
                return True
            except BlockingIOError:
                left = end - time.monotonic_ns() if timeout is not None else _SLICE_NS
            except OSError as error:
                self._failure = error
                return True
            if left <= 0:
                return False
            here = sock._endpoint
            if here is not None and here.open:
                here.serve()
                if _native.call.wait_arrived(here.handle, min(left, _SLICE_NS)) == 0:
                    break                                     # it takes longer: a poll is quieter
        if timeout is not None:
            timeout = max(0.0, (end - time.monotonic_ns()) / 1e9)
        return self._failure is not None or bool(wait([self], timeout))


def wait(object_list: Any, timeout: float | None = None) -> list[Any]:
    """Return those of the connections, sockets and descriptors that are readable, as soon as one is."""
    end = None if timeout is None else time.monotonic() + timeout
    with selectors.PollSelector() as selector:
        for thing in object_list:
            selector.register(thing, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(timeout)]
            if ready or end is not None and (timeout := end - time.monotonic()) < 0:
                return ready
