"""`python -m benchmarks.gpu`; apart from `check`, since processes that are spawned cannot import a `__main__`."""

import sys

from benchmarks.gpu.check import arguments, check

if __name__ == "__main__":
    sys.exit(check(**vars(arguments())))
