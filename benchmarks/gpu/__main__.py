"""`python -m benchmarks.gpu`; separate from `check`, since spawned processes cannot import a `__main__`."""

import sys

from benchmarks.gpu.check import arguments, check

if __name__ == "__main__":
    sys.exit(check(**vars(arguments())))
