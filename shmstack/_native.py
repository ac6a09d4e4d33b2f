"""Load the native library and turn its symbols into Python callables.

`call` is a namespace of built-in functions (`call.send_some(handle, address, size, flags)`), there after `load()`.
`methods(cls)` gives a socket class its fast methods.

The library's name holds a digest of the sources it was made from, the interpreter and the machine, so another
version of either never finds it.  It is looked for beside the package, then in the user's cache; where it is
missing, a subprocess makes it (numba is not imported here), one at a time for all processes of the user.
"""
from __future__ import annotations

import ctypes
import os
import sys
from os.path import join
from types import SimpleNamespace
from typing import Any

from shmstack._digest import blake2b

_PACKAGE = os.path.dirname(os.path.realpath(__file__))     # strings: pathlib is a tenth of the import
_SYSTEM, _MACHINE = os.uname().sysname, os.uname().machine
_SOURCES = ("_jit.py", "_build.py", "shm/layout.py", "ring/bell.py", "ring/doorbell.py", "ring/lock.py",
            "ring/stream.py", "ring/memory.py", "tcp/handle.py", "tcp/codes.py", "tcp/state.py", "tcp/lane.py",
            "tcp/spill.py", "tcp/course.py", "tcp/loopback.py", "tcp/lend.py", "tcp/budget.py", "tcp/spin.py",
            "tcp/pace.py", "tcp/wait.py", "tcp/ready.py", "tcp/life.py", "tcp/offer.py", "tcp/method.py",
            "tcp/nopython.py", "tcp/inplace.py", "tcp/entry.py")
_FASTCALL, _KEYWORDS = 0x80, 0x02
_NUMBERS = {"x86_64": (202, 324), "aarch64": (98, 283), "riscv64": (98, 283)}     # futex, membarrier

call: Any = SimpleNamespace()
_library: Any = None
_kept: list[Any] = []                 # what the interpreter must not free: definitions, fallback methods


class Unavailable(ImportError):
    """The native library is missing and can't be made; says why."""


def stem() -> str:
    """Return the library's file name without suffix."""
    digest = blake2b(digest_size=8)
    for name in _SOURCES:
        with open(join(_PACKAGE, name), "rb") as source:
            digest.update(source.read())
    return f"kernels-{digest.hexdigest()}-{sys.implementation.cache_tag}-{_MACHINE}"


def places() -> list[str]:
    """Return where the library may be, the place to make it in first."""
    cache = join(os.environ.get("XDG_CACHE_HOME") or join(os.path.expanduser("~"), ".cache"), "shmstack")
    package = join(_PACKAGE, "_lib")
    found = [package, cache] if os.access(_PACKAGE, os.W_OK) else [cache, package]
    return [place for place in found if os.path.isabs(place)]      # nobody has a home directory in some containers


def find() -> str | None:
    """Return the library's path if it was made."""
    name = stem()
    for place in places():
        for suffix in (".so", ".o"):
            path = join(place, name + suffix)
            try:
                if _trusted(path):
                    return path
            except OSError:
                continue              # not there, or a home directory that isn't ours (sudo keeps HOME)
    return None


def _trusted(path: str) -> bool:
    # Code is only loaded if it is ours, root's or the package owner's, and nobody else can write it.
    status = os.stat(path)
    return status.st_uid in (os.geteuid(), 0, os.stat(_PACKAGE).st_uid) and not status.st_mode & 0o022


def _make() -> str:
    place = places()[0]
    os.makedirs(place, exist_ok=True)
    import subprocess                 # here, as in most processes nothing is to be made

    from filelock import FileLock
    with FileLock(join(place, ".lock")):
        path = find()
        if path is None:
            env = {name: value for name, value in os.environ.items() if name not in ("SHMSTACK_RUN", "PYTHONHOME")}
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(_PACKAGE), env.get("PYTHONPATH")]))
            done = subprocess.run([sys.executable, "-P", "-m", "shmstack._build", place], env=env, text=True,
                                  stdin=subprocess.DEVNULL, capture_output=True, check=False)
            path = find()
            if done.returncode or path is None:
                raise Unavailable(f"wanted the compiled kernels in {place}, making them failed: {done.stderr[-500:]}")
    return path


