"""Benchmarks: ours, each peer and the physical ceiling, interleaved in one run; medians and ratios."""
