"""Describe the machine, because a latency without its machine is a rumour."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict[str, object]:
    """Describe processor, cores, kernel and interpreter of this machine.

    Returns
    -------
    dict
        `cpu` model name, `cores` this process may use, `virtual` (True on a virtual machine),
        `kernel` release, `python` version, `load` (1 minute average when the run began).
    """
    info = _cpuinfo()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in info.get("flags", "").split(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def line(machine: dict[str, object]) -> str:
    """Put `describe()` on one line, for the head of a table."""
    kind = "virtual" if machine["virtual"] else "bare metal"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {kind}, Linux {machine['kernel']}, "
        f"Python {machine['python']}, load {machine['load']}"
    )


def _cpuinfo() -> dict[str, str]:
    # The first processor speaks for all; arm64 kernels print no "model name".
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    fields = (row.partition(":") for row in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in fields}