def _open(path: str) -> Any:
    if path.endswith(".so"):
        library = ctypes.CDLL(path)
        return lambda name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    from llvmlite import binding
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_path(path))
    engine.finalize_object()
    _kept.append(engine)

    def address(name: str) -> int:
        found: int = engine.get_function_address(name) or engine.get_global_value_address(name)
        return found
    return address


class _MethodDef(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("doc", ctypes.c_char_p)]


def _definition(name: str, symbol: str, keywords: bool = False, doc: str | None = None) -> _MethodDef:
    flags = _FASTCALL | (_KEYWORDS if keywords else 0)
    made = _MethodDef(name.encode(), _library(symbol), flags, doc.encode() if doc else None)
    _kept.append(made)
    return made


def _static(word: int, value: int) -> None:
    ctypes.c_int64.from_address(_library("shmstack_static") + 8 * word).value = value


FUNCTIONS = (
    "register_barrier barrier after_bell wake ring_bell now_ns take unlock break_lock pass_bounds outstanding lane_end "
    "set_bound announce spill inherit_sent inherit_received send_some recv_some recv_end lend "
    "wait_arrived wait_room wait_lifeline arrived in_ring has_room load store cas "
    "swap fetch_add fetch_or set_lowat under_way allocate free touch map unmap back read write send_buffer recv_buffer "
    "reserve commit look_at give_back "
    "ring_ready collect poll_marks set_asleep watch look listen_to expect_kernel spin_look "
    "take_pair release_pair point enter offer established claim withdraw unpost silent finish ended meet "
    "spin_accept share in_use take_slot limited").split()


def load() -> Any:
    """Load the library once and return `call`; raise `Unavailable` with the reason if that can't be done."""
    global _library
    if _library is None:
        if _SYSTEM != "Linux" or _MACHINE not in _NUMBERS or sys.byteorder != "little":
            raise Unavailable(f"wanted Linux on {', '.join(_NUMBERS)}, found {_SYSTEM} {_MACHINE}")
        _library = _open(find() or _make())
        new = ctypes.pythonapi.PyCFunction_NewEx
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        for name in FUNCTIONS:
            definition = _definition(name, f"shmstack_{name}")
            setattr(call, name, new(ctypes.addressof(definition), None, None))
        futex, membarrier = _NUMBERS[_MACHINE]
        _static(2, futex)
        _static(3, membarrier)
        call.register_barrier()
    return call


def methods(cls: type, slot: str, slow: dict[str, Any]) -> None:
    """Give `cls` the fast methods named in `slow`, in the order of `tcp.method.METHODS`.

    Parameters
    ----------
    cls : a class with a slot `slot`, whose base class has the methods of the standard library
    slow : name -> function to call where the fast path has no answer
    """
    load()
    member = cls.__dict__[slot]
    # PyMemberDescrObject: PyDescr_COMMON (header 16, d_type, d_name, d_qualname), then PyMemberDef *; its offset
    definition = ctypes.c_void_p.from_address(id(member) + 40).value
    offset = ctypes.c_ssize_t.from_address((definition or 0) + 16).value
    _static(8, offset)
    _static(9, id(None))
    head = bytes.__basicsize__ - 1                            # reference count, type, size, hash
    _static(10, id(bytes) if head == 32 else 0)
    _static(11, head)
    new = ctypes.pythonapi.PyDescr_NewMethod
    new.restype, new.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
    for index, (name, function) in enumerate(slow.items()):
        standard = getattr(cls.__mro__[1], name)
        _kept.extend((function, standard))
        _static(16 + 2 * index, id(function))
        _static(17 + 2 * index, id(standard))
        entry = _definition(name, f"shmstack_method_{name}", name == "recv_into", standard.__doc__)
        setattr(cls, name, new(cls, ctypes.addressof(entry)))
