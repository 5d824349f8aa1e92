"""cdserve beside other ways to the same decoding: ``python -m benchmarks.peers``."""
