"""Benchmarks: each peer and the physical ceiling in the same run, interleaved; medians and ratios."""
