"""Compile the kernels into one native library: `python -m shmstack._build [DIRECTORY]`.

Run when the package is installed, or by the first process that finds no library for its sources (under a lock; see
`_native`).  numba compiles each entry of `tcp.entry` to LLVM IR; the modules are linked into one, which is emitted
as position-independent object code and linked to a shared object by the system's `cc` or `ld`.  On a machine that
has neither, the object file itself is kept, and llvmlite's linker loads it.

Rejected: numba's pycc.  It wraps each function for Python by itself, with a tuple for the arguments (150 ns more a
call than the fast calling convention), needs a C compiler, and is deprecated.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from shmstack import _native


def _signature(arguments: int) -> Any:
    from numba import types
    return types.int64(*[types.int64] * arguments)


def _compile(name: str, function: Any) -> str:
    """Return the LLVM IR of one entry, its C symbol being `shmstack_NAME`."""
    from numba import cfunc
    count = function.__code__.co_argcount
    compiled = cfunc(_signature(count), nopython=True, error_model="numpy")(function)
    text: str = compiled._library.get_llvm_str()
    return text.replace(compiled._wrapper_name, f"shmstack_{name}")


def _module() -> Any:
    from llvmlite import binding

    from shmstack.tcp import entry, method, nopython

    entries = dict(entry.FUNCTIONS)
    entries.update({f"method_{name}": function for name, (function, _) in method.METHODS.items()})
    entries.update(nopython.EXPORTS)
    whole = None
    for name, function in entries.items():
        part = binding.parse_assembly(_compile(name, function))
        for item in list(part.functions) + list(part.global_variables):
            if not item.is_declaration and item.name != "shmstack_static" and item.name != f"shmstack_{name}":
                item.linkage = "internal"
        part.verify()
        if whole is None:
            whole = part
        else:
            whole.link_in(part)
    return whole


def _object_code(module: Any) -> bytes:
    from llvmlite import binding
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    machine = target.create_target_machine(opt=3, reloc="pic", codemodel="small")
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, tuning).getModulePassManager()
    passes.run(module, binding.create_pass_builder(machine, tuning))
    code: bytes = machine.emit_object(module)
    return code


def _link(obj: Path, out: Path) -> bool:
    """Link the object file to a shared object with what the system has; return whether that worked."""
    for linker in ("cc", "gcc", "clang", "ld"):
        if shutil.which(linker):
            done = subprocess.run([linker, "-shared", "-o", str(out), str(obj)], capture_output=True, check=False)
            if done.returncode == 0:
                return True
    return False


def build(directory: Path) -> Path:
    """Write the library for the present sources to `directory` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    code = _object_code(_module())
    with tempfile.TemporaryDirectory(dir=directory) as name:
        obj, shared = Path(name) / "kernels.o", Path(name) / "kernels.so"
        obj.write_bytes(code)
        made = shared if _link(obj, shared) else obj
        final = directory / f"{_native.stem()}{made.suffix}"
        os.replace(made, final)
    return final


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else _native.places()[0])))
