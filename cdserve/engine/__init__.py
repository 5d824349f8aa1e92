"""What happens per request: AlignedEngine, its candidates, and what the worker computes."""
