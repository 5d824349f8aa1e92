"""Comparison with other implementations of the same decoding: ``python -m benchmarks.peers``."""
