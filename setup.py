"""How shmstack is installed; tool settings are in pyproject.toml."""
from pathlib import Path

from setuptools import find_packages, setup

PERF = ["rich", "hdrhistogram", "psutil", "matplotlib"]
TOOLS = ["rich", "psutil"]
NIC = ["pyroute2"]
PEERS = ["pyzmq", "iceoryx2", "faster-fifo", "membridge"]
TEST = ["pytest>=8.4", "pytest-xdist", "hypothesis", "ruff", "mypy", "psutil"]

setup(
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
    extras_require={"test": TEST, "perf": PERF, "tools": TOOLS, "nic": NIC, "peers": PEERS},
    entry_points={"console_scripts": ["shmstack = shmstack.cli:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Networking",
    ],
)
