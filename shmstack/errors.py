"""The errors of shmstack: what was wanted, what was found, what to do about it.

All but two are `OSError` with a true errno, because a drop-in for `socket` meets handlers written for `OSError`.
Where Python has its own class for the errno the error is also of that class, so `except FileNotFoundError` works.
An application that only uses sockets never sees one: what can't be accelerated stays on kernel TCP, unless
EF_NO_FAIL=0 asks for the error.
"""
from __future__ import annotations

import errno


class ShmstackError(OSError):
    """Base of all errors of shmstack that carry an errno.

    Parameters
    ----------
    wanted : str
        What was attempted.
    found : str, optional
        What stood in the way.
    advice : str, optional
        What the reader can do about it.
    """

    code = errno.EIO

    def __init__(self, wanted: str, found: str = "", advice: str = "") -> None:
        self.wanted, self.found, self.advice = wanted, found, advice
        message = f"wanted {wanted}" + (f", found {found}" if found else "") + (f"; {advice}" if advice else "")
        super().__init__(self.code, message)

    def __reduce__(self) -> tuple[type[ShmstackError], tuple[str, str, str]]:
        return type(self), (self.wanted, self.found, self.advice)


class StackNotFound(ShmstackError, FileNotFoundError):
    """No stack has this name."""

    code = errno.ENOENT


class StackExists(ShmstackError, FileExistsError):
    """A stack of this name exists and a new one was asked for."""

    code = errno.EEXIST


class StackFull(ShmstackError):
    """The stack has no free endpoint, ring or process slot."""

    code = errno.ENOSPC


class StackDenied(ShmstackError, PermissionError):
    """The stack belongs to another user who doesn't share it with us."""

    code = errno.EACCES


class LayoutMismatch(ShmstackError):
    """The segment was made by a shmstack whose structures differ from ours."""

    code = errno.EPROTO


class StackDied(ShmstackError):
    """The stack went away, or was damaged, while it was in use."""

    code = errno.EOWNERDEAD


class NotMovable(ShmstackError):
    """The socket can't change its stack now; it still works where it is."""

    code = errno.EBUSY


class StaleView(ShmstackError):
    """Somebody else used the connection between reserve and commit, or between peek and consume."""

    code = errno.ESTALE


class NotAccelerated(ShmstackError):
    """The socket would have to use kernel TCP, and EF_NO_FAIL=0 makes that an error."""

    code = errno.EOPNOTSUPP


class OptionError(ValueError):
    """An EF_ option has a value outside its range; the message names the variable, the value and the range."""


class UnknownOption(UserWarning):
    """The environment has an EF_ variable that no option is called by."""
