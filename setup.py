"""How shmstack is installed; tool settings are in pyproject.toml."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

# Peers to compare with, where they have wheels: elsewhere they would want a compiler, and `shmstack perf` does without.
PEERS = ["pyzmq", "iceoryx2; platform_machine == 'x86_64'", "membridge; platform_machine == 'x86_64'",
         "faster-fifo; platform_machine == 'x86_64' and python_version < '3.14'"]
PERF = ["rich", "hdrhistogram", "psutil", "matplotlib", *PEERS]
TOOLS = ["rich", "psutil"]
PROGRAMS = ["aiohttp", "httpx", "uvicorn", "gunicorn", "requests", "cheroot", "urllib3", "waitress", "websockets", "trio",
            "rpyc", "distributed", "execnet", "redis", "uvloop", "gevent", "eventlet"]
TEST = ["pytest>=8.4", "pytest-xdist", "hypothesis", "ruff", "mypy", *PERF]


class BuildKernels(build_py):
    """Copy the package, then compile its kernels into the copy, so that nothing is compiled at run time.

    Without numba (an offline build that was told not to fetch its requirements) the wheel has no kernels, and the
    first process that needs them makes them.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        where = Path(self.build_lib).resolve()
        shutil.rmtree(where / "shmstack" / "_lib", ignore_errors=True)        # of an earlier build in this tree
        path = [str(where), *filter(None, sys.path)]          # an isolated build finds numba only through its own path
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "SHMSTACK_RUN": ""}
        done = subprocess.run([sys.executable, "-m", "shmstack._build", str(where / "shmstack" / "_lib")], env=env,
                              cwd=where, check=False)
        if done.returncode:
            print("shmstack: the kernels could not be compiled now; the first use will", file=sys.stderr)


class Native(Distribution):
    """A distribution that holds machine code."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildKernels},
    distclass=Native,
    name="shmstack",
    version="0.1.0",
    description="Accelerated TCP loopback for unchanged Python programs: bytes move through shared memory",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["shmstack", "shmstack.*"]),
    # _site is no package: its one file is found through PYTHONPATH under the name sitecustomize.
    package_data={"shmstack": ["py.typed", "profiles/*.opf", "_site/sitecustomize.py"]},
    install_requires=["numba", "numpy", "posix-ipc", "filelock"],
    extras_require={"test": TEST, "perf": PERF, "tools": TOOLS, "programs": PROGRAMS},
    entry_points={"console_scripts": ["shmstack = shmstack.cli:main"],
                  "pytest11": ["shmstack.pytest_plugin = shmstack.pytest_plugin"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Networking",
    ],
)
