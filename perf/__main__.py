"""`python -m perf WORKLOAD`: the same as `shmstack perf WORKLOAD`."""

import sys

from perf.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
