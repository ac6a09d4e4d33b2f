"""`python -m shmstack`: the command line."""
import sys

from shmstack.cli import main

if __name__ == "__main__":
    sys.exit(main())
