"""The parts of `benchmarks/gpu_check.py`, a module each, and what they share."""
