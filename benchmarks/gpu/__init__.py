"""One check of everything that runs on a GPU: `make gpu`, or `python -m benchmarks.gpu --help`."""
