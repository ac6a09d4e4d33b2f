"""Found by each Python interpreter under `shmstack run`, through PYTHONPATH.

Lets the program use the drop-in, then does what Python would have done without us: run the sitecustomize that is
next on the path.  Any version of Python may come by here, and an interpreter that can't use shmstack must not notice
that it was there; so this file is written in words that old versions know, and is silent.
"""
import os
import sys

_NAMES = ("shmstack", "posix_ipc", "filelock")


class _Elsewhere(object):
    """The last finder: shmstack and what it needs from the launcher's installation, nothing else of it."""

    def __init__(self, places):
        self.places = places

    def find_spec(self, name, path=None, target=None):
        if path is None and name in _NAMES:
            from importlib.machinery import PathFinder
            return PathFinder.find_spec(name, self.places)
        return None


def _prepare():
    # An interpreter with shmstack of its own uses that; another one of the launcher's kind borrows the launcher's.
    known = os.environ.get("SHMSTACK_PATH", "").split(os.pathsep)
    if sys.implementation.cache_tag == known[0]:
        sys.meta_path.append(_Elsewhere(known[1:]))
    try:
        from shmstack.run import prepare
    except Exception:  # noqa: BLE001 - another version's syntax, a library made for another interpreter ...
        return
    prepare()


def _leave_path():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != here]


def _chain():
    ours = sys.modules.pop("sitecustomize", None)
    try:
        __import__("sitecustomize")
    except ImportError as error:
        if "No module named" not in str(error) or "sitecustomize" not in str(error):
            raise
    finally:
        # The import that runs this file wants to find it when it is done.
        sys.modules.setdefault("sitecustomize", ours)


_leave_path()
if os.environ.get("SHMSTACK_RUN") == "1" and sys.version_info >= (3, 11):
    _prepare()
_chain()
